"""The environments of a rollout, in this process or in worker processes.

Each environment runs one episode at a time in its own simulator. A worker process may die or hang
without harm to the environments of the others.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from lwdctl.core.errors import ConfigError, LwdctlError, SimulatorError, described
from lwdctl.core.records import FloatArray, ObservationSpec
from lwdctl.core.seeding import generator
from lwdctl.envs.simulator import Metric, Observation, Simulator, Step, UnstablePhysicsError
from lwdctl.envs.table import Environment, make_simulator
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.video import EpisodeRecorder, Moment, Recording
from lwdctl.evaluation.worker import START_TIMEOUT, Worker
from lwdctl.policies.policy import EpisodePlan

Shape = tuple[int, int, int]


class Exchange:
    """Actions and observations of all environments, in memory that several processes share.

    The memory has no name: nothing remains of it, however the processes end.

    Args:
        shape: Number of environments, components of an action, components of an observation.
        descriptor: File descriptor of the memory, if another process made it.

    Attributes:
        actions: (env, action), environment units.
        observations: (env, obs), all keys side by side.
    """

    def __init__(self, shape: Shape, descriptor: int | None = None) -> None:
        self.shape = shape
        num_envs, action_size, observation_size = shape
        size = max(1, 4 * num_envs * (action_size + observation_size))
        self._descriptor = _unnamed_file(size) if descriptor is None else descriptor
        memory = mmap.mmap(self._descriptor, size)
        values = np.frombuffer(memory, np.float32, num_envs * (action_size + observation_size))
        actions, observations = np.split(values, [num_envs * action_size])
        self.actions = actions.reshape(num_envs, action_size)
        self.observations = observations.reshape(num_envs, observation_size)

    @classmethod
    def received(cls, shape: Shape, connection: Connection[Any, Any]) -> Exchange:
        """Open what another process sends with `send`."""
        exchange = cls(shape, reduction.recv_handle(connection))
        exchange.close()
        return exchange

    def send(self, connection: Connection[Any, Any], process_id: int) -> None:
        """Let the process at the other end of a connection share the memory."""
        reduction.send_handle(connection, self._descriptor, process_id)

    def close(self) -> None:
        """Close the file; the memory stays as long as an array shows it."""
        os.close(self._descriptor)


def _unnamed_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("lwdctl")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


CLOSE_TIMEOUT = 5.0
"""Seconds that healthy workers have to close their simulators."""


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
        failure: Why the policy failed, in which case the episode ends without a step; or "".
    """

    action: FloatArray
    num_plans: int = 0
    failure: str = ""


Response = FloatArray | EpisodeResult
"""An environment's answer: all observation keys side by side (obs,), or how the episode ended."""

Responses = Callable[[], dict[int, Response]]
"""Waits for the answers to a step and returns them by environment index."""


