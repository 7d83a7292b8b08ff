"""Collecting demonstrations: scripted experts run in a simulator, one seed per episode.

The data depend on the configuration only: not on the number of worker processes, nor on
interruptions, nor on workers that die or hang once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from lwdctl.artifacts.manifest import software
from lwdctl.configs import CollectConfig
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.readers.robomimic_writer import RobomimicWriter
from lwdctl.envs.experts import EXPERTS, ExpertSet
from lwdctl.evaluation.expert_runner import ExpertRunner
from lwdctl.evaluation.finished_demonstrations import Attempt, FinishedDemonstrations

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
