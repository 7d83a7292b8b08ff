"""Collecting demonstrations: scripted experts run in a simulator, one seed per episode.

The data depend on the configuration only: not on the number of worker processes, nor on
interruptions, nor on workers that die or hang once.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lwdctl.artifacts.manifest import software
from lwdctl.configs import CollectConfig
from lwdctl.core.errors import ConfigError, LwdctlError, SimulatorError, described
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.records import EnvSpec, Episode
from lwdctl.core.seeding import EVALUATION_SEED_START, generator
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.readers.robomimic_writer import RobomimicWriter
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
    return None, described(failed)


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


# An expert that fails more often than this is reported as broken.
ATTEMPTS_PER_EPISODE = 5
SPARE_ATTEMPTS = 20
MOST_LOST_IN_A_ROW = 3
"""Attempts lost one after the other, from which on the simulator is reported as broken."""

LOST_SEEDS = "lost_seeds"
"""Summary key of attempts that a simulator lost twice; others took their place."""


def collect(
    config: CollectConfig,
    path: Path,
    progress: Progress | None = None,
    finished: Path | None = None,
) -> dict[str, Any]:
    """Collect demonstrations of every task and operator into a file in robomimic's layout.

    A seed whose simulator dies, raises or hangs runs once more; when that fails too, the next seed
    takes its place, and the summary lists it.

    Args:
        config: What to collect.
        path: The HDF5 file to create; an error leaves none behind.
        progress: Where to report.
        finished: A folder for finished episodes, or None. Those that an interrupted call has left
            there do not run again; the file is the same.

    Returns:
        A summary of the file's contents (JSON-ready).

    Raises:
        ConfigError: An unknown task or operator, or seeds that would reach the evaluation seeds.
        MissingExtraError: The simulator is not installed.
        SimulatorError: The simulator fails again and again, or the expert nearly always.
    """
    experts, tasks = find_experts(config)
    env = experts.environment(tasks, config.max_steps or 0)
    operators = [
        name for name in experts.operators if not config.operator or name in config.operator
    ]
    total = (config.episodes or experts.episodes) * len(tasks) * len(operators)
    kept = FinishedDemonstrations(finished, software())
    with (
        ExpertRunner(env, config.noise, config.workers, config.timeout, kept) as runner,
        RobomimicWriter(path, experts.env_args(env)) as writer,
        (progress or TqdmProgress()).task("collect", total, "episode") as bar,
    ):
        runs = {
            task: {
                name: _run_operator(config, experts, task, name, runner, writer, bar)
                for name in operators
            }
            for task in tasks
        }
    return {
        "env": env.adapter,
        **_summary(runs),
        "versions": {package: version(package) for package in experts.packages},
    }


def find_experts(config: CollectConfig) -> tuple[ExpertSet, tuple[str, ...]]:
    """Return the simulator's experts and its names of the requested tasks.

    Raises:
        ConfigError: An unknown task or operator, or tasks that do not fit into one file.
        MissingExtraError: The simulator is not installed.
    """
    experts: ExpertSet = EXPERTS.load(config.simulator)
    tasks = experts.tasks(config.task or (experts.task,))
    if len(tasks) > 1 and not experts.several_tasks:
        raise ConfigError(
            f"a file of {config.simulator} holds one task, not {' and '.join(tasks)}",
            "collect once per task",
        )
    for name in config.operator:
        if name not in experts.operators:
            known = [item for item in experts.operators if item]
            hint = did_you_mean(name, known) or "leave --operator out"
            raise ConfigError(f"{config.simulator} has no operator '{name}'", hint)
    return experts, tasks


@dataclass(frozen=True)
class _Outcome:
    """What came of one run of an expert.

    Attributes:
        seed: The attempt's seed.
        success: Whether it solved the task.
        steps: Its steps, 0 where it was not kept.
        lost: Why the simulator gave nothing, or "".
    """

    seed: int
    success: bool = False
    steps: int = 0
    lost: str = ""


def _run_operator(
    config: CollectConfig,
    experts: ExpertSet,
    task: str,
    operator: str,
    runner: ExpertRunner,
    writer: RobomimicWriter,
    bar: Any,
) -> list[_Outcome]:
    """Record the demonstrations of one task by one operator.

    No two operators share a seed, and so an initial state. An operator's seeds do not depend on
    which other operators are requested.
    """
    episodes = config.episodes or experts.episodes
    stride = len(experts.operators)
    first = config.seed + experts.operators.index(operator)
    end = first + stride * (ATTEMPTS_PER_EPISODE * episodes + SPARE_ATTEMPTS)
    seeds = range(first, min(end, EVALUATION_SEED_START), stride)
    outcomes: list[_Outcome] = []
    kept = 0
    shown = {"task": task} | ({"operator": operator} if operator else {})
    attempts = [Attempt(task, seed, operator) for seed in seeds]
    for attempt, (found, lost) in zip(attempts, runner.run(attempts, episodes), strict=True):
        if found is None:
            outcomes.append(_Outcome(attempt.seed, lost=lost))
            _check_lost(outcomes, task)
            continue
        episode = found.episode
        keep = bool(episode.success) or config.keep_failures
        steps = episode.length if keep else 0
        outcomes.append(_Outcome(attempt.seed, bool(episode.success), steps))
        if keep:
            writer.write(episode, found.states)
            kept += 1
            bar.advance(1, **shown)
        if kept == episodes:
            return outcomes
    runner.finished.remove()  # another run would end here, too
    if seeds.stop == EVALUATION_SEED_START:
        raise ConfigError(
            f"seeds from {config.seed} reach the evaluation seeds ({EVALUATION_SEED_START})",
            "use a lower --seed",
        )
    solved = sum(item.success for item in outcomes)
    raise SimulatorError(
        f"{operator or 'the expert'} of '{task}' solved {solved} of {len(outcomes)} episodes",
        "lower --noise, raise --max-steps, or add --keep-failures",
    )


def _check_lost(outcomes: Sequence[_Outcome], task: str) -> None:
    last = outcomes[-MOST_LOST_IN_A_ROW:]
    if len(last) == MOST_LOST_IN_A_ROW and all(item.lost for item in last):
        seeds = ", ".join(str(item.seed) for item in last)
        raise SimulatorError(
            f"the simulator of '{task}' failed twice at each of the seeds {seeds}: {last[-1].lost}",
            "see what works: lwdctl doctor",
        )


def _summary(runs: Mapping[str, Mapping[str, list[_Outcome]]]) -> dict[str, Any]:
    """Return the counts of all attempts, of each task and of each named operator."""
    tasks: dict[str, Any] = {}
    everything: list[_Outcome] = []
    for task, own in runs.items():
        outcomes = [item for part in own.values() for item in part]
        everything += outcomes
        tasks[task] = _counts(outcomes)
        operators = {name: _counts(part) for name, part in own.items() if name}
        if operators:
            tasks[task]["operators"] = operators
    total = _counts(everything)
    keys = ("episodes", "steps", "attempts", "expert_success", LOST_SEEDS)
    return {
        **{key: total[key] for key in keys if key in total},
        "seeds": [total["first_seed"], total["last_seed"]],
        "tasks": tasks,
    }


def _counts(outcomes: Sequence[_Outcome]) -> dict[str, Any]:
    """Return what one group, or several, took (JSON-ready)."""
    lost = [item.seed for item in outcomes if item.lost]
    ran = [item for item in outcomes if not item.lost]
    steps = [item.steps for item in ran if item.steps]
    seeds = [item.seed for item in ran]
    return {
        "episodes": len(steps),
        "steps": sum(steps),
        "median_steps": median(steps),
        "attempts": len(ran),
        "expert_success": sum(item.success for item in ran) / len(ran),
        "first_seed": min(seeds),
        "last_seed": max(seeds),
        "failed_seeds": [item.seed for item in ran if not item.success],
        **({LOST_SEEDS: lost} if lost else {}),
    }
