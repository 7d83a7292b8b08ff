"""Whether policies behave as the trajectories they learned from: equal numbers, compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lwdctl.analysis.divergence import Bounds, Divergence, Yardstick
from lwdctl.analysis.trajectories import ALL, CONTACT, SOURCE, Trajectory
from lwdctl.core.errors import ArtifactError
from lwdctl.core.progress import Progress
from lwdctl.core.seeding import generator

Values = npt.NDArray[np.float64]
Groups = dict[str, list[Trajectory]]

RESAMPLES = 4000
SHARES: Bounds = (0.0, 1.0)
# What hammers are compared by; their range is the source's.
HAMMER = (
    "mean_object_height",
    "mean_target_goal_distance",
    "max_nail_impact",
    "share_nail_impact_above_0.8",
    "share_object_height_above_0.04",
)


@dataclass(frozen=True)
class Spread:
    """A mean over trajectories.

    Attributes:
        low: Lower end of the mean's 95 % bootstrap interval over trajectories; NaN for one alone.
        high: Upper end.
        deviation: Standard deviation between trajectories; NaN for one alone.
    """

    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean of a policy minus mean of the source, with a 95 % bootstrap interval.

    Its ends are NaN where a side has one trajectory alone.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Compared:
    """The trajectories of one behavior, as many of every group.

    Attributes:
        behavior: Label, or `"all"`; behind the task where there are several.
        count: Trajectories per group.
        groups: Group to the trajectories drawn, the source first.
        spreads: Group to metric to its mean.
        differences: Policy to metric to its difference from the source, where both have it.
        divergences: Quantity (`"foot contacts"` or a metric) to policy to divergence from the
            source; under `"sos"` of the source from itself.
    """

    behavior: str
    count: int
    groups: Groups
    spreads: Mapping[str, Mapping[str, Spread]]
    differences: Mapping[str, Mapping[str, Difference]]
    divergences: Mapping[str, Mapping[str, Divergence]] = field(default_factory=dict)


SOS = "sos"
CONTACTS = "foot contacts"


def compare(trajectories: Sequence[Trajectory], seed: int, progress: Progress) -> list[Compared]:
    """Compare every behavior that a policy was run for, task by task.

    Trajectories without a label, where the source has several, are compared with all of it.

    Args:
        trajectories: Of the source and of every policy.
        seed: Fixes the draws.
        progress: Where to report.

    Raises:
        ArtifactError: No behavior has trajectories on both sides.
    """
    policies = [item for item in trajectories if item.group != SOURCE]
    found, kinds = [], sorted({(item.task, item.behavior) for item in policies})
    several = len({task for task, _ in kinds}) > 1
    with progress.task("compare", len(kinds), "behavior") as bar:
        for task, behavior in kinds:
            groups = _grouped(_of(trajectories, task, behavior))
            if len(groups) > 1 and SOURCE in groups:
                found.append(_compared(_name(task, behavior, several=several), groups, seed))
            bar.advance()
    if not found:
        raise ArtifactError(
            "the data holds no trajectory of any behavior that was evaluated",
            "evaluate with the labels of the data",
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


def values_of(items: Sequence[Trajectory], names: Sequence[str]) -> Values:
    """Return (trajectory, metric)."""
    return np.array([[item.values[name] for name in names] for item in items])


def shared_metrics(items: Sequence[Trajectory]) -> list[str]:
    """Return the metrics that every trajectory has, in order of appearance."""
    return [name for name in items[0].values if all(name in item.values for item in items)]


def feet(items: Sequence[Trajectory]) -> list[str]:
    """Return the metrics that are shares of steps with a foot on the floor."""
    return [name for name in shared_metrics(items) if name.startswith(CONTACT)]


def _compared(behavior: str, groups: Groups, seed: int) -> Compared:
    drawn = draw_equally(groups, behavior, seed)
    spreads = {
        name: {
            metric: _spread(values_of(items, [metric])[:, 0]) for metric in shared_metrics(items)
        }
        for name, items in drawn.items()
    }
    source = drawn[SOURCE]
    differences = {
        name: {
            metric: _difference(values_of(items, [metric])[:, 0], values_of(source, [metric])[:, 0])
            for metric in spreads[name]
            if metric in spreads[SOURCE]
        }
        for name, items in drawn.items()
        if name != SOURCE
    }
    count = len(source)
    return Compared(
        behavior, count, drawn, spreads, differences, _divergences(groups, behavior, seed)
    )


def _divergences(groups: Groups, behavior: str, seed: int) -> dict[str, dict[str, Divergence]]:
    every = [item for items in groups.values() for item in items]
    shared = set(shared_metrics(every))
    contacts = [name for name in feet(groups[SOURCE]) if name in shared]
    quantities: dict[str, tuple[list[str], Bounds | None]] = {}
    if contacts:
        quantities[CONTACTS] = contacts, SHARES
    quantities |= {name: ([name], None) for name in HAMMER if name in shared}
    size = min(len(groups[SOURCE]) // 2, *(len(items) for items in groups.values()))
    if size < 2:
        return {}
    found = {}
    for quantity, (names, bounds) in quantities.items():
        pairs: list[tuple[int, ...]] = [*itertools.combinations(range(len(names)), 2)]
        source = values_of(groups[SOURCE], names)
        key = f"{behavior} {quantity} {seed}"
        yardstick = Yardstick(source, size, pairs or [(0,)], bounds, key)
        found[quantity] = {SOS: yardstick.itself()} | {
            name: yardstick.against(values_of(items, names))
            for name, items in groups.items()
            if name != SOURCE
        }
    return found


def _of(trajectories: Sequence[Trajectory], task: str, behavior: str) -> list[Trajectory]:
    here = [item for item in trajectories if item.task == task]
    return here if behavior == ALL else [item for item in here if item.behavior == behavior]


def _name(task: str, behavior: str, *, several: bool) -> str:
    if not several:
        return behavior
    return task if behavior == ALL else f"{task}, {behavior}"


def _grouped(trajectories: Sequence[Trajectory]) -> Groups:
    groups: Groups = {}
    for item in trajectories:
        groups.setdefault(item.group, []).append(item)
    return groups


def _resampled_means(values: Values, side: str) -> Values:
    counts = generator("behaviour bootstrap", side).multinomial(
        len(values), np.full(len(values), 1 / len(values)), RESAMPLES
    )
    means: Values = counts @ values / len(values)
    return means


def _spread(values: Values) -> Spread:
    if len(values) < 2:
        return Spread(float(values.mean()), np.nan, np.nan, np.nan)
    low, high = np.quantile(_resampled_means(values, "one"), (0.025, 0.975))
    return Spread(float(values.mean()), float(values.std(ddof=1)), float(low), float(high))


def _difference(policy: Values, source: Values) -> Difference:
    gap = float(policy.mean() - source.mean())
    if min(len(policy), len(source)) < 2:
        return Difference(gap, np.nan, np.nan)
    moved = _resampled_means(policy, "policy") - _resampled_means(source, "source")
    low, high = np.quantile(moved, (0.025, 0.975))
    return Difference(gap, float(low), float(high))
