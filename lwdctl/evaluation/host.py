"""Episodes of several slots inside one process: the part that touches simulators."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lwdctl.core.errors import LwdctlError, SimulatorError
from lwdctl.core.records import EnvSpec, FloatArray, ObservationSpec
from lwdctl.core.registry import Registry
from lwdctl.core.seeding import generator
from lwdctl.envs.instability import UnstablePhysicsError
from lwdctl.envs.simulator import Metric, Observation, Simulator, Step
from lwdctl.envs.table import make_simulator
from lwdctl.evaluation.video import EpisodeRecorder, Moment, Recording
from lwdctl.policies.policy import EpisodePlan


@dataclass(frozen=True)
class HostSettings:
    """What every episode of a run shares.

    Attributes:
        env: Environment to build.
        simulators: Table to build it from.
        max_steps: Steps per episode, or None for the simulator's limit.
        perturbation: Magnitude of disturbances, in the adapter's unit.
        perturbation_probability: Chance of a disturbance before each step.
        recording: Which episodes to make videos of, or None.
    """

    env: EnvSpec
    simulators: Registry
    max_steps: int | None
    perturbation: float
    perturbation_probability: float
    recording: Recording | None = None


class Move(NamedTuple):
    """What a slot is to do.

    Attributes:
        action: (action,) in environment units.
        plan: How many plans the policy has made for this episode; 0 for one without plans.
    """

    action: FloatArray
    plan: int = 0


@dataclass(frozen=True)
class Tally:
    """What an episode has come to so far.

    Attributes:
        return_: Sum of the rewards, those that are not finite left out.
        failed: What its metrics count with if the policy has broken it off.
    """

    steps: int = 0
    success: bool = False
    final_success: bool = False
    return_: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """A slot's answer to a start or a step.

    Attributes:
        observation: Components of all keys in a row, (obs,); empty when there is none.
        tally: What the episode has come to; set when it is over, else None.
        policy_failure: Why the policy failed, or "".
        error: Why the simulator failed, or "".
    """

    observation: FloatArray
    tally: Tally | None = None
    policy_failure: str = ""
    error: str = ""


_NOTHING = np.zeros(0, dtype=np.float32)


class EpisodeHost:
    """Runs the episodes of some slots; keeps a slot's simulator while its task stays."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._simulators: dict[int, tuple[str, Simulator]] = {}
        self._episodes: dict[int, _Episode] = {}
        self._recorders: dict[int, EpisodeRecorder] = {}

    def start(self, plans: Mapping[int, EpisodePlan]) -> dict[int, Reply]:
        """Start one episode per slot.

        Raises:
            LwdctlError: The user can put it right (unknown task, missing package).
        """
        return {slot: self._start(slot, plan) for slot, plan in plans.items()}

    def step(self, moves: Mapping[int, Move]) -> dict[int, Reply]:
        """Apply one action per slot."""
        return {slot: self._step(slot, move) for slot, move in moves.items()}

    def tallies(self, slots: list[int]) -> dict[int, Tally]:
        """Return what the episodes of these slots, which end here, have come to."""
        for slot in slots:
            self._finish_video(slot)
        return {slot: self._episodes[slot].tally() for slot in slots}

    def observations(self) -> tuple[ObservationSpec, ...]:
        """Return the observation keys of any started simulator; nothing where none started."""
        return next((item.observations for _, item in self._simulators.values()), ())

    def close(self) -> None:
        """Close every simulator."""
        for slot in list(self._recorders):
            self._discard_video(slot)
        for slot in list(self._simulators):
            self._drop(slot)

    def _start(self, slot: int, plan: EpisodePlan) -> Reply:
        try:
            episode = _Episode(self._simulator(slot, plan.task), plan, self._settings)
            self._episodes[slot] = episode
            self._start_video(slot, plan)
            return Reply(episode.observation())
        except SimulatorError as error:
            return self._broken(slot, error)
        except LwdctlError:
            raise
        except Exception as error:  # noqa: BLE001
            # Whatever a simulator raises is that episode's error, and only that one's.
            return self._broken(slot, error)

    def _step(self, slot: int, move: Move) -> Reply:
        episode = self._episodes[slot]
        try:
            episode.step(move.action)
        except UnstablePhysicsError as error:
            self._finish_video(slot)
            self._drop(slot)
            return Reply(_NOTHING, episode.tally(), policy_failure=error.message)
        except Exception as error:  # noqa: BLE001 - as above
            return self._broken(slot, error)
        observation = episode.observation()
        if slot in self._recorders:
            self._recorders[slot].see(episode.moment(move.plan))
        if episode.over:
            self._finish_video(slot)
        broken = episode.not_finite(observation)
        if broken:
            self._finish_video(slot)
            return Reply(_NOTHING, episode.tally(), policy_failure=f"the {broken} is not finite")
        return Reply(observation, episode.tally() if episode.over else None)

    def _broken(self, slot: int, error: Exception) -> Reply:
        # Its simulator may be in any state: build a new one next time.
        self._discard_video(slot)
        self._drop(slot)
        return Reply(_NOTHING, error="".join(traceback.format_exception_only(error)).strip())

    def _start_video(self, slot: int, plan: EpisodePlan) -> None:
        recording = self._settings.recording
        if recording is not None and plan.index in recording.episodes:
            recorder = EpisodeRecorder(recording, plan, self._simulators[slot][1])
            self._recorders[slot] = recorder
            recorder.see(self._episodes[slot].moment(plan=0))

    def _finish_video(self, slot: int) -> None:
        if slot in self._recorders:
            self._recorders.pop(slot).finish()

    def _discard_video(self, slot: int) -> None:
        if slot in self._recorders:
            self._recorders.pop(slot).discard()

    def _simulator(self, slot: int, task: str) -> Simulator:
        if slot in self._simulators and self._simulators[slot][0] != task:
            self._drop(slot)
        if slot not in self._simulators:
            simulator = make_simulator(self._settings.env, task, self._settings.simulators)
            self._simulators[slot] = (task, simulator)
        return self._simulators[slot][1]

    def _drop(self, slot: int) -> None:
        if slot in self._simulators:
            self._simulators.pop(slot)[1].close()


