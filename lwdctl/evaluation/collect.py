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
class Demonstration:
    """An episode and, where known, the simulator's state at each action (time, state), float64."""

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
    operators = [
        name for name in experts.operators if not config.operator or name in config.operator
    ]
    total = (config.episodes or experts.episodes) * len(tasks) * len(operators)
    with (
        ExpertRunner(env, config.noise, config.workers or 0) as runner,
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
class _Attempt:
    """One run of an expert: its seed, whether it succeeded, and its steps (0 if not kept)."""

    seed: int
    success: bool
    steps: int


def _run_operator(
    config: CollectConfig,
    experts: ExpertSet,
    task: str,
    operator: str,
    runner: ExpertRunner,
    writer: RobomimicWriter,
    bar: Any,
) -> list[_Attempt]:
    """Record the demonstrations of one task by one operator.

    No two operators share a seed, and so an initial state. An operator's seeds do not depend on
    which other operators are requested.
    """
    episodes = config.episodes or experts.episodes
    stride = len(experts.operators)
    first = config.seed + experts.operators.index(operator)
    end = first + stride * (ATTEMPTS_PER_EPISODE * episodes + SPARE_ATTEMPTS)
    seeds = range(first, min(end, EVALUATION_SEED_START), stride)
    attempts: list[_Attempt] = []
    kept = 0
    shown = {"task": task} | ({"operator": operator} if operator else {})
    recordings = runner.episodes(task, seeds, episodes, operator)
    for seed, recording in zip(seeds, recordings, strict=True):
        episode = recording.episode
        keep = bool(episode.success) or config.keep_failures
        attempts.append(_Attempt(seed, bool(episode.success), episode.length if keep else 0))
        if keep:
            writer.write(episode, recording.states)
            kept += 1
            bar.advance(1, **shown)
        if kept == episodes:
            return attempts
    if seeds.stop == EVALUATION_SEED_START:
        raise ConfigError(
            f"seeds from {config.seed} reach the evaluation seeds ({EVALUATION_SEED_START})",
            "use a lower --seed",
        )
    solved = sum(attempt.success for attempt in attempts)
    raise SimulatorError(
        f"{operator or 'the expert'} of '{task}' solved {solved} of {len(attempts)} episodes",
        "lower --noise, raise --max-steps, or add --keep-failures",
    )


def _summary(runs: dict[str, dict[str, list[_Attempt]]]) -> dict[str, Any]:
    """Return the counts of all attempts, of each task and of each named operator."""
    tasks: dict[str, Any] = {}
    everything: list[_Attempt] = []
    for task, own in runs.items():
        attempts = [attempt for part in own.values() for attempt in part]
        everything += attempts
        tasks[task] = _counts(attempts)
        operators = {name: _counts(part) for name, part in own.items() if name}
        if operators:
            tasks[task]["operators"] = operators
    total = _counts(everything)
    return {
        **{key: total[key] for key in ("episodes", "steps", "attempts", "expert_success")},
        "seeds": [total["first_seed"], total["last_seed"]],
        "tasks": tasks,
    }


def _counts(attempts: Sequence[_Attempt]) -> dict[str, Any]:
    """Return what one group, or several, took (JSON-ready)."""
    steps = [attempt.steps for attempt in attempts if attempt.steps]
    seeds = [attempt.seed for attempt in attempts]
    return {
        "episodes": len(steps),
        "steps": sum(steps),
        "median_steps": median(steps),
        "attempts": len(attempts),
        "expert_success": sum(attempt.success for attempt in attempts) / len(attempts),
        "first_seed": min(seeds),
        "last_seed": max(seeds),
        "failed_seeds": [attempt.seed for attempt in attempts if not attempt.success],
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
    ) -> Iterator[Demonstration]:
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
        waiting: deque[Future[Demonstration]] = deque()
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
) -> Demonstration:
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
    return Demonstration(episode, np.stack(known) if known else None)


@lru_cache(maxsize=1)
def _simulator(adapter: str, task: str, max_steps: int) -> Simulator:
    """Build the task once per process: earlier episodes leave no trace in later ones."""
    experts: ExpertSet = EXPERTS.load(adapter)
    return make_simulator(experts.environment((task,), max_steps), task)
