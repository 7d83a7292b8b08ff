"""The environments of a rollout, in this process or in worker processes.

Each environment runs one episode at a time in its own simulator. A worker process may die or hang
without harm to the environments of the others.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np

from lwdctl.core.errors import ConfigError, LwdctlError, SimulatorError
from lwdctl.core.records import FloatArray, ObservationSpec
from lwdctl.core.seeding import generator
from lwdctl.envs.simulator import Metric, Observation, Simulator, Step, UnstablePhysicsError
from lwdctl.envs.table import Environment, make_simulator
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.video import EpisodeRecorder, Moment, Recording
from lwdctl.policies.policy import EpisodePlan

START_TIMEOUT = 180.0
"""Seconds a worker may take to import and build its simulators (numba compiles in some)."""

_DIED = "died"


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
        num_plans: Plans that the policy has followed in this episode, the first included; 0 for one
            that does not plan ahead.
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
        action_size: Components of an action.
    """

    observations: tuple[ObservationSpec, ...] = ()
    score: str = ""
    action_size: int = 0


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

    def end(self, failures: Mapping[int, str]) -> dict[int, Response]:
        """End the episodes of these environments as failures of the policy, for these reasons."""
        return {index: self._end(index, reason) for index, reason in failures.items()}

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
            self.description = Description(
                simulator.observations, simulator.metrics[0].name, simulator.action.size
            )
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


class EnvironmentWorkers:
    """Environments distributed round-robin over spawned processes.

    Its methods are those of `Environments`. An episode whose process dies or hangs ends with an
    `EpisodeResult.error`. `timeout` is in seconds, for one step of a worker's environments.
    """

    def __init__(self, settings: RolloutSettings, workers: int, timeout: float) -> None:
        self._settings, self._timeout = settings, timeout
        self._workers: list[_Worker | None] = [None] * workers
        self._worker_of: dict[int, int] = {}
        self._plans: dict[int, EpisodePlan] = {}
        self.description = Description()

    def start(self, plans: Mapping[int, EpisodePlan], spread: bool = False) -> dict[int, Response]:
        """Start one episode per environment, in new processes where old ones died.

        With `spread`, each environment gets a process of its own, as far as there are any.
        """
        for order, index in enumerate(plans):
            self._worker_of[index] = (order if spread else index) % len(self._workers)
        self._plans.update(plans)
        return self._request("start", plans, START_TIMEOUT + self._timeout)

    def step(self, requests: Mapping[int, Request]) -> dict[int, Response]:
        """Apply one action per environment."""
        return self._request("step", requests, self._timeout)

    def end(self, failures: Mapping[int, str]) -> dict[int, Response]:
        """End the episodes of these environments as failures of the policy, for these reasons."""
        return self._request("end", failures, self._timeout)

    def close(self) -> None:
        """Stop every process, by force where it does not end by itself."""
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            worker.connection.close()  # upon which a healthy process ends
        for worker in workers:
            worker.stop()
        self._workers = [None] * len(self._workers)

    def _request(
        self, command: str, content: Mapping[int, Any], timeout: float
    ) -> dict[int, Response]:
        """Send every worker its part, then collect: workers compute side by side."""
        parts: dict[int, dict[int, Any]] = {}
        for index, item in content.items():
            parts.setdefault(self._worker_of[index], {})[index] = item
        for number, part in parts.items():
            self._worker(number, may_spawn=command == "start").send((command, part))
        responses: dict[int, Response] = {}
        deadline = time.monotonic() + timeout
        for number, part in parts.items():
            worker = self._worker(number, may_spawn=False)
            answer, loss = worker.receive(deadline)
            if loss:
                lost = {index: EpisodeResult(self._plans[index], error=loss) for index in part}
                responses.update(lost)
                continue
            if isinstance(answer, LwdctlError):
                raise answer
            responses.update(answer[0])
            if answer[1].observations:
                self.description = answer[1]
        return {index: responses[index] for index in content}

    def _worker(self, number: int, *, may_spawn: bool) -> _Worker:
        worker = self._workers[number]
        if worker is not None and worker.lost and may_spawn:
            worker.stop()
            worker = None
        if worker is None:
            worker = self._workers[number] = _Worker(self._settings, number)
        return worker


class _Worker:
    """The parent's end of one process."""

    def __init__(self, settings: RolloutSettings, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(child, settings), name=f"lwdctl-simulator-{number}", daemon=True
        )
        self._process.start()
        child.close()
        self.lost = ""

    def send(self, message: tuple[str, Any]) -> None:
        """Send without waiting; a dead process is noticed here or on receipt."""
        if self.lost:
            return
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self._give_up(_DIED)

    def receive(self, deadline: float) -> tuple[Any, str]:
        """Return the answer, and why there is none."""
        if self.lost:
            return None, self.lost
        try:
            if self.connection.poll(max(0.0, deadline - time.monotonic())):
                return self.connection.recv(), ""
            self._give_up("did not answer in time")
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self._give_up(_DIED)
        return None, self.lost

    def stop(self) -> None:
        """Wait a moment for the process to end, then kill it."""
        self._process.join(timeout=5.0)
        self._kill()
        self._process.close()

    def _give_up(self, reason: str) -> None:
        self.connection.close()
        self._kill()
        self.lost = f"the simulator process {reason}"
        if reason == _DIED:
            self.lost += f" (exit code {self._process.exitcode})"

    def _kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def _serve(connection: Connection[Any, Any], settings: RolloutSettings) -> None:
    """Answer requests until the parent hangs up."""
    # The parent decides what an interrupt means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environments = Environments(settings)
    try:
        while True:
            command, content = connection.recv()
            try:
                responses = getattr(environments, command)(content)
                connection.send((responses, environments.description))
            except LwdctlError as error:
                connection.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        environments.close()


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
