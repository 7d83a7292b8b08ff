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
        low: Lower end of the mean's 95 % bootstrap interval over trajectories.
        high: Upper end.
        deviation: Standard deviation between trajectories.
    """

    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean of a policy minus mean of the source, with a 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Compared:
    """The trajectories of one behaviour, as many of every group.

    Attributes:
        behaviour: Label, or `"all"`.
        count: Trajectories per group.
        groups: Group to the trajectories drawn, the source first.
        spreads: Group to metric to its mean.
        differences: Policy to metric to its difference from the source, where both have it.
        divergences: Quantity (`"foot contacts"` or a metric) to policy to divergence from the
            source; under `"sos"` of the source from itself.
    """

    behaviour: str
    count: int
    groups: Groups
    spreads: Mapping[str, Mapping[str, Spread]]
    differences: Mapping[str, Mapping[str, Difference]]
    divergences: Mapping[str, Mapping[str, Divergence]] = field(default_factory=dict)


SOS = "sos"
CONTACTS = "foot contacts"


def compare(trajectories: Sequence[Trajectory], seed: int, progress: Progress) -> list[Compared]:
    """Compare every behaviour that a policy was run for.

    Trajectories without a label, where the source has several, are compared with all of it.

    Args:
        trajectories: Of the source and of every policy.
        seed: Fixes the draws.
        progress: Where to report.

    Raises:
        ArtifactError: No behaviour has trajectories on both sides.
    """
    policies = [item for item in trajectories if item.group != SOURCE]
    found, behaviours = [], sorted({item.behaviour for item in policies})
    with progress.task("compare", len(behaviours), "behaviour") as bar:
        for behaviour in behaviours:
            every = trajectories if behaviour == ALL else _of(trajectories, behaviour)
            groups = _grouped(every)
            if len(groups) > 1 and SOURCE in groups:
                found.append(_compared(behaviour, groups, seed))
            bar.advance()
    if not found:
        raise ArtifactError(
            "the data holds no trajectory of any behaviour that was evaluated",
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


def _compared(behaviour: str, groups: Groups, seed: int) -> Compared:
    drawn = draw_equally(groups, behaviour, seed)
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
        behaviour, count, drawn, spreads, differences, _divergences(groups, behaviour, seed)
    )


def _divergences(groups: Groups, behaviour: str, seed: int) -> dict[str, dict[str, Divergence]]:
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
        key = f"{behaviour} {quantity} {seed}"
        yardstick = Yardstick(source, size, pairs or [(0,)], bounds, key)
        found[quantity] = {SOS: yardstick.itself()} | {
            name: yardstick.against(values_of(items, names))
            for name, items in groups.items()
            if name != SOURCE
        }
    return found


def _of(trajectories: Sequence[Trajectory], behaviour: str) -> list[Trajectory]:
    return [item for item in trajectories if item.behaviour == behaviour]


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
    low, high = np.quantile(_resampled_means(values, "one"), (0.025, 0.975))
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Spread(float(values.mean()), deviation, float(low), float(high))


def _difference(policy: Values, source: Values) -> Difference:
    moved = _resampled_means(policy, "policy") - _resampled_means(source, "source")
    low, high = np.quantile(moved, (0.025, 0.975))
    return Difference(float(policy.mean() - source.mean()), float(low), float(high))
