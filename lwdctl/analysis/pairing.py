"""Runs side by side: the same protocol, the same initial states, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lwdctl.analysis.evaluations import Run, Start, state_of
from lwdctl.analysis.resample import States, Values, state_differences
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.evaluation.results import ALL_TASKS

SUCCESS = "success"


@dataclass(frozen=True)
class Group:
    """The training seeds of one policy under one condition, in order of the seed."""

    runs: tuple[Run, ...]

    @property
    def one(self) -> Run:
        """A run that stands for what all share: label, horizon, perturbation, tasks."""
        return self.runs[0]

    @property
    def restores(self) -> bool:
        """Whether it began from recorded starts."""
        return bool(self.one.store)


@dataclass(frozen=True)
class Pair:
    """Two groups on the episodes that both know: (seed, episode) each, and where those began."""

    first: Values
    second: Values
    states: States

    @property
    def differences(self) -> Values:
        """(state,) difference of the means over training seeds and a state's labels."""
        return state_differences(self.first, self.second, self.states)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Gather training seeds.

    Raises:
        ArtifactError: Training seeds of one policy met different initial states.
    """
    found: dict[object, list[Run]] = {}
    for run in sorted(runs, key=lambda item: item.order):
        found.setdefault(run.order[:3], []).append(run)
    for members in found.values():
        for other in members[1:]:
            require_same_starts(members[0], other)
    return [Group(tuple(members)) for members in found.values()]


def matrix(group: Group, quantity: str, task: str = ALL_TASKS) -> tuple[Values, States]:
    """Return values (seed, episode), NaN where lost, and where the episodes began.

    Args:
        group: Whose episodes.
        quantity: `"success"` or the name of a metric.
        task: One task, or all.

    Raises:
        ConfigError: The episodes hold no such metric.
    """
    starts = [start for start in group.one.starts if task in {ALL_TASKS, start[0]}]
    tasks, places = group.one.tasks, [state_of(start) for start in starts]
    numbers = {place: index for index, place in enumerate(dict.fromkeys(places))}
    states = States(
        np.array([tasks.index(start[0]) for start in starts], dtype=np.intp),
        np.array([numbers[place] for place in places], dtype=np.intp),
    )
    rows = [_row(run, quantity, starts) for run in group.runs]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(starts)), states


def align(first: Group, second: Group, quantity: str, *, same_models: bool = False) -> Pair | None:
    """Put two groups beside each other, episode by episode.

    Args:
        first: One policy or condition.
        second: The other.
        quantity: `"success"` or the name of a metric.
        same_models: Keep only training seeds that both have, in the same order.

    Returns:
        The pair, or None where nothing is left to pair.

    Raises:
        ArtifactError: They met different initial states.
        ConfigError: The episodes hold no such metric.
    """
    require_same_starts(first.one, second.one)
    if same_models:
        seeds = {run.train_seed for run in first.runs} & {run.train_seed for run in second.runs}
        first, second = _only(first, seeds), _only(second, seeds)
        if not seeds:
            return None
    one, states = matrix(first, quantity)
    other, _ = matrix(second, quantity)
    known = ~np.isnan(one).all(axis=0) & ~np.isnan(other).all(axis=0)
    return Pair(one[:, known], other[:, known], states.of(known)) if known.any() else None


def require_one_protocol(runs: Sequence[Run]) -> None:
    """Refuse runs whose episodes are not of one kind.

    Raises:
        ArtifactError: Two differ in environment, step limit, or how often they are disturbed.
    """
    for key, name in (("env", "environment"), ("max_steps", "step limit")):
        _require_equal(runs, key, name)
    disturbed = [run for run in runs if run.perturbation]
    _require_equal(disturbed, "perturbation_probability", "probability of a disturbance")


def require_same_starts(first: Run, second: Run) -> None:
    """Refuse to pair runs that did not meet the same initial states and disturbances.

    Raises:
        ArtifactError: Tasks or initial states differ.
    """
    hint = "evaluate both with the same --task, --episodes and --seed"
    if first.tasks != second.tasks:
        raise ArtifactError(
            f"{first.where} ran {_listed(first.tasks)}, {second.where} {_listed(second.tasks)}",
            hint,
        )
    if first.store != second.store or first.starts != second.starts:
        shared = 0 if first.store != second.store else len({*first.starts} & {*second.starts})
        raise ArtifactError(
            f"{first.where} and {second.where} began from different initial states:"
            f" {len(first.starts)} and {len(second.starts)}, {shared} in common",
            hint,
        )


def _only(group: Group, seeds: set[int | None]) -> Group:
    return Group(tuple(run for run in group.runs if run.train_seed in seeds))


def _row(run: Run, quantity: str, starts: Sequence[Start]) -> list[float]:
    known = {}
    for episode in run.episodes:
        if episode.error:
            continue
        if quantity != SUCCESS and quantity not in episode.values:
            raise ConfigError(
                f"{run.where} has no metric '{quantity}'", did_you_mean(quantity, episode.values)
            )
        value = episode.success if quantity == SUCCESS else episode.values[quantity]
        known[episode.start] = float(value)
    return [known.get(start, float("nan")) for start in starts]


def _require_equal(runs: Sequence[Run], key: str, name: str) -> None:
    for run in runs[1:]:
        one, other = getattr(runs[0], key), getattr(run, key)
        if one != other:
            raise ArtifactError(
                f"{runs[0].source} and {run.source} differ in their {name}: {one} and {other}",
                "compare evaluations of one protocol only",
            )


def _listed(tasks: Sequence[str]) -> str:
    return ", ".join(tasks) if len(tasks) <= 4 else f"{len(tasks)} tasks"
