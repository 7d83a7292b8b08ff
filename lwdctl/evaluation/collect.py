"""Collecting demonstrations: scripted experts run in a simulator, one seed per episode.

The data depend on the configuration only, not on the number of worker processes.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.configs import CollectConfig
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.records import EnvSpec, Episode
from lwdctl.core.seeding import EVALUATION_SEED_START, generator
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.robomimic_writer import RobomimicWriter
from lwdctl.envs.experts import EXPERTS, ExpertSet
from lwdctl.envs.simulator import Simulator
from lwdctl.envs.table import make_simulator

# An expert that fails more often than this is reported as broken.
ATTEMPTS_PER_EPISODE = 5
SPARE_ATTEMPTS = 20
EPISODE_TIMEOUT = 600.0


@dataclass(frozen=True)
class Recording:
    """An episode, and what only the simulator's file format has a place for.

    Attributes:
        episode: The demonstration.
        states: (time, state), float64, the simulator's state at each action, or None.
    """

    episode: Episode
    states: npt.NDArray[np.float64] | None


def collect(config: CollectConfig, path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Collect demonstrations of every task and operator into a file in robomimic's layout.

    Args:
        config: What to collect.
        path: The HDF5 file to create; an error leaves none behind.
        progress: Where to report.

    Returns:
        A summary of the file's contents (JSON-ready).

    Raises:
        ConfigError: An unknown task or operator, or seeds that would reach the evaluation seeds.
        MissingExtraError: The simulator is not installed.
        SimulatorError: A worker died, or the expert fails nearly always.
    """
    experts, tasks = find_experts(config)
    env = experts.environment(tasks, config.max_steps or 0)
    groups = [group for task in tasks for group in _groups(config, experts, task)]
    total = sum(group.episodes for group in groups)
    with (
        ExpertRunner(env, config.noise, config.workers or 0) as runner,
        RobomimicWriter(path, experts.env_args(env)) as writer,
        (progress or TqdmProgress()).task("collect", total, "episode") as bar,
    ):
        counts = [_collect_group(config, group, runner, writer, bar) for group in groups]
    return {
        **_summary(groups, counts, env),
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
class _Group:
    """The demonstrations of one task by one operator."""

    task: str
    operator: str
    episodes: int
    seeds: range


def _groups(config: CollectConfig, experts: ExpertSet, task: str) -> list[_Group]:
    """Divide the seeds among the operators, so that no two have the same initial state.

    An operator's seeds do not depend on which other operators are requested.
    """
    episodes = config.episodes or experts.episodes
    attempts = ATTEMPTS_PER_EPISODE * episodes + SPARE_ATTEMPTS
    stride = len(experts.operators)
    groups = []
    for index, operator in enumerate(experts.operators):
        first = config.seed + index
        end = min(first + stride * attempts, EVALUATION_SEED_START)
        if not config.operator or operator in config.operator:
            groups.append(_Group(task, operator, episodes, range(first, end, stride)))
    return groups


@dataclass
class _Count:
    """What collecting one group, or several, took."""

    lengths: tuple[int, ...] = ()
    succeeded: int = 0
    attempts: int = 0
    first_seed: int = EVALUATION_SEED_START
    last_seed: int = -1
    failed_seeds: tuple[int, ...] = ()

    def __add__(self, other: _Count) -> _Count:
        return _Count(
            self.lengths + other.lengths,
            self.succeeded + other.succeeded,
            self.attempts + other.attempts,
            min(self.first_seed, other.first_seed),
            max(self.last_seed, other.last_seed),
            self.failed_seeds + other.failed_seeds,
        )

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "episodes": len(self.lengths),
            "steps": sum(self.lengths),
            "median_steps": median(self.lengths),
            "attempts": self.attempts,
            "expert_success": self.succeeded / self.attempts,
            "first_seed": self.first_seed,
            "last_seed": self.last_seed,
            "failed_seeds": list(self.failed_seeds),
        }


