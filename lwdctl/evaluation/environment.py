"""The environments of one process: each runs one episode at a time in its own simulator."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lwdctl.core.errors import ConfigError, LwdctlError, SimulatorError
from lwdctl.core.records import FloatArray, ObservationSpec
from lwdctl.core.seeding import generator
from lwdctl.envs.simulator import Metric, Observation, Simulator, Step, UnstablePhysicsError
from lwdctl.envs.table import Environment, make_simulator
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.video import EpisodeRecorder, Moment, Recording
from lwdctl.policies.policy import EpisodePlan


@dataclass(frozen=True)
class RolloutSettings:
    """What every episode of a rollout shares.

    Attributes:
        env: Environment to build.
        max_steps: Steps per episode, or None for the simulator's limit.
        perturbation: Magnitude of perturbations, in the environment's unit.
        perturbation_probability: Probability of a perturbation before each step.
        recording: Which episodes to make videos of, or None.
    """

    env: Environment
    max_steps: int | None
    perturbation: float
    perturbation_probability: float
    recording: Recording | None = None


class Request(NamedTuple):
    """One step asked of an environment.

    Attributes:
        action: (action,) in environment units.
        num_plans: How often the policy has re-planned in this episode; 0 for one that never does.
    """

    action: FloatArray
    num_plans: int = 0


Response = FloatArray | EpisodeResult
"""An environment's answer: all observation keys side by side (obs,), or how the episode ended."""


class Description(NamedTuple):
    """What is known of an environment once an episode has started.

    Attributes:
        observations: Keys in the order in which a `Response` holds them.
        score: Name of the environment's score.
    """

    observations: tuple[ObservationSpec, ...] = ()
    score: str = ""


class Environments:
    """Runs the episodes of some environments; each keeps its simulator while its task stays."""

    def __init__(self, settings: RolloutSettings) -> None:
        self._settings = settings
        self._simulators: dict[int, tuple[str, Simulator]] = {}
        self._episodes: dict[int, _Episode] = {}
        self._recorders: dict[int, EpisodeRecorder] = {}
        self.description = Description()

    def start(self, plans: Mapping[int, EpisodePlan], spread: bool = False) -> dict[int, Response]:
        """Start one episode per environment.

        Args:
            plans: Environment index to episode.
            spread: Of no effect here; see `EnvironmentWorkers.start`.

        Raises:
            LwdctlError: The user can correct it (unknown task, missing package).
        """
        del spread
        return {index: self._start(index, plan) for index, plan in plans.items()}

    def step(self, requests: Mapping[int, Request]) -> dict[int, Response]:
        """Apply one action per environment."""
        return {index: self._step(index, request) for index, request in requests.items()}

    def end(self, indices: Sequence[int], policy_failure: str) -> dict[int, Response]:
        """End the episodes of these environments as failures of the policy."""
        return {index: self._end(index, policy_failure) for index in indices}

    def close(self) -> None:
        """Close every simulator."""
        for index in list(self._recorders):
            self._recorders.pop(index).discard()
        for index in list(self._simulators):
            self._drop(index)

    def _start(self, index: int, plan: EpisodePlan) -> Response:
        try:
            simulator = self._simulator(index, plan.task)
            episode = self._episodes[index] = _Episode(simulator, plan, self._settings)
            self.description = Description(simulator.observations, simulator.metrics[0].name)
            recording = self._settings.recording
            if recording is not None and plan.index in recording.episodes:
                recorder = self._recorders[index] = EpisodeRecorder(recording, plan, simulator)
                recorder.record(episode.moment(num_plans=0))
            return episode.observation()
        except SimulatorError as error:
            return self._lose(index, plan, error)
        except LwdctlError:
            raise
        except Exception as error:  # noqa: BLE001
            # Whatever a simulator raises is an error of that episode, and of no other.
            return self._lose(index, plan, error)

    def _step(self, index: int, request: Request) -> Response:
        episode = self._episodes[index]
        try:
            episode.step(request.action)
        except UnstablePhysicsError as error:
            ended = self._end(index, error.message)
            self._drop(index)
            return ended
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return self._lose(index, episode.plan, error)
        observation = episode.observation()
        if index in self._recorders:
            self._recorders[index].record(episode.moment(request.num_plans))
        invalid = episode.not_finite(observation)
        if invalid:
            return self._end(index, f"the {invalid} is not finite")
        return self._end(index) if episode.over else observation

    def _end(self, index: int, policy_failure: str = "") -> EpisodeResult:
        if index in self._recorders:
            self._recorders.pop(index).finish()
        return self._episodes[index].result(policy_failure)

    def _lose(self, index: int, plan: EpisodePlan, error: Exception) -> EpisodeResult:
        """Give up an episode whose simulator failed, which may now be in any state."""
        if index in self._recorders:
            self._recorders.pop(index).discard()
        self._drop(index)
        text = "".join(traceback.format_exception_only(error)).strip()
        return EpisodeResult(plan, error=text)

    def _simulator(self, index: int, task: str) -> Simulator:
        if index in self._simulators and self._simulators[index][0] != task:
            self._drop(index)
        if index not in self._simulators:
            self._simulators[index] = (task, make_simulator(self._settings.env, task))
        return self._simulators[index][1]

    def _drop(self, index: int) -> None:
        if index in self._simulators:
            self._simulators.pop(index)[1].close()


