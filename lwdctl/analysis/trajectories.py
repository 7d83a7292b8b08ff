"""Trajectories of demonstrations and of evaluated policies, as metrics that can be compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lwdctl.analysis.divergence import Bounds, SourceDivergence
from lwdctl.analysis.evaluations import SUCCESS, Run, values_of
from lwdctl.analysis.resample import Bootstrap, Values, percentile_interval
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ArtifactError, MissingExtraError
from lwdctl.core.progress import Progress
from lwdctl.core.records import EnvSpec
from lwdctl.core.seeding import generator
from lwdctl.envs.simulator import BehaviorMeasure
from lwdctl.envs.table import load_environment
from lwdctl.evaluation.results import Estimate

SOURCE = "source"
ALL = "all"
"""The behavior of trajectories without a label."""
RETURN, STEPS = "return", "steps"
CONTACT = "contact_"

Divergences = Mapping[str, Estimate]

RESAMPLES = 4000
FRACTIONS: Bounds = (0.0, 1.0)
CONTACTS = "foot contacts"
"""Name of the metrics that are fractions of steps, compared two by two."""
SOURCE_VS_SOURCE = "source_vs_source"
"""Name of the baseline among divergences: two disjoint sets of the source."""


@dataclass(frozen=True)
class Trajectory:
    """The metrics of one trajectory.

    Attributes:
        group: `"source"`, or the name of the policy.
        behavior: Its label, or `"all"`.
        origin: The recorded episode or the seed (`"episode 12"`, `"seed 100003"`).
        values: `steps`, and where known `return`, `success` and the adapter's metrics.
        failure: Why the policy aborted the episode, or "".
    """

    group: str
    behavior: str
    origin: str
    values: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""
    task: str = ""


Groups = dict[str, list[Trajectory]]


@dataclass(frozen=True)
class MetricStatistics:
    """A metric over trajectories: its mean, and its standard deviation (NaN for one alone)."""

    mean: Estimate
    std: float


@dataclass(frozen=True)
class BehaviorComparison:
    """The trajectories of one behavior, equally many of every group.

    Attributes:
        behavior: Label, or `"all"`; preceded by the task where there are several.
        count: Trajectories per group.
        groups: Group to the trajectories drawn, the source first.
        measured: Names of the environment's behavior metrics.
        statistics: Group to metric to its statistics.
        differences: Policy to metric to its mean minus the source's, where both have it.
        divergences: Quantity (`CONTACTS` or a metric) to policy to its divergence from the
            source, with that of the source-vs-source baseline.
    """

    behavior: str
    count: int
    groups: Groups
    measured: tuple[str, ...]
    statistics: Mapping[str, Mapping[str, MetricStatistics]]
    differences: Mapping[str, Mapping[str, Estimate]]
    divergences: Mapping[str, Divergences] = field(default_factory=dict)


def metrics(items: Sequence[Trajectory], names: Sequence[str]) -> Values:
    """Return (trajectory, metric)."""
    return np.array([[item.values[name] for name in names] for item in items])


def shared_metrics(items: Sequence[Trajectory]) -> list[str]:
    """Return the metrics that every trajectory has, in order of appearance."""
    return [name for name in items[0].values if all(name in item.values for item in items)]


def behavior_measures(env: EnvSpec, tasks: Sequence[str]) -> dict[str, BehaviorMeasure | None]:
    """Return task to the environment's behavior metrics, None where it offers none."""
    try:
        offered = getattr(load_environment(env), "behavior_measure", None)
    except MissingExtraError:
        offered = None  # data can be analyzed without their simulator
    return {task: offered(task) if offered else None for task in tasks}


def source_trajectories(
    store: SnippetStore,
    limit: int,
    most: int | None,
    seed: int,
    progress: Progress,
    measures: Mapping[str, BehaviorMeasure | None],
) -> list[Trajectory]:
    """Measure recorded trajectories with the code that measures rollouts.

    Metrics are over the observations after actions, as in a rollout: those of rows 1 to the limit,
    and the one after the last action where it was recorded.

    Args:
        store: The demonstrations.
        limit: Number of steps to measure, as many as rollouts had; 0 for all.
        most: Largest number of trajectories of every task and label, drawn at random; None for
            all.
        seed: Seed of the draw.
        progress: Where to report.
        measures: Task that policies ran to its behavior metrics, as `behavior_measures` has them.
    """
    table, names = store.episodes, store.spec.env.tasks
    order = generator("source trajectories", seed).permutation(len(table))
    order = order[np.isin(table.task[order], [names.index(task) for task in measures])]
    pairs = np.stack([table.task[order], table.label[order]], axis=1)
    parts = [order[(pairs == one).all(axis=1)][:most] for one in np.unique(pairs, axis=0)]
    chosen = sorted(int(index) for part in parts for index in part)
    found = []
    with progress.task("measure the source", len(chosen), "trajectory") as bar:
        for index in chosen:
            found.append(_measured(store, index, limit, measures))
            bar.advance()
    return found


def policy_trajectories(run: Run, group: str, labels: Sequence[str]) -> Iterator[Trajectory]:
    """Yield the episodes of an evaluated policy, without those lost to simulator errors.

    Args:
        run: The policy's episodes.
        group: Name of the policy.
        labels: Behaviors that the source has. With a single one every episode belongs to it.
    """
    only = labels[0] if len(labels) == 1 else ALL
    for episode in run.episodes:
        if episode.error:
            continue
        task, kind, number = episode.initial_state
        yield Trajectory(
            group=group,
            behavior=episode.plan.label or only,
            origin=f"{kind} {number}",
            values=values_of(episode),
            failure=episode.policy_failure,
            task=task,
        )


