"""Scripted experts' episodes, in this process or in worker processes."""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from lwdctl.core.errors import LwdctlError, SimulatorError
from lwdctl.core.records import EnvSpec, Episode
from lwdctl.core.seeding import generator
from lwdctl.envs.experts import EXPERTS, ExpertSet
from lwdctl.envs.simulator import Simulator
from lwdctl.envs.table import make_simulator
from lwdctl.evaluation.finished_demonstrations import (
    Attempt,
    Demonstration,
    FinishedDemonstrations,
)
from lwdctl.evaluation.worker import START_TIMEOUT, Worker

Outcome = tuple[Demonstration | None, str]
"""What an attempt gave, and why the simulator lost it, or ""."""

_PAUSE = 1.0
"""Seconds between two messages by which a worker shows that its simulator steps."""


class ExpertRunner:
    """Yields expert episodes in the order of their seeds, whatever the number of workers.

    An attempt whose simulator dies, raises or hangs runs once more from its seed, in a new process.

    Args:
        env: The environment; `max_steps` is the episode limit.
        noise: Standard deviation of the Gaussian noise on actions.
        workers: Spawned processes; 0 runs in this process.
        timeout: Seconds without a step after which a worker counts as hung.
        finished: Keeps what is finished, and gives back what was.
    """

    def __init__(
        self,
        env: EnvSpec,
        noise: float,
        workers: int,
        timeout: float = 120.0,
        finished: FinishedDemonstrations | None = None,
    ) -> None:
        self._env, self._noise = env, noise
        self.finished = finished or FinishedDemonstrations(None, {})
        self._workers = [_ExpertWorker(env, noise, number, timeout) for number in range(workers)]
        self._outcomes: dict[Attempt, Outcome] = {}
        self._lost_once: set[Attempt] = set()
        self._waiting: deque[Attempt] = deque()

    def __enter__(self) -> ExpertRunner:
        return self

    def __exit__(self, *given: object) -> None:
        """Kill the workers: nothing that they still do is wanted."""
        for worker in self._workers:
            worker.stop()

    def run(self, attempts: Sequence[Attempt], expected: int) -> Iterator[Outcome]:
        """Yield the outcomes of attempts, in order, until the caller stops iterating.

        Args:
            attempts: What to run, in the wanted order.
            expected: Number of attempts that the caller will probably take; no more than this
                and one per worker are begun ahead.

        Raises:
            LwdctlError: The user can correct it (unknown task, missing package).
        """
        self._outcomes.clear()
        self._waiting.clear()
        begun = 0
        for taken, attempt in enumerate(attempts):
            ahead = min(max(expected - taken, len(self._workers)), 2 * len(self._workers))
            while begun < min(taken + max(ahead, 1), len(attempts)):
                self._begin(attempts[begun])
                begun += 1
            while attempt not in self._outcomes:
                self._advance()
            yield self._outcomes.pop(attempt)

    def _begin(self, attempt: Attempt) -> None:
        known = self.finished.load(attempt)
        if known is not None:
            self._outcomes[attempt] = known, ""
        else:
            self._waiting.append(attempt)

    def _advance(self) -> None:
        """Run one attempt here, or wait until a worker answers or is late."""
        if not self._workers:
            self._take(self._waiting[0], _outcome(self._env, self._noise, self._waiting.popleft()))
            return
        for worker in self._workers:
            if worker.attempt is None and self._waiting:
                worker.begin(self._waiting.popleft())
        for worker in _ready([worker for worker in self._workers if worker.attempt is not None]):
            attempt, outcome = worker.attempt, worker.answer()
            if attempt is not None and outcome is not None:
                self._take(attempt, outcome)

    def _take(self, attempt: Attempt, outcome: Outcome) -> None:
        found = outcome[0]
        if found is not None:
            self.finished.save(attempt, found)
        elif attempt not in self._lost_once:
            self._lost_once.add(attempt)
            self._waiting.appendleft(attempt)
            return
        self._outcomes[attempt] = outcome


class _ExpertWorker:
    """A process that runs one attempt at a time; after a loss the next attempt gets a new one.

    Attributes:
        attempt: What it runs, or None.
        deadline: When it counts as hung, in seconds of the monotonic clock.
    """

    def __init__(self, env: EnvSpec, noise: float, number: int, timeout: float) -> None:
        self._env, self._noise, self._number, self._timeout = env, noise, number, timeout
        self._process: Worker | None = None
        self.attempt: Attempt | None = None
        self.deadline = 0.0

    @property
    def connection(self) -> Connection[Any, Any]:
        """The pipe to the process, which an attempt has been given to."""
        assert self._process is not None
        return self._process.connection

    def begin(self, attempt: Attempt) -> None:
        """Let the process run an attempt."""
        if self._process is None:
            pause = min(_PAUSE, self._timeout / 4)
            self._process = Worker(
                _serve, (self._env, self._noise, pause), str(self._number), self._timeout
            )
        self.attempt = attempt
        self.deadline = time.monotonic() + START_TIMEOUT + self._timeout
        self._process.send(attempt)

    def answer(self) -> Outcome | None:
        """Return the outcome of the attempt; None where it has only shown that it goes on.

        Raises:
            LwdctlError: The user can correct it.
        """
        assert self._process is not None
        answer, lost = self._process.receive(self.deadline)
        if lost:
            self.stop()
            answer = None, lost
        elif answer is None:
            self.deadline = time.monotonic() + self._timeout
            return None
        self.attempt = None
        if isinstance(answer, LwdctlError):
            raise answer
        outcome: Outcome = answer
        return outcome

    def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.stop()
        self._process = None