class Description(NamedTuple):
    """What is known of an environment once an episode has started.

    Attributes:
        observations: Keys in the order in which a `Response` holds them.
        score: Name of the environment's score.
        action_size: Components of an action.
        less_is_better: Whether a lower score is a better one.
    """

    observations: tuple[ObservationSpec, ...] = ()
    score: str = ""
    action_size: int = 0
    less_is_better: bool = False


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

    def parts(self, num_envs: int) -> list[list[int]]:
        """Return the environments as a single part: nothing happens side by side."""
        return [list(range(num_envs))]

    def step(self, requests: Mapping[int, Request]) -> Responses:
        """Apply one action per environment, or end the episode where the policy failed."""
        responses = {index: self._step(index, request) for index, request in requests.items()}
        return lambda: responses

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
            score = simulator.metrics[0]
            self.description = Description(
                simulator.observations, score.name, simulator.action.size, score.failed > 0
            )
            recording = self._settings.recording
            if recording is not None and plan.index in recording.episodes:
                recorder = self._recorders[index] = EpisodeRecorder(recording, plan, simulator)
                recorder.record(episode.moment(num_plans=0))
            first = episode.observation()
            if episode.not_finite(first):
                raise SimulatorError(f"the first observation of '{plan.task}' is not finite")
            return first
        except SimulatorError as error:
            return self._lose(index, plan, error)
        except LwdctlError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001
            # Whatever a simulator raises is an error of that episode, and of no other.
            return self._lose(index, plan, error)

    def _step(self, index: int, request: Request) -> Response:
        episode = self._episodes[index]
        if request.failure:
            return self._end(index, request.failure)
        try:
            episode.step(request.action)
            observation = episode.observation()
        except UnstablePhysicsError as error:
            ended = self._end(index, error.message)
            self._drop(index)
            return ended
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            return self._lose(index, episode.plan, error)
        if index in self._recorders:
            self._recorders[index].record(episode.moment(request.num_plans))
        invalid = episode.not_finite(observation)
        if invalid:
            return self._end(index, f"the {invalid} is not finite")
        if not episode.over:
            return observation
        return replace(self._end(index), last=episode.last)

    def _end(self, index: int, policy_failure: str = "") -> EpisodeResult:
        if index in self._recorders:
            self._recorders.pop(index).finish()
        return self._episodes[index].result(policy_failure)

    def _lose(self, index: int, plan: EpisodePlan, error: BaseException) -> EpisodeResult:
        """Give up an episode whose simulator failed, which may now be in any state."""
        if index in self._recorders:
            self._recorders.pop(index).discard()
        self._drop(index)
        return EpisodeResult(plan, error=described(error))

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

    Its methods are those of `Environments`. While some environments step, others may be asked to;
    the answers must then be waited for in the order of the requests. An episode whose process dies
    or hangs ends with an `EpisodeResult.error`.

    Args:
        settings: What every episode shares.
        num_envs: Number of environments.
        workers: Number of processes.
        timeout: Seconds for one step of a worker's environments.
    """

    def __init__(
        self, settings: RolloutSettings, num_envs: int, workers: int, timeout: float
    ) -> None:
        self._settings, self._num_envs, self._timeout = settings, num_envs, timeout
        self._workers: list[_EnvironmentWorker | None] = [None] * workers
        self._worker_of: dict[int, int] = {}
        self._plans: dict[int, EpisodePlan] = {}
        self._exchange: Exchange | None = None
        self.description = Description()

    def start(self, plans: Mapping[int, EpisodePlan], spread: bool = False) -> dict[int, Response]:
        """Start one episode per environment, in new processes where old ones died.

        With `spread`, each environment gets a process of its own, as far as there are any.
        """
        for order, index in enumerate(plans):
            self._worker_of[index] = (order if spread else index) % len(self._workers)
        self._plans.update(plans)
        parts = self._parts(plans)
        for number, part in parts.items():
            self._start_worker(number).send(("start", part))
        return self._receive(parts, time.monotonic() + START_TIMEOUT + self._timeout)

    def parts(self, num_envs: int) -> list[list[int]]:
        """Return two halves of the environments, to step while the policy acts for the other.

        Every second worker belongs to a half, so that a process is woken once a step; a single one
        has environments of both.
        """
        if len(self._workers) == 1:
            middle = num_envs // 2
            halves = [list(range(middle)), list(range(middle, num_envs))]
        else:
            halves = [
                [index for index in range(num_envs) if index % len(self._workers) % 2 == half]
                for half in range(2)
            ]
        return [half for half in halves if half]

    def step(self, requests: Mapping[int, Request]) -> Responses:
        """Apply one action per environment, or end the episode where the policy failed.

        The observations of the answer are overwritten at the environment's next step.
        """
        exchange = self._exchange_for(requests)
        parts = self._parts(requests)
        for number, part in parts.items():
            for index, request in part.items():
                exchange.actions[index] = request.action
            worker = self._worker(number)
            worker.share(exchange)
            # What is not in shared memory.
            worker.send(("step", {index: request[1:] for index, request in part.items()}))
        return partial(self._receive, parts, time.monotonic() + self._timeout)

    def close(self) -> None:
        """Stop every process, by force where it does not end by itself."""
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            worker.connection.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for worker in workers:
            worker.stop(deadline)
        self._workers = [None] * len(self._workers)
        if self._exchange is not None:
            self._exchange.close()

    def _parts(self, content: Mapping[int, Any]) -> dict[int, dict[int, Any]]:
        """Group what concerns environments by the number of their worker."""
        parts: dict[int, dict[int, Any]] = {}
        for index, item in content.items():
            parts.setdefault(self._worker_of[index], {})[index] = item
        return parts

    def _receive(
        self, parts: Mapping[int, Mapping[int, Any]], deadline: float
    ) -> dict[int, Response]:
        """Collect the answers of every worker: they compute side by side."""
        responses: dict[int, Response] = {}
        for number, part in parts.items():
            answer, loss = self._worker(number).receive(deadline)
            if loss:
                lost = {index: EpisodeResult(self._plans[index], error=loss) for index in part}
                responses.update(lost)
                continue
            if isinstance(answer, LwdctlError):
                raise answer
            found, description = answer
            for index in part:
                if index in found:
                    responses[index] = found[index]
                elif self._exchange is not None:
                    responses[index] = self._exchange.observations[index]
            if description.observations:
                self.description = description
        return responses

    def _exchange_for(self, requests: Mapping[int, Request]) -> Exchange:
        """Return the memory that is shared, new where the sizes have changed."""
        action_size = next(iter(requests.values())).action.size
        observation_size = sum(item.size for item in self.description.observations)
        shape = (self._num_envs, action_size, observation_size)
        if self._exchange is None or self._exchange.shape != shape:
            if self._exchange is not None:
                self._exchange.close()
            self._exchange = Exchange(shape)
        return self._exchange

    def _start_worker(self, number: int) -> _EnvironmentWorker:
        worker = self._workers[number]
        if worker is not None and worker.lost:
            worker.stop()
            worker = None
        if worker is None:
            worker = self._workers[number] = _EnvironmentWorker(
                _serve, (self._settings,), str(number), self._timeout
            )
        return worker

    def _worker(self, number: int) -> _EnvironmentWorker:
        worker = self._workers[number]
        assert worker is not None  # its environments have been started
        return worker


class _EnvironmentWorker(Worker):
    """The parent's end of one process, and the memory that it shares."""

    exchange: Exchange | None = None

    def share(self, exchange: Exchange) -> None:
        """Give the process the memory that actions and observations travel through."""
        if self.exchange is exchange:
            return
        self.exchange = exchange
        self.send(("share", exchange.shape))
        self.send_by(exchange.send)


