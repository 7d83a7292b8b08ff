"""`lwdctl collect`: demonstrations of scripted experts, made in a simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lwdctl.core.config import option, to_mapping
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.records import EnvSpec
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.stages.stage import Stage, StageContext

if TYPE_CHECKING:
    from lwdctl.artifacts.artifact import Artifact
    from lwdctl.data.robomimic_writer import RobomimicWriter
    from lwdctl.stages.experts import ExpertRunner

PAYLOAD = "demonstrations.hdf5"
# An expert that fails this often is not one.
ATTEMPTS_PER_EPISODE = 5
SPARE_ATTEMPTS = 20


@dataclass(frozen=True)
class CollectConfig:
    """Settings of `lwdctl collect`; experts exist for Metaworld."""

    simulator: str = option(
        "metaworld", "Simulator to collect in.", choices=("metaworld",), argument=True
    )
    task: tuple[str, ...] = option(("reach",), "Task name; may be given several times.")
    episodes: int = option(25, "Demonstrations per task.", minimum=1)
    seed: int = option(
        0, "First seed; every task uses it and the next ones.", minimum=0,
        maximum=EVALUATION_SEED_START - 1,
    )  # fmt: skip
    noise: float = option(
        0.0, "Standard deviation of Gaussian noise on the expert's actions.", minimum=0
    )
    max_steps: int = option(0, "Steps per episode; 0 means the simulator's limit.", minimum=0)
    keep_failures: bool = option(False, "Keep episodes in which the expert fails.")
    workers: int = option(2, "Processes; 0 runs in this one. No effect on the data.", minimum=0)


def run(config: CollectConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Collect `config.episodes` demonstrations per task into robomimic's HDF5 layout.

    Raises:
        ConfigError: An unknown task, or seeds that would reach the evaluation seeds.
        SimulatorError: A worker died, or the expert fails nearly always.
    """
    del inputs
    from lwdctl.data.robomimic_writer import RobomimicWriter
    from lwdctl.stages.experts import ExpertRunner

    tasks = _tasks(config)
    env = environment(tasks, config.max_steps)
    name = context.name or (tasks[0] if len(tasks) == 1 else config.simulator)
    draft = context.workspace.begin("demonstrations", name, config=to_mapping(config))
    with draft, ExpertRunner(env, config.noise, config.workers) as runner:
        total = config.episodes * len(tasks)
        with (
            RobomimicWriter(draft.path / PAYLOAD, env_args(env)) as writer,
            context.progress.task("collect", total, "episode") as bar,
        ):
            rows = {task: _collect(config, task, runner, writer, bar) for task in tasks}
        return draft.publish(_summary(rows, env), seed=config.seed)


def environment(tasks: tuple[str, ...], max_steps: int) -> EnvSpec:
    """Describe the Metaworld environment with the versions that are installed."""
    from lwdctl.envs.metaworld import MAX_STEPS

    settings = {"metaworld": version("metaworld"), "mujoco": version("mujoco")}
    return EnvSpec("metaworld", tasks, settings, max_steps or MAX_STEPS)


def env_args(env: EnvSpec) -> dict[str, Any]:
    """Return robomimic's `env_args`, from which ingest rebuilds `env`."""
    return {
        "env_name": f"{env.adapter}/{env.tasks[0]}" if len(env.tasks) == 1 else env.adapter,
        "env_version": env.settings["metaworld"],
        "type": env.adapter,
        "env_kwargs": {
            "tasks": list(env.tasks), "max_steps": env.max_steps, **env.settings
        },
    }  # fmt: skip


def _tasks(config: CollectConfig) -> tuple[str, ...]:
    """Check every name before the first episode."""
    from lwdctl.envs.metaworld import SUFFIX, task_names
    from lwdctl.envs.table import check_tasks

    tasks = tuple(dict.fromkeys(name.removesuffix(SUFFIX) for name in config.task))
    if not tasks:
        raise ConfigError("no task named", "example: --task reach")
    check_tasks(tasks, task_names(), f"environment '{config.simulator}'")
    return tasks


@dataclass
class _TaskCount:
    """What collecting one task took."""

    kept: int = 0
    succeeded: int = 0
    attempts: int = 0
    steps: int = 0
    first_seed: int = -1
    last_seed: int = -1
    failed_seeds: tuple[int, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "episodes": self.kept,
            "steps": self.steps,
            "attempts": self.attempts,
            "expert_success": self.succeeded / self.attempts,
            "first_seed": self.first_seed,
            "last_seed": self.last_seed,
            "failed_seeds": list(self.failed_seeds),
        }


def _collect(
    config: CollectConfig, task: str, runner: ExpertRunner, writer: RobomimicWriter, bar: Any
) -> _TaskCount:
    count = _TaskCount(first_seed=config.seed)
    limit = config.seed + ATTEMPTS_PER_EPISODE * config.episodes + SPARE_ATTEMPTS
    seeds = range(config.seed, min(limit, EVALUATION_SEED_START))
    for episode in runner.episodes(task, seeds, config.episodes):
        count.attempts += 1
        count.last_seed = episode.seed if episode.seed is not None else -1
        count.succeeded += bool(episode.success)
        if not episode.success:
            count.failed_seeds += (count.last_seed,)
        if episode.success or config.keep_failures:
            writer.write(episode)
            count.kept += 1
            count.steps += episode.length
            bar.advance(1, task=task)
        if count.kept == config.episodes:
            return count
    raise _exhausted(config, task, count, seeds)


def _exhausted(
    config: CollectConfig, task: str, count: _TaskCount, seeds: range
) -> ConfigError | SimulatorError:
    if seeds.stop == EVALUATION_SEED_START:
        return ConfigError(
            f"seeds from {config.seed} reach the evaluation seeds ({EVALUATION_SEED_START})",
            "use a lower --seed",
        )
    return SimulatorError(
        f"the expert of '{task}' solved {count.succeeded} of {count.attempts} episodes",
        "lower --noise, raise --max-steps, or add --keep-failures",
    )


def _summary(rows: Mapping[str, _TaskCount], env: EnvSpec) -> dict[str, Any]:
    attempts = sum(row.attempts for row in rows.values())
    return {
        "env": env.adapter,
        "versions": dict(env.settings),
        "episodes": sum(row.kept for row in rows.values()),
        "steps": sum(row.steps for row in rows.values()),
        "attempts": attempts,
        "expert_success": sum(row.succeeded for row in rows.values()) / attempts,
        "seeds": [
            min(row.first_seed for row in rows.values()),
            max(row.last_seed for row in rows.values()),
        ],
        "tasks": {task: row.to_mapping() for task, row in rows.items()},
    }


STAGE = Stage("collect", "demonstrations", CollectConfig, (), run)
