"""The contract that every environment's adapter fulfills."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import ActionSpec, FloatArray, ObservationSpec

Observation = Mapping[str, FloatArray]
StillAction = Callable[[Observation], FloatArray]
"""Returns the action (action,) that keeps the robot where one observation shows it."""


class UnstablePhysicsError(SimulatorError):
    """The simulated state diverged because of the actions given; a failure of the policy."""


@dataclass(frozen=True)
class Metric:
    """A number per episode, computed from a number per step.

    Attributes:
        name: Full name in results (`"max_overlap"`).
        source: Key in `Step.metrics` (`"overlap"`).
        reduce: `"max"`, `"last"`, `"mean"` or `"sum"` over the episode's steps.
        scale: Factor on the reduced number.
        offset: Added after scaling.
        failed: Value reported when the policy fails for good: the metric's worst value, which is
            not 0 where less is better.
    """

    name: str
    source: str
    reduce: str
    scale: float = 1.0
    offset: float = 0.0
    failed: float = 0.0


@dataclass(frozen=True)
class Step:
    """What one environment step returned.

    Attributes:
        observation: Key to (obs,), after the action.
        reward: The simulator's own reward.
        success: Whether the task is solved at this step.
        terminated: Whether the episode is over before its step limit.
        metrics: Per-step numbers that the adapter's `Metric`s reduce.
    """

    observation: Observation
    reward: float
    success: bool
    terminated: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


class Simulator(Protocol):
    """One environment instance for one task, built as `Adapter(env: EnvSpec, task: str)`.

    A class may also offer, where the simulator allows it, `state_at` (`ObservedState`),
    `behavior_measure(task)`, which returns a `BehaviorMeasure`, and `still_action(env)`, which
    returns a `StillAction`: needed where an action is an absolute target and `action.reference`
    names no observation.

    Attributes:
        observations: What `reset` and `step` return, by name and size.
        action: What `step` accepts.
        metrics: Numbers per episode beside return and success. The first one is the environment's
            score.
        max_steps: Episode limit in steps.
    """

    observations: tuple[ObservationSpec, ...]
    action: ActionSpec
    metrics: tuple[Metric, ...]
    max_steps: int

    def reset(self, seed: int) -> Observation:
        """Start the episode that `seed` fixes entirely, the same in any process."""

    def restore(self, state: npt.NDArray[np.float64], model: str = "") -> Observation:
        """Start from a recorded initial state (as `initial_state` returned it)."""

    def initial_state(self) -> npt.NDArray[np.float64]:
        """Return the state, float64 1-D, with which `restore` repeats this episode's start."""

    def step(self, action: FloatArray) -> Step:
        """Apply one action (action,), clipped to the limits by the adapter."""

    def perturb(self, magnitude: float, rng: np.random.Generator) -> None:
        """Perturb the scene now; magnitude 0 must change nothing and draw nothing."""

    def render(self) -> npt.NDArray[np.uint8]:
        """Return an image (height, width, 3)."""

    def close(self) -> None:
        """Free the simulator."""


class ObservedState(Protocol):
    """Offered by adapters whose observations show all of a state that matters."""

    def state_at(self, observation: Observation) -> npt.NDArray[np.float64]:
        """Return the state, as `restore` takes it, at which an observation was made."""


@dataclass(frozen=True)
class BehaviorMeasure:
    """Numbers that describe how an episode was solved, computed from its observations alone.

    Recorded demonstrations and rollouts are measured by the same code, so that they compare.

    Attributes:
        compute: Returns the numbers by metric name for observations (time, obs).
        names: Names of the numbers.
        fractions: Whether the numbers are fractions of the steps and so lie between 0 and 1;
            otherwise their range is taken from the demonstrations.
    """

    compute: Callable[[npt.NDArray[Any]], Mapping[str, float]]
    names: tuple[str, ...]
    fractions: bool = False