def _serve(connection: Connection[Any, Any], settings: RolloutSettings) -> None:
    """Answer requests until the parent hangs up."""
    environments = Environments(settings)
    exchange: Exchange | None = None
    try:
        while True:
            command, content = connection.recv()
            if command == "share":
                exchange = Exchange.received(content, connection)
                continue
            try:
                if exchange is None or command == "start":
                    responses = environments.start(content)
                else:
                    responses = _step(environments, exchange, content)
                connection.send((responses, environments.description))
            except LwdctlError as error:
                connection.send(error)
    finally:
        environments.close()


def _step(
    environments: Environments, exchange: Exchange, content: Mapping[int, tuple[int, str]]
) -> dict[int, Response]:
    """Step environments with the shared actions; return what is not in shared memory then."""
    # Simulators may keep an action: they get copies.
    requests = {
        index: Request(exchange.actions[index].copy(), *rest) for index, rest in content.items()
    }
    responses = environments.step(requests)()
    size = exchange.observations.shape[1:]
    for index, response in list(responses.items()):
        if not isinstance(response, EpisodeResult) and response.shape == size:
            exchange.observations[index] = response
            del responses[index]
    return responses


def step_limit(simulator: Simulator, max_steps: int | None) -> int:
    """Return the steps per episode: the number given, else the environment's own limit.

    Raises:
        ConfigError: There is neither.
    """
    limit = max_steps or simulator.max_steps
    if not limit:
        raise ConfigError(
            "the environment has no limit of the steps per episode",
            "give it: --max-steps N on the command line, max_steps=N in Python and recipes; or let"
            " the environment declare it, by gymnasium's TimeLimit or as `max_steps` of the class",
        )
    return limit


class _Episode:
    """One running episode and its statistics."""

    def __init__(self, simulator: Simulator, plan: EpisodePlan, settings: RolloutSettings) -> None:
        self.plan = plan
        self._simulator, self._settings = simulator, settings
        self._limit = step_limit(simulator, settings.max_steps)
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
        """Return all observation keys side by side, (obs,).

        Raises:
            SimulatorError: One is missing, or has another size than the simulator declares.
        """
        parts: list[FloatArray] = []
        for item in self._simulator.observations:
            part = self._observation.get(item.name)
            if part is None or np.shape(part) != (item.size,):
                has = "is missing" if part is None else f"has the shape {np.shape(part)}"
                raise SimulatorError(
                    f"the observation '{item.name}' {has}, the environment declares"
                    f" {item.size} components"
                )
            parts.append(part)
        return np.concatenate(parts).astype(np.float32, copy=False)

    @property
    def last(self) -> dict[str, FloatArray]:
        """The newest observation by key, (obs,) each."""
        keys = (item.name for item in self._simulator.observations)
        return {key: np.array(self._observation[key], dtype=np.float32) for key in keys}

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