def _measured(
    store: SnippetStore, index: int, limit: int, measures: Mapping[str, BehaviorMeasure | None]
) -> Trajectory:
    store.check_episode(index)
    table = store.episodes
    task = store.spec.env.tasks[int(table.task[index])]
    start, length = int(table.start[index]), int(table.length[index])
    steps = min(length, limit or length)
    values = {STEPS: float(steps)}
    if store.has_rewards:
        values[RETURN] = float(store.read("reward", start, start + steps).sum(dtype=np.float64))
    if table.success[index] >= 0 and steps == length:
        values[SUCCESS] = float(table.success[index])
    if measure := measures[task]:
        # The observations after each of the first actions.
        (key,) = (item.name for item in store.spec.observations)
        rows = store.read(key, start + 1, start + min(steps + 1, length))
        final = store.final_observation(index) if steps == length else None
        rows = rows if final is None else np.concatenate([rows, final[key][None]])
        values |= measure.compute(rows)
    label = int(table.label[index])
    behavior = store.spec.label_name(label) or ALL
    return Trajectory(SOURCE, behavior, f"episode {index}", values, task=task)


def compare_behaviors(
    trajectories: Sequence[Trajectory],
    measures: Mapping[str, BehaviorMeasure | None],
    seed: int,
    progress: Progress,
) -> list[BehaviorComparison]:
    """Compare every behavior that a policy was run for, task by task.

    Trajectories without a label, where the source has several, are compared with all of it.

    Args:
        trajectories: Of the source and of every policy.
        measures: Task to its behavior metrics.
        seed: Seed of the draws.
        progress: Where to report.

    Raises:
        ArtifactError: No behavior has trajectories on both sides.
    """
    policies = [item for item in trajectories if item.group != SOURCE]
    found, behaviors = [], sorted({(item.task, item.behavior) for item in policies})
    several = len({task for task, _ in behaviors}) > 1
    with progress.task("compare", len(behaviors), "behavior") as bar:
        for task, behavior in behaviors:
            name = behavior
            if several:
                name = task if behavior == ALL else f"{task}, {behavior}"
            groups: Groups = {}
            for item in trajectories:
                if item.task == task and behavior in (ALL, item.behavior):
                    groups.setdefault(item.group, []).append(item)
            if len(groups) > 1 and SOURCE in groups:
                found.append(_compare(name, groups, measures[task], seed))
            bar.advance()
    if not found:
        raise ArtifactError(
            "the data holds no trajectory of any behavior that was evaluated",
            "evaluate with the labels of the data: lwdctl eval --label LABEL",
        )
    return found


def draw_equally(groups: Groups, *key: int | str) -> Groups:
    """Draw as many trajectories of every group as the smallest has, in their order."""
    count = min(len(items) for items in groups.values())
    drawn = {}
    for name, items in groups.items():
        rng = generator("equal numbers", name, *key)
        chosen = sorted(rng.permutation(len(items))[:count])
        drawn[name] = [items[index] for index in chosen]
    return drawn


def _compare(
    behavior: str, groups: Groups, measure: BehaviorMeasure | None, seed: int
) -> BehaviorComparison:
    drawn = draw_equally(groups, behavior, seed)
    values = {
        name: {metric: metrics(items, [metric])[:, 0] for metric in shared_metrics(items)}
        for name, items in drawn.items()
    }
    source = values[SOURCE]
    count = len(drawn[SOURCE])
    one, policy, other = (
        Bootstrap(count, ("behaviour bootstrap", name), RESAMPLES)
        for name in ("one", "policy", "source")
    )

    def statistics(values: Values) -> MetricStatistics:
        std = float(values.std(ddof=1)) if count > 1 else np.nan
        return MetricStatistics(one.estimate(values), std)

    def difference(values: Values, source: Values) -> Estimate:
        samples = policy.means(values) - other.means(source)
        ends = percentile_interval(samples) if count > 1 else (np.nan, np.nan)
        return Estimate(float(values.mean() - source.mean()), *ends, count)

    return BehaviorComparison(
        behavior=behavior,
        count=count,
        groups=drawn,
        measured=measure.names if measure else (),
        statistics={
            name: {metric: statistics(column) for metric, column in found.items()}
            for name, found in values.items()
        },
        differences={
            name: {key: difference(found[key], source[key]) for key in found if key in source}
            for name, found in values.items()
            if name != SOURCE
        },
        divergences=_divergences(groups, behavior, measure, seed) if measure else {},
    )


def _divergences(
    groups: Groups, behavior: str, measure: BehaviorMeasure, seed: int
) -> dict[str, dict[str, Estimate]]:
    shared = set(shared_metrics([item for items in groups.values() for item in items]))
    known = [name for name in measure.names if name in shared]
    quantities = {name: [name] for name in known}
    if measure.fractions:
        quantities = {CONTACTS: known} if known else {}
    bounds = FRACTIONS if measure.fractions else None
    size = min(len(groups[SOURCE]) // 2, *(len(items) for items in groups.values()))
    if size < 2:
        return {}
    found = {}
    for quantity, names in quantities.items():
        pairs: list[tuple[int, ...]] = [*itertools.combinations(range(len(names)), 2)]
        points = {name: metrics(items, names) for name, items in groups.items()}
        key = f"{behavior} {quantity} {seed}"
        divergence = SourceDivergence(points.pop(SOURCE), size, pairs or [(0,)], bounds, key)
        found[quantity] = {SOURCE_VS_SOURCE: divergence.source_vs_source()} | {
            name: divergence.of(measured) for name, measured in points.items()
        }
    return found
