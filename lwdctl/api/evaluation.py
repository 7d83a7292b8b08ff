"""Evaluating and comparing policies."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from lwdctl.analysis.comparison import Comparison, compare_evaluations
from lwdctl.analysis.comparison import compare as compare_results
from lwdctl.analysis.tables import Table, write_csv, write_json
from lwdctl.api.dataset import load_pandas
from lwdctl.artifacts.files import user_path
from lwdctl.artifacts.manifest import plain
from lwdctl.artifacts.workspace import Place, Workspace
from lwdctl.configs import EvalConfig
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.records import EnvSpec
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.core.trust import trusting
from lwdctl.deploy.runtime import ExportedPolicy
from lwdctl.envs.table import Environment, allowed, environment_named
from lwdctl.evaluation.checks import warn_of_ignored_seed, warn_of_seeds
from lwdctl.evaluation.cost import condition_cost, trained_condition
from lwdctl.evaluation.episodes import (
    EpisodeResult,
    check_not_all_lost,
    described_failures,
    plan_episodes,
)
from lwdctl.evaluation.results import Condition, ConditionResult, ResultRow, result_rows
from lwdctl.evaluation.rollout import rollout
from lwdctl.methods.lwd import TrainedLwd
from lwdctl.methods.trained import LoadedPolicy
from lwdctl.policies.policy import BatchPolicy
from lwdctl.policies.single import SingleRobotPolicies
from lwdctl.tracking.history import write_summary
from lwdctl.tracking.tracking import Names, Tracking

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ResultTable:
    """Results of an evaluation: one condition per policy, one row per task.

    Attributes:
        conditions: Per policy its rows and every episode.
    """

    conditions: tuple[ConditionResult, ...]

    @property
    def rows(self) -> list[ResultRow]:
        """All rows; the last one of each policy is for all tasks together."""
        return [row for condition in self.conditions for row in condition.rows]

    @property
    def episodes(self) -> dict[str, tuple[EpisodeResult, ...]]:
        """Every episode, by the name of the policy."""
        return {item.overall.policy: item.episodes for item in self.conditions}

    def _table(self) -> Table:
        columns = ("policy", "task", "success", "95 % interval", "score", "episodes", "errors")
        aborted = any(row.policy_failures for row in self.rows)
        return Table(
            (*columns, "policy failures") if aborted else columns,
            tuple(
                (
                    row.policy,
                    row.task,
                    row.success.value,
                    f"{row.success.low:.3f} to {row.success.high:.3f}",
                    row.score,
                    row.episodes,
                    row.errors,
                    *((row.policy_failures,) if aborted else ()),
                )
                for condition in self.conditions
                for row in condition.rows[-1 if len(condition.rows) == 2 else 0 :]
            ),
        )

    def __repr__(self) -> str:
        """Return the table as text."""
        return str(self._table())

    def _repr_markdown_(self) -> str:
        """Return the table for a notebook."""
        return self._table().to_markdown()

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per policy and task.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pd = load_pandas()

        return pd.DataFrame([row.to_json() for row in self.rows])

    def save(self, directory: str | Path) -> Path:
        """Write `results.json` and `results.csv` into a directory, and return it."""
        target = user_path(directory)
        target.mkdir(parents=True, exist_ok=True)
        records = [condition.to_json() for condition in self.conditions]
        write_json(target / "results.json", records)
        write_csv(target / "results.csv", self._table())
        return target


def _check_numbers(optional: Mapping[str, Any], **needed: Any) -> None:
    """Check that numbers are in the range of the settings of `eval`; those optional may be None.

    Raises:
        ConfigError: One is not.
    """
    numbers = {**needed, **{name: value for name, value in optional.items() if value is not None}}
    for name, value in numbers.items():
        if not isinstance(value, int | float | np.number) or not np.isfinite(value):
            raise ConfigError(f"'{name}' takes a number, not {value!r}")
    from_mapping(EvalConfig, plain(numbers))


def evaluate(  # noqa: PLR0913 - the settings of an evaluation, by keyword only
    policies: Any,
    env: str | Environment | None = None,
    *,
    episodes: int = 50,
    tasks: str | Sequence[str] = (),
    labels: str | Sequence[str] = (),
    seed: int = EVALUATION_SEED_START,
    max_steps: int | None = None,
    perturbation: float = 0.0,
    perturbation_probability: float = 0.1,
    num_envs: int | None = None,
    workers: int = 0,
    timeout: float = 120.0,
    trust: Collection[str] = (),
    track: Names = (),
    track_project: str = "",
    progress: Progress | None = None,
) -> ResultTable:
    """Run policies on the same initial states and score them with intervals.

    Args:
        policies: Name to policy: what `load_policy` returned, or anything with `reset` and `act`
            (see `lwdctl.Policy`). One policy alone is called `"policy"`.
        env: Where they run: a name (`"robosuite/Lift"`, `"pusht"`), a `gymnasium.Env`, or a factory
            that returns one or a simulator. None takes the environment of the first trained
            policy's data.
        episodes: Episodes per task, and per label where labels are named.
        tasks: Tasks to run, one or several; () takes all that `env` names. A factory and a
            `gymnasium.Env` name none: then it is the one of the trained policies' data, else `""`.
            Perturbations and the noise of latents depend on the name, so that results of several
            calls are comparable where it is the same.
        labels: Behavior labels to run one after the other, one or several.
        seed: First evaluation seed; every policy meets the same ones.
        max_steps: Steps per episode; None takes the environment's limit.
        perturbation: Magnitude of random perturbations, in the environment's unit.
        perturbation_probability: Probability of a perturbation before each step.
        num_envs: Environments stepped as one batch; None takes 1 for a `gymnasium.Env`, else up to
            16.
        workers: Processes that hold the environments; 0 holds them in this one. They import the
            script that calls this, so its calls stand below `if __name__ == "__main__":`.
        timeout: Seconds to wait for a simulator.
        trust: Environments outside of lwdctl (`package.module:Class`), one or several, that may be
            imported where the data of a policy name them, not `env`.
        track: Trackers that show the result rows, one or several: `"wandb"`, `"trackio"`,
            `"tensorboard"`.
        track_project: Project that they file them under; "" takes the working directory's name.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: A number out of range; an unknown environment or task, one outside of lwdctl
            that only the data name, a policy that does not fit it, or policies whose data mean
            different environments.
        SimulatorError: No episode of any policy ran to its end.
        MissingExtraError: The package of a tracker is not installed.
    """
    tracking = Tracking.of(track, track_project)
    _check_numbers(
        {"max_steps": max_steps, "num_envs": num_envs},
        episodes=episodes,
        perturbation=perturbation,
        perturbation_probability=perturbation_probability,
        timeout=timeout,
        workers=workers,
    )
    named = dict(policies) if isinstance(policies, Mapping) else {"policy": policies}
    if not named:
        raise ConfigError("there is no policy to run", 'evaluate({"NAME": POLICY})')
    tasks, labels = (
        (item,) if isinstance(item, str) else tuple(dict.fromkeys(item)) for item in (tasks, labels)
    )
    with trusting(trust):
        place, spec = _environment(env, named, tasks, max_steps)
    plans = plan_episodes(spec, episodes, seed, tasks, labels)
    if not plans:
        raise ConfigError(
            f"there is no episode to run: '{spec.adapter}' names no task",
            'name one: tasks=("TASK",)',
        )
    bars = progress or TqdmProgress()
    trained = [item.source for item in named.values() if isinstance(item, LoadedPolicy)]
    same = [source for source in trained if source.env.adapter == spec.adapter]
    said = [warn_of_seeds(source, seed, episodes) for source in same]
    for text in filter(None, dict.fromkeys([*said, warn_of_ignored_seed(place, plans[0].task)])):
        bars.message(text)
    single = isinstance(place, gymnasium.Env)
    count = num_envs or (1 if single else min(16, len(plans)))
    limits: dict[str, Any] = {"max_steps": max_steps}
    limits["perturbation_probability"] = perturbation_probability
    run = partial(rollout, env=place, plans=plans, num_envs=count, workers=workers, **limits)
    run = partial(run, perturbation=perturbation, timeout=timeout, progress=bars)
    found = []
    for name, policy in named.items():
        shown = name if isinstance(policies, Mapping) else ""
        finished = run(_batch_policy(policy, count), name=shown)
        if failures := described_failures(name, finished.episodes):
            bars.message(failures)
        condition = _condition(name, policy, spec.adapter, perturbation)
        is_known = isinstance(policy, LoadedPolicy) and policy.trained.has_known_cost
        cost = partial(condition_cost, policy.cost()) if is_known else None
        rows = result_rows(finished.episodes, finished.score, condition, cost=cost)
        found.append(ConditionResult(tuple(rows), finished.episodes, **limits))
    check_not_all_lost("any policy", [item for part in found for item in part.episodes])
    table = ResultTable(tuple(found))
    settings: dict[str, Any] = {"policy": list(named), "episodes": episodes, "seed": seed}
    settings["labels"] = list(labels)
    settings |= {"perturbation": perturbation, "tasks": list(spec.tasks), **limits}
    _show(table, spec.adapter, settings, tracking, progress)
    return table


def _show(
    table: ResultTable,
    env: str,
    settings: Mapping[str, Any],
    tracking: Tracking,
    progress: Progress | None,
) -> None:
    """Show the result rows of an evaluation in trackers."""
    if not tracking.names:
        return
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with tracking.follow_in_memory(
            "evaluation", env, settings, directory, progress or TqdmProgress()
        ):
            write_summary(directory, {"results": [row.to_json() for row in table.rows]})


def compare(
    results: ResultTable | str | Path | Sequence[str | Path] = "",
    against: str | None = None,
    *,
    metric: str | None = None,
    workspace: Place = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare policies: each one against one reference, on the same initial states.

    Args:
        results: What `evaluate` returned, or one or several references of evaluations; "" takes the
            newest evaluation.
        against: Policy that the others are tested against; None takes `lwd` if it is there.
        metric: Name of the score; None takes the environment's first metric.
        workspace: Where the evaluations stand.
        progress: Where to report.

    Returns:
        Tables, tests and figures; `save(directory)` writes them.

    Raises:
        ConfigError: An unknown metric or reference.
        ArtifactError: The conditions cannot be compared.
    """
    if isinstance(results, ResultTable):
        return compare_results(results.conditions, against, metric, progress)
    references = [results] if isinstance(results, str | Path) else results
    place = Workspace.locate(workspace)
    found = [place.resolve("evaluation", str(item)) for item in references]
    return compare_evaluations(found, place.root, against=against, metric=metric, progress=progress)


