"""`lwdctl collect`: demonstrations of scripted experts, made in a simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.configs import CollectConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.records import EnvSpec
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.robomimic_writer import RobomimicWriter
from lwdctl.envs.experts import EXPERTS, ExpertSet
from lwdctl.stages.experts import ExpertRunner
from lwdctl.stages.stage import StageContext

PAYLOAD = "demonstrations.hdf5"
# An expert that fails this often is not one.
ATTEMPTS_PER_EPISODE = 5
SPARE_ATTEMPTS = 20


def run(config: CollectConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Collect demonstrations of every task and operator into robomimic's HDF5 layout.

    Raises:
        ConfigError: An unknown task or operator, or seeds that would reach the evaluation
            seeds.
        MissingExtraError: The simulator is not installed.
        SimulatorError: A worker died, or the expert fails nearly always.
    """
    del inputs

    experts: ExpertSet = EXPERTS.load(config.simulator)
    tasks = _tasks(config, experts)
    parts = [part for task in tasks for part in _parts(config, experts, task)]
    env = experts.environment(tasks, config.max_steps or 0)
    name = context.name or experts.file_name(tasks)
    draft = context.workspace.begin("demonstrations", name, config=to_mapping(config))
    with draft, ExpertRunner(env, config.noise, config.workers) as runner:
        with (
            RobomimicWriter(draft.path / PAYLOAD, experts.env_args(env)) as writer,
            context.progress.task(
                "collect", sum(part.episodes for part in parts), "episode"
            ) as bar,
        ):
            counts = [_collect(config, part, runner, writer, bar) for part in parts]
        summary = _summary(parts, counts, env)
        summary["versions"] = {package: version(package) for package in experts.packages}
        return draft.publish(summary, seed=config.seed)


def _tasks(config: CollectConfig, experts: ExpertSet) -> tuple[str, ...]:
    """Check every name before the first episode."""
    tasks = experts.tasks(config.task or (experts.task,))
    if len(tasks) > 1 and not experts.several_tasks:
        raise ConfigError(
            f"a file of {config.simulator} holds one task, not {' and '.join(tasks)}",
            "collect once per task",
        )
    return tasks


@dataclass(frozen=True)
class _Part:
    """The demonstrations of one task by one operator."""

    task: str
    operator: str
    episodes: int
    seeds: range


def _parts(config: CollectConfig, experts: ExpertSet, task: str) -> list[_Part]:
    """Divide the seeds among the operators, so that no two start alike.

    An operator's seeds do not depend on who else is asked for.
    """
    for name in config.operator:
        if name not in experts.operators:
            known = [item for item in experts.operators if item]
            hint = did_you_mean(name, known) or "leave --operator out"
            raise ConfigError(f"{config.simulator} has no operator '{name}'", hint)
    episodes = config.episodes or experts.episodes
    attempts = ATTEMPTS_PER_EPISODE * episodes + SPARE_ATTEMPTS
    stride = len(experts.operators)
    parts = []
    for index, operator in enumerate(experts.operators):
        first = config.seed + index
        end = min(first + stride * attempts, EVALUATION_SEED_START)
        if not config.operator or operator in config.operator:
            parts.append(_Part(task, operator, episodes, range(first, end, stride)))
    return parts


@dataclass
class _Count:
    """What collecting one part, or several, took."""

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


def _collect(
    config: CollectConfig, part: _Part, runner: ExpertRunner, writer: RobomimicWriter, bar: Any
) -> _Count:
    count = _Count(first_seed=part.seeds.start)
    shown = {"task": part.task} | ({"operator": part.operator} if part.operator else {})
    recordings = runner.episodes(part.task, part.seeds, part.episodes, part.operator)
    for seed, recording in zip(part.seeds, recordings, strict=True):
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
        if len(count.lengths) == part.episodes:
            return count
    raise _exhausted(config, part, count)


def _exhausted(config: CollectConfig, part: _Part, count: _Count) -> ConfigError | SimulatorError:
    if part.seeds.stop == EVALUATION_SEED_START:
        return ConfigError(
            f"seeds from {config.seed} reach the evaluation seeds ({EVALUATION_SEED_START})",
            "use a lower --seed",
        )
    who = f"{part.operator} of '{part.task}'" if part.operator else f"the expert of '{part.task}'"
    return SimulatorError(
        f"{who} solved {count.succeeded} of {count.attempts} episodes",
        "lower --noise, raise --max-steps, or add --keep-failures",
    )


def _summary(parts: Sequence[_Part], counts: Sequence[_Count], env: EnvSpec) -> dict[str, Any]:
    total = sum(counts, _Count())
    tasks: dict[str, Any] = {}
    for task in env.tasks:
        own = [
            (part, count) for part, count in zip(parts, counts, strict=True) if part.task == task
        ]
        tasks[task] = sum((count for _, count in own), _Count()).to_mapping()
        operators = {part.operator: count.to_mapping() for part, count in own if part.operator}
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
