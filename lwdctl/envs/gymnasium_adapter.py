"""Any Gymnasium environment with vector observations as a simulator: a class to derive from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import ActionSpec, EnvSpec, FloatArray, ObservationSpec
from lwdctl.envs.simulator import Metric, Observation, Step


class GymnasiumSimulator:
    """Wraps what `make` returns; `examples/reach.py` derives from it.

    A subclass sets the attributes and writes `make`. `reset(seed=...)` of the environment must
    fix an episode entirely: the seed is then all the state that `restore` needs. `info` of a
    step holds `success` (or `is_success`) and what the metrics are made of.

    Attributes:
        observations: Names and sizes. A dictionary of observations has these keys; an array is
            cut in this order.
        action: What an action means.
        metrics: Numbers per episode; the first one is the score.
        max_steps: Episode limit in steps.
    """

    observations: tuple[ObservationSpec, ...]
    action: ActionSpec
    metrics: tuple[Metric, ...]
    max_steps: int

    def __init__(self, env: EnvSpec, task: str) -> None:
        self.max_steps = env.max_steps or self.max_steps
        self.env = self.make(task)
        self._seed = 0

    def make(self, task: str) -> Any:
        """Return the Gymnasium environment of a task; videos want `render_mode="rgb_array"`."""
        raise NotImplementedError(f"{type(self).__name__} has no make(task)")

    def reset(self, seed: int) -> Observation:
        """Start the episode that `seed` fixes entirely."""
        self._seed = seed
        observation, _ = self.env.reset(seed=seed)
        return self._named(observation)

    def restore(self, state: npt.NDArray[np.float64], model: str = "") -> Observation:
        """Start from a seed (1,), as `initial_state` returned it."""
        del model
        return self.reset(int(state[0]))

    def initial_state(self) -> npt.NDArray[np.float64]:
        """Return this episode's seed (1,)."""
        return np.array([self._seed], dtype=np.float64)

    def step(self, action: FloatArray) -> Step:
        """Apply one action (action,), clipped to the limits."""
        clipped = np.clip(action, self.action.low, self.action.high).astype(np.float32)
        observation, reward, terminated, _, info = self.env.step(clipped)
        success = bool(info.get("success", info.get("is_success", False)))
        metrics = {item.source: self._number(info, item.source) for item in self.metrics}
        return Step(self._named(observation), float(reward), success, bool(terminated), metrics)

    def perturb(self, magnitude: float, rng: np.random.Generator) -> None:
        """Refuse disturbances other than 0; a subclass may know better.

        Raises:
            SimulatorError: The magnitude is not 0.
        """
        del rng
        if magnitude:
            raise SimulatorError(f"{type(self).__name__} cannot be disturbed", "write its perturb")

    def render(self) -> npt.NDArray[np.uint8]:
        """Return an image (height, width, 3)."""
        return np.asarray(self.env.render(), dtype=np.uint8)

    def close(self) -> None:
        """Free the environment."""
        self.env.close()

    def _named(self, observation: Any) -> dict[str, FloatArray]:
        if not isinstance(observation, Mapping):
            ends = np.cumsum([item.size for item in self.observations])[:-1]
            parts = np.split(np.asarray(observation), ends)
            names = (item.name for item in self.observations)
            observation = dict(zip(names, parts, strict=True))
        return {
            item.name: np.asarray(observation[item.name], dtype=np.float32)
            for item in self.observations
        }

    def _number(self, info: Mapping[str, Any], source: str) -> float:
        if source not in info:
            raise SimulatorError(
                f"{type(self).__name__}: info has no '{source}', which a metric is made of",
                "return it from the environment's step",
            )
        return float(info[source])