def _environment(
    env: str | Environment | None,
    policies: Mapping[str, Any],
    tasks: Sequence[str],
    max_steps: int | None,
) -> tuple[Environment, EnvSpec]:
    """Return what is run, and its description with the tasks to run."""
    loaded = [item.source.env for item in policies.values() if isinstance(item, LoadedPolicy)]
    trained = [item for item in loaded if item.adapter]  # arrays in memory may name none
    if env is None:
        if not trained:
            reason = "the data of no policy name an environment" if loaded else "no policy has data"
            raise ConfigError(
                f"there is no environment to run in: {reason}", 'name one: env="pusht"'
            )
        env = allowed(trained[0])
        _check_agreement([item for item in trained if item.adapter == env.adapter], max_steps)
    if isinstance(env, str):
        named = environment_named(env)
        # The data know the environment's settings and versions.
        same = [item for item in trained if item.adapter == named.adapter]
        _check_agreement(same, max_steps)
        settled = same[0] if same else named
        chosen = named.tasks if "/" in env else settled.tasks
        env = replace(settled, tasks=chosen, stored=False)
    if isinstance(env, EnvSpec):
        if not env.tasks:
            env = replace(env, tasks=environment_named(env.adapter).tasks)
        return env, env
    if not callable(env) and not isinstance(env, gymnasium.Env):
        raise ConfigError(
            f"env is {env!r}, expected a name, a gymnasium.Env, or a function that returns one",
            'env="pusht", env=gymnasium.make(ENV_ID), or env=CLASS',
        )
    # An object names no task. Seeds of noise depend on its name: that of the data, if there is one.
    known = {task for item in loaded for task in item.tasks}
    one = tuple(known) if len(known) == 1 else ("",)
    return env, EnvSpec(str(getattr(env, "__name__", env)), tuple(tasks) or one)