class _Episode:
    """One running episode and its statistics."""

    def __init__(self, simulator: Simulator, plan: EpisodePlan, settings: RolloutSettings) -> None:
        self.plan = plan
        self._simulator, self._settings = simulator, settings
        self._limit = settings.max_steps or simulator.max_steps
        if not self._limit:
            raise ConfigError(
                "the environment has no episode limit", "set max_steps to the steps of an episode"
            )
        self._rng = generator("perturbation", plan.task, plan.seed)
        self._values: dict[str, list[float]] = {item.source: [] for item in simulator.metrics}
        self._return, self._count, self._perturbations, self._solved = 0.0, 0, 0, False
        self._last: Step | None = None
        if plan.initial_state is None:
            self._observation: Observation = simulator.reset(plan.seed)
        else:
            self._observation = simulator.restore(plan.initial_state, plan.model)
        for action in () if plan.action_prefix is None else plan.action_prefix:
            self._observation = simulator.step(action).observation

    def observation(self) -> FloatArray:
        """Return all observation keys side by side, (obs,)."""
        keys = (item.name for item in self._simulator.observations)
        row = np.concatenate([self._observation[key] for key in keys])
        return row.astype(np.float32, copy=False)

    def not_finite(self, observation: FloatArray) -> str:
        """Return what of the last step is not finite: `"reward"`, `"observation"` or ""."""
        if self._last is not None and not math.isfinite(self._last.reward):
            return "reward"
        return "" if np.isfinite(observation).all() else "observation"

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        terminated = self._last is not None and self._last.terminated
        return terminated or self._count >= self._limit

    def step(self, action: FloatArray) -> None:
        """Perturb the scene with the configured probability, then apply the action."""
        magnitude = self._settings.perturbation
        if magnitude and self._rng.random() < self._settings.perturbation_probability:
            self._simulator.perturb(magnitude, self._rng)
            self._perturbations += 1
        self._last = step = self._simulator.step(action)
        self._observation = step.observation
        self._count += 1
        self._return += step.reward if math.isfinite(step.reward) else 0.0
        self._solved |= step.success
        for source, values in self._values.items():
            values.append(step.metrics[source])

    def moment(self, num_plans: int) -> Moment:
        """Return what a video frame shows now."""
        source = self._simulator.metrics[0].source
        measured = self._last is not None and source != "success"
        return Moment(
            step=self._count,
            limit=self._limit,
            num_plans=num_plans,
            perturbations=self._perturbations,
            reading=f"{source} {self._values[source][-1]:.2f}" if measured else "",
            solved=self._solved,
            over=self.over,
        )

    def result(self, policy_failure: str) -> EpisodeResult:
        """Return the statistics of the steps so far."""
        metrics = self._simulator.metrics
        found = EpisodeResult(
            self.plan,
            steps=self._count,
            success=self._solved,
            final_success=self._last is not None and self._last.success,
            return_=self._return,
            metrics={item.name: _reduce(item, self._values[item.source]) for item in metrics},
        )
        if not policy_failure:
            return found
        return replace(
            found,
            success=False,
            final_success=False,
            metrics={item.name: item.failed for item in metrics},
            policy_failure=policy_failure,
        )


def _reduce(metric: Metric, values: list[float]) -> float:
    if not values:
        return 0.0
    match metric.reduce:
        case "max":
            reduced = max(values)
        case "last":
            reduced = values[-1]
        case "sum":
            reduced = math.fsum(values)
        case "mean":
            reduced = math.fsum(values) / len(values)
        case _:
            raise ValueError(f"metric '{metric.name}' has no reduction '{metric.reduce}'")
    return metric.scale * reduced + metric.offset
