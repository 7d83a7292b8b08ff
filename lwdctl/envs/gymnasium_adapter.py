"""Gymnasium environments with vector observations as simulators, wrapped or derived from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import gymnasium
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.plain_text import listed
from lwdctl.core.records import UNKNOWN_UNITS, ActionSpec, EnvSpec, FloatArray, ObservationSpec
from lwdctl.core.simulator_facts import OBSERVATION
from lwdctl.envs.simulator import Metric, Observation, Step

RETURN = Metric("return", "reward", "sum")
_STEP = ("observation", "reward", "terminated", "truncated", "info")


class GymnasiumAdapter:
    """What a wrapped environment and a derived class share.

    `reset(seed=...)` of the environment must fix an episode entirely: the seed is then all the
    state that `restore` needs. `info` of a step may hold `is_success` or `success`, and holds what
    the metrics are computed from.

    Attributes:
        observations: Names and sizes. A dictionary of observations has these keys; an array is
            split in this order.
        action: What an action means.
        metrics: Numbers per episode; the first one is the score.
        max_steps: Episode limit in steps.
    """

    observations: tuple[ObservationSpec, ...]
    action: ActionSpec
    metrics: tuple[Metric, ...]
    max_steps: int

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self.env = env
        space = getattr(env, "action_space", None)  # a derived class describes actions itself
        self._action_type = np.dtype(getattr(space, "dtype", None) or np.float32)
        self._action_shape: tuple[int, ...] = (-1,)
        self._seed = 0

    def reset(self, seed: int) -> Observation:
        """Start the episode that `seed` fixes entirely."""
        self._seed = seed
        observation, _ = self._parts("reset", self.env.reset(seed=seed), ("observation", "info"))
        return self._named(observation)

    def restore(self, state: npt.NDArray[np.float64], model: str = "") -> Observation:
        """Start from a seed (1,), as `initial_state` returned it.

        Raises:
            SimulatorError: Not a seed.
        """
        del model
        if state.shape != (1,):
            raise SimulatorError(
                f"an initial state of {self._name()} is a seed of shape (1,), not {state.shape}",
                "write an adapter with a restore(state) of its own",
            )
        return self.reset(int(state[0]))

    def initial_state(self) -> npt.NDArray[np.float64]:
        """Return this episode's seed (1,)."""
        return np.array([self._seed], dtype=np.float64)

    def step(self, action: FloatArray) -> Step:
        """Apply one action (action,), clipped to the limits, in the type of the environment's."""
        clipped = np.clip(np.asarray(action, np.float64), self.action.low, self.action.high)
        if self._action_type.kind in "iu":
            clipped = np.rint(clipped)
        answer = self.env.step(clipped.astype(self._action_type).reshape(self._action_shape))
        observation, reward, terminated, truncated, info = self._parts("step", answer, _STEP)
        success = bool(info.get("success", info.get("is_success", False)))
        numbers = {"reward": float(reward), **info}
        metrics = {item.source: self._number(numbers, item.source) for item in self.metrics}
        return Step(
            self._named(observation), float(reward), success, bool(terminated or truncated), metrics
        )

    def perturb(self, magnitude: float, rng: np.random.Generator) -> None:
        """Let the environment perturb itself by its `perturb(magnitude, rng)`; 0 does nothing.

        Raises:
            ConfigError: The environment has no `perturb`.
        """
        if magnitude:
            self._perturbation()(magnitude, rng)

    def check_perturbed(self) -> None:
        """Check that the environment, or a class derived from this one, can be perturbed.

        Raises:
            ConfigError: It cannot.
        """
        if type(self).perturb is GymnasiumAdapter.perturb:
            self._perturbation()

    def _perturbation(self) -> Callable[[float, np.random.Generator], object]:
        found = getattr(self.env.unwrapped, "perturb", None)
        if found is None:
            raise ConfigError(
                f"{self._name()} cannot be perturbed",
                "give the environment a method perturb(magnitude, rng), or set the perturbation"
                " to 0",
            )
        return cast(Callable[[float, np.random.Generator], object], found)

    def render(self) -> npt.NDArray[np.uint8]:
        """Return an image (height, width, 3).

        Raises:
            SimulatorError: The environment returns no image.
        """
        try:
            image = self.env.render()
        except NotImplementedError:  # gymnasium.Env has a `render` that only raises it
            image = None
        if image is None:
            raise SimulatorError(
                f"{self._name()} renders no image", 'make it with render_mode="rgb_array"'
            )
        return np.asarray(image, dtype=np.uint8)

    def close(self) -> None:
        """Free the environment."""
        self.env.close()

    def _named(self, observation: Any) -> dict[str, FloatArray]:
        if not isinstance(observation, Mapping):
            ends = np.cumsum([item.size for item in self.observations])[:-1]
            parts = np.split(np.asarray(observation).ravel(), ends)
            names = (item.name for item in self.observations)
            observation = dict(zip(names, parts, strict=True))
        if missing := [item.name for item in self.observations if item.name not in observation]:
            raise SimulatorError(
                f"{self._name()} returned no observation {listed(missing)}, but"
                f" {listed(map(str, observation)) or 'none'}",
                "return what its observation_space, or the `observations` of its class, declares",
            )
        return {
            item.name: np.asarray(observation[item.name], dtype=np.float32).ravel()
            for item in self.observations
        }

    def _parts(self, method: str, answer: Any, names: Sequence[str]) -> Any:
        """Return what a method of the environment returned, which must have these parts."""
        if not isinstance(answer, tuple) or len(answer) != len(names):
            found = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
            raise SimulatorError(
                f"{method} of {self._name()} returned {found}, expected {', '.join(names)}",
                "gymnasium.Env describes it; gymnasium.utils.env_checker checks an environment",
            )
        return answer

    def _number(self, numbers: Mapping[str, Any], source: str) -> float:
        if source not in numbers:
            raise SimulatorError(
                f"{self._name()}: info has no '{source}', which a metric is computed from",
                "return it from the environment's step",
            )
        return float(numbers[source])

    def _name(self) -> str:
        return type(self).__name__