def _check_agreement(found: Sequence[EnvSpec], max_steps: int | None) -> None:
    """Check that the data of all policies mean one and the same environment.

    Raises:
        ConfigError: They differ in its settings, or in a step limit that is not given.
    """
    for other in found[1:]:
        if other.settings != found[0].settings:
            raise ConfigError(
                f"the data of the policies differ in the settings of '{other.adapter}'",
                "pass the environment as an object: env=lwdctl.load_policy(...).source.env",
            )
        if max_steps is None and other.max_steps != found[0].max_steps:
            raise ConfigError(
                f"the data of the policies differ in the step limit of '{other.adapter}':"
                f" {found[0].max_steps} and {other.max_steps}",
                "name one: max_steps=N",
            )


def _batch_policy(policy: Any, num_envs: int) -> BatchPolicy:
    if isinstance(policy, LoadedPolicy):
        return policy.batch_policy(num_envs)
    if not isinstance(policy, ExportedPolicy):
        return SingleRobotPolicies(policy, num_envs)
    described = policy.description
    names = {"task": described.tasks, "label": described.labels}
    known = {part: names[part] for part in names if part not in described.condition}
    return SingleRobotPolicies(policy, num_envs, described.action.size, known)


def _condition(name: str, policy: Any, env: str, perturbation: float) -> Condition:
    if not isinstance(policy, LoadedPolicy):
        return Condition(name, "", env, perturbation=perturbation)
    latent = policy.acting.latent if isinstance(policy.trained, TrainedLwd) else ""
    return trained_condition(
        name, policy.trained, policy.acting, env, latent=latent, perturbation=perturbation
    )