class _Episode:
    """One running episode and its sums."""

    def __init__(self, simulator: Simulator, plan: EpisodePlan, settings: HostSettings) -> None:
        self._simulator, self._settings = simulator, settings
        self._limit = settings.max_steps or simulator.max_steps
        self._rng = generator("perturbation", plan.task, plan.seed)
        self._sources: dict[str, list[float]] = {item.source: [] for item in simulator.metrics}
        self._return, self._count, self._shoves, self._solved = 0.0, 0, 0, False
        self._last: Step | None = None
        if plan.initial_state is None:
            self._seen: Observation = simulator.reset(plan.seed)
        else:
            self._seen = simulator.restore(plan.initial_state, plan.model)
        for action in () if plan.action_prefix is None else plan.action_prefix:
            self._seen = simulator.step(action).observation

    def observation(self) -> FloatArray:
        """Return the components of all keys in a row, (obs,)."""
        keys = (item.name for item in self._simulator.observations)
        return np.concatenate([self._seen[key] for key in keys]).astype(np.float32, copy=False)

    def not_finite(self, observation: FloatArray) -> str:
        """Return what of the last step is not finite: the reward, the observation, or ""."""
        if self._last is not None and not math.isfinite(self._last.reward):
            return "reward"
        return "" if np.isfinite(observation).all() else "observation"

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        ended = self._last is not None and self._last.terminated
        return ended or self._count >= self._limit

    def step(self, action: FloatArray) -> None:
        """Disturb the scene by chance, then apply the action."""
        magnitude = self._settings.perturbation
        if magnitude and self._rng.random() < self._settings.perturbation_probability:
            self._simulator.perturb(magnitude, self._rng)
            self._shoves += 1
        self._last = step = self._simulator.step(action)
        self._seen = step.observation
        self._count += 1
        self._return += step.reward if math.isfinite(step.reward) else 0.0
        self._solved |= step.success
        for source, values in self._sources.items():
            values.append(step.metrics[source])

    def moment(self, plan: int) -> Moment:
        """Return what a video frame says of now."""
        source = self._simulator.metrics[0].source
        told = self._last is not None and source != "success"
        return Moment(
            step=self._count,
            limit=self._limit,
            plan=plan,
            shoves=self._shoves,
            reading=f"{source} {self._sources[source][-1]:.2f}" if told else "",
            solved=self._solved,
            over=self.over,
        )

    def tally(self) -> Tally:
        """Reduce what was seen so far."""
        return Tally(
            steps=self._count,
            success=self._solved,
            final_success=self._last is not None and self._last.success,
            return_=self._return,
            metrics={
                item.name: _reduce(item, self._sources[item.source])
                for item in self._simulator.metrics
            },
            failed={item.name: item.failed for item in self._simulator.metrics},
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