class GymnasiumSimulator(GymnasiumAdapter, ABC):
    """A class to derive from: an environment of your own; `examples/reach.py` does.

    A subclass sets the attributes and writes `make`.
    """

    def __init__(self, env: EnvSpec, task: str) -> None:
        self.max_steps = env.max_steps or self.max_steps
        super().__init__(self.make(task))

    @abstractmethod
    def make(self, task: str) -> Any:
        """Return the Gymnasium environment of a task; videos need `render_mode="rgb_array"`."""


def _limit(env: gymnasium.Env[Any, Any], name: str) -> int:
    """Return the step limit that an attribute of an environment or its wrappers holds, else 0."""
    try:
        value = env.get_wrapper_attr(name)
    except Exception:  # noqa: BLE001 - there is none, or a property that needs a reset
        return 0
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return int(value) if is_whole and value > 0 else 0


class WrappedGymnasium(GymnasiumAdapter):
    """Any `gymnasium.Env`, described by its spaces.

    Observations are a Box (called `"observation"`) or a Dict of boxes, flattened per key; actions
    are a Box. The score is the return, and the episode limit that of the environment's `TimeLimit`,
    else its attribute `max_steps`.

    Args:
        env: The environment.
        borrowed: Whether somebody else closes it.

    Raises:
        ConfigError: A space that is not supported.
    """

    metrics: tuple[Metric, ...] = (RETURN,)

    def __init__(self, env: gymnasium.Env[Any, Any], *, borrowed: bool = False) -> None:
        super().__init__(env)
        self._borrowed = borrowed
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise ConfigError(
                f"{self._name()} has actions in {space}, expected a Box",
                "lwdctl evaluates policies with continuous actions only",
            )
        low, high = (tuple(item.ravel().tolist()) for item in (space.low, space.high))
        self._action_shape = space.shape
        self.action = ActionSpec(len(low), "absolute", UNKNOWN_UNITS, low, high)
        self.observations = self._observation_specs(env.observation_space)
        # `TimeLimit` offers its limit by no public name, and an environment that was not made by
        # its id has no `spec` that holds it.
        limits = (_limit(env, name) for name in ("_max_episode_steps", "max_steps"))
        self.max_steps = next(filter(None, limits), 0)

    def close(self) -> None:
        """Free the environment, unless it is borrowed."""
        if not self._borrowed:
            super().close()

    def _observation_specs(self, space: gymnasium.Space[Any]) -> tuple[ObservationSpec, ...]:
        boxes = dict(space.spaces) if isinstance(space, gymnasium.spaces.Dict) else {}
        for name, part in (boxes or {OBSERVATION: space}).items():
            if not isinstance(part, gymnasium.spaces.Box):
                raise ConfigError(
                    f"{self._name()} has the observation '{name}' in {part}, expected a Box",
                    "wrap it in gymnasium.wrappers.FlattenObservation",
                )
            boxes[name] = part
        return tuple(ObservationSpec(name, int(np.prod(box.shape))) for name, box in boxes.items())

    def _name(self) -> str:
        return str(self.env)