def _ready(workers: Sequence[_ExpertWorker]) -> list[_ExpertWorker]:
    """Wait until workers have answered, are gone, or are late, and return these."""
    lost = [worker for worker in workers if worker.connection.closed]
    if lost:
        return lost
    until = min(worker.deadline for worker in workers)
    answered = wait([worker.connection for worker in workers], max(0.0, until - time.monotonic()))
    now = time.monotonic()
    return [worker for worker in workers if worker.connection in answered or worker.deadline <= now]


def _serve(connection: Connection[Any, Any], env: EnvSpec, noise: float, pause: float) -> None:
    """Run attempts until the parent hangs up."""
    while True:
        attempt = connection.recv()
        try:
            answer: Any = _outcome(env, noise, attempt, _SignsOfLife(connection, pause))
        except LwdctlError as error:
            answer = error
        connection.send(answer)


class _SignsOfLife:
    """Tells the parent at the first step of an attempt, and now and then, that the simulator steps.

    Args:
        connection: The pipe to the parent.
        pause: Fewest seconds between two messages.
    """

    def __init__(self, connection: Connection[Any, Any], pause: float) -> None:
        self._connection, self._pause = connection, pause
        self._last = -math.inf

    def __call__(self) -> None:
        """Send a message if it is time."""
        now = time.monotonic()
        if now - self._last > self._pause:
            self._connection.send(None)
            self._last = now


def _outcome(
    env: EnvSpec, noise: float, attempt: Attempt, report: Callable[[], None] = lambda: None
) -> Outcome:
    """Run an attempt; whatever its simulator raises concerns that attempt alone."""
    try:
        task, seed, operator = attempt.task, attempt.seed, attempt.operator
        return expert_episode(env, task, seed, noise, operator, report), ""
    except LwdctlError as error:
        if not isinstance(error, SimulatorError):
            raise
        failed: Exception = error
    except Exception as error:  # noqa: BLE001 - simulators fail in ways of their own
        failed = error
    _simulator.cache_clear()  # it may now be in any state
    return None, "".join(traceback.format_exception_only(failed)).strip()


def expert_episode(
    env: EnvSpec,
    task: str,
    seed: int,
    noise: float,
    operator: str = "",
    report: Callable[[], None] = lambda: None,
) -> Demonstration:
    """Run a task's scripted expert for one episode.

    The recorded action is the executed one, noise and clipping included, so that replaying it
    from the initial state repeats the episode.

    Args:
        env: The environment; `max_steps` is the episode limit.
        task: Task name.
        seed: Fixes the initial state and the noise.
        noise: Standard deviation of the Gaussian noise on actions.
        operator: Which of the task's experts, where there are several.
        report: Called after every step.
    """
    experts: ExpertSet = EXPERTS.load(env.adapter)
    simulator = _simulator(env.adapter, task, env.max_steps)
    expert = experts.expert(task, operator, seed)
    rng = generator("expert noise", task, seed)
    observations, states, actions, rewards, success = [simulator.reset(seed)], [], [], [], False
    for _ in range(simulator.max_steps):
        action = expert.act(observations[-1])
        if noise > 0:
            action = np.clip(action + noise * rng.normal(size=action.shape), -1.0, 1.0)
        actions.append(action.astype(np.float32))
        states.append(experts.state(simulator))
        step = simulator.step(actions[-1])
        observations.append(step.observation)
        rewards.append(step.reward)
        success = success or bool(step.success)
        report()
        if expert.finished(step.success):
            break
    episode = Episode(
        source=f"{task} seed {seed}",
        observations={
            key: np.stack([row[key] for row in observations[:-1]]) for key in observations[0]
        },
        actions=np.stack(actions),
        rewards=np.array(rewards, dtype=np.float32),
        final_observation=dict(observations[-1]),
        initial_state=simulator.initial_state(),
        model=experts.scene(simulator),
        task=task,
        label=operator,
        success=success,
        seed=seed,
    )
    known = [state for state in states if state is not None]
    return Demonstration(episode, np.stack(known) if known else None)


@lru_cache(maxsize=1)
def _simulator(adapter: str, task: str, max_steps: int) -> Simulator:
    """Build the task once per process: earlier episodes leave no trace in later ones."""
    experts: ExpertSet = EXPERTS.load(adapter)
    return make_simulator(experts.environment((task,), max_steps), task)