def _collect_group(
    config: CollectConfig, group: _Group, runner: ExpertRunner, writer: RobomimicWriter, bar: Any
) -> _Count:
    count = _Count(first_seed=group.seeds.start)
    shown = {"task": group.task} | ({"operator": group.operator} if group.operator else {})
    recordings = runner.episodes(group.task, group.seeds, group.episodes, group.operator)
    for seed, recording in zip(group.seeds, recordings, strict=True):
        episode = recording.episode
        count.attempts += 1
        count.last_seed = seed
        count.succeeded += bool(episode.success)
        if not episode.success:
            count.failed_seeds += (seed,)
        if episode.success or config.keep_failures:
            writer.write(episode, recording.states)
            count.lengths += (episode.length,)
            bar.advance(1, **shown)
        if len(count.lengths) == group.episodes:
            return count
    if group.seeds.stop == EVALUATION_SEED_START:
        raise ConfigError(
            f"seeds from {config.seed} reach the evaluation seeds ({EVALUATION_SEED_START})",
            "use a lower --seed",
        )
    expert = f"{group.operator or 'the expert'} of '{group.task}'"
    raise SimulatorError(
        f"{expert} solved {count.succeeded} of {count.attempts} episodes",
        "lower --noise, raise --max-steps, or add --keep-failures",
    )


def _summary(groups: Sequence[_Group], counts: Sequence[_Count], env: EnvSpec) -> dict[str, Any]:
    total = sum(counts, _Count())
    tasks: dict[str, Any] = {}
    for task in env.tasks:
        own = {
            group.operator: count
            for group, count in zip(groups, counts, strict=True)
            if group.task == task
        }
        tasks[task] = sum(own.values(), _Count()).to_mapping()
        operators = {operator: count.to_mapping() for operator, count in own.items() if operator}
        if operators:
            tasks[task]["operators"] = operators
    return {
        "env": env.adapter,
        "episodes": len(total.lengths),
        "steps": sum(total.lengths),
        "attempts": total.attempts,
        "expert_success": total.succeeded / total.attempts,
        "seeds": [total.first_seed, total.last_seed],
        "tasks": tasks,
    }


class ExpertRunner:
    """Yields expert episodes in the order of their seeds, whatever the number of workers.

    Args:
        env: The environment; `max_steps` is the episode limit.
        noise: Standard deviation of the Gaussian noise on actions.
        workers: Spawned processes; 0 runs in this process.
    """

    def __init__(self, env: EnvSpec, noise: float, workers: int) -> None:
        self._env, self._noise, self._workers = env, noise, workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> ExpertRunner:
        """Start the workers."""
        if self._workers:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=context)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Stop the workers; kill them after an error."""
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())  # noqa: SLF001 - no public kill
        if kind is not None:
            for process in processes:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def episodes(
        self, task: str, seeds: Sequence[int], expected: int, operator: str = ""
    ) -> Iterator[Recording]:
        """Yield one episode per seed, in order, until the caller stops iterating.

        Args:
            task: Task name.
            seeds: Seeds in the wanted order.
            expected: Number of episodes that the caller will probably take; no more than this
                and one per worker are begun ahead.
            operator: Which of the task's experts, where there are several.

        Raises:
            SimulatorError: A worker died or did not respond.
        """
        if self._pool is None:
            for seed in seeds:
                yield expert_episode(self._env, task, seed, self._noise, operator)
            return
        waiting: deque[Future[Recording]] = deque()
        begun = 0
        for taken, seed in enumerate(seeds):
            ahead = min(max(expected - taken, self._workers), 2 * self._workers)
            try:
                while len(waiting) < ahead and begun < len(seeds):
                    arguments = (self._env, task, seeds[begun], self._noise, operator)
                    waiting.append(self._pool.submit(expert_episode, *arguments))
                    begun += 1
                recording = waiting.popleft().result(timeout=EPISODE_TIMEOUT)
            except (BrokenProcessPool, TimeoutError) as error:
                raise SimulatorError(
                    f"a process that collected '{task}' near seed {seed} died or hung",
                    "run it again",
                ) from error
            yield recording


def expert_episode(
    env: EnvSpec, task: str, seed: int, noise: float, operator: str = ""
) -> Recording:
    """Run a task's scripted expert for one episode.

    The recorded action is the executed one, noise and clipping included, so that replaying it
    from the initial state repeats the episode.
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
    return Recording(episode, np.stack(known) if known else None)


@lru_cache(maxsize=1)
def _simulator(adapter: str, task: str, max_steps: int) -> Simulator:
    """Build the task once per process: earlier episodes leave no trace in later ones."""
    experts: ExpertSet = EXPERTS.load(adapter)
    return make_simulator(experts.environment((task,), max_steps), task)
