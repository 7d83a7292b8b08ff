"""Runs side by side: one protocol, the same initial states, and the reference to test against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lwdctl.analysis.comparison_records import SAMPLED
from lwdctl.analysis.evaluations import EpisodeKey, Run, episode_key, values_of
from lwdctl.analysis.resample import Pair, States, Values
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.evaluation.results import ALL_TASKS, Condition

SUCCESS = "success"
METHOD = "lwd"


@dataclass(frozen=True)
class Group:
    """One condition: the runs of all its training seeds, in order of the seed."""

    runs: tuple[Run, ...]

    @property
    def one(self) -> Run:
        """A run that stands for what all share: label, tasks and initial states."""
        return self.runs[0]

    @property
    def condition(self) -> Condition:
        """The condition that all share but for the training seed."""
        return self.runs[0].row

    @property
    def train_seeds(self) -> tuple[int | None, ...]:
        """Training seeds of the models."""
        return tuple(run.row.train_seed for run in self.runs)

    def __str__(self) -> str:
        """Return how notes name it."""
        condition = self.condition
        horizon = "" if condition.horizon is None else f", horizon {condition.horizon}"
        return f"{self.one.label}{horizon}, perturbation {condition.perturbation:g}"


@dataclass(frozen=True)
class Reference:
    """The reference of a comparison.

    Attributes:
        label: Its label, or "" where nothing is tested.
        policy: Its policy.
        notes: What was chosen by default.
    """

    label: str
    policy: str
    notes: tuple[str, ...] = ()

    def of(self, group: Group, groups: Sequence[Group]) -> list[Group]:
        """Return the groups that `group` is tested against.

        They have its perturbation and its horizon. A policy without a horizon is tested
        against every horizon of the reference; a reference with a single one is taken for
        all. What began from recorded initial states is tested only against the reference's
        policy begun from the same.
        """
        if not self.label or self.label == group.one.label:
            return []
        label = self._label_for(group, groups)
        found = [
            other
            for other in groups
            if other.one.label == label != group.one.label
            and other.condition.perturbation == group.condition.perturbation
        ]
        same = [other for other in found if other.condition.horizon == group.condition.horizon]
        if same or len(found) == 1 or group.condition.horizon is None:
            return same or found
        return []

    def _label_for(self, group: Group, groups: Sequence[Group]) -> str:
        if not group.one.store:
            return self.label
        latent = group.condition.latent
        labels = {
            other.one.label
            for other in groups
            if other.one.store
            and (other.condition.policy, other.condition.latent) == (self.policy, latent)
        }
        return min(labels, default="")


def choose_reference(runs: Sequence[Run], wanted: str | None = None) -> Reference:
    """Choose the reference: by label, else by policy, else `lwd` if it is there.

    Raises:
        ConfigError: No policy has the name that was given.
    """
    policies = {run.label: run.row.policy for run in runs}
    name = wanted or METHOD
    if name in policies:
        return Reference(name, policies[name])
    own = [run for run in runs if run.row.latent in {"", SAMPLED}]
    named = sorted({run.label for run in own if run.row.policy == name})
    if not named and wanted:
        raise ConfigError(f"no evaluated policy is '{wanted}'", did_you_mean(wanted, policies))
    if not named:
        note = "no paired tests: there is no policy 'lwd'; name a reference with --against"
        return Reference("", "", (note,))
    notes = (f"tested against '{named[0]}'; --against takes any of: {', '.join(named)}",)
    return Reference(named[0], name, notes if len(named) > 1 else ())


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Gather the training seeds of every condition.

    Raises:
        ArtifactError: Training seeds of one policy met different initial states.
    """
    found: dict[object, list[Run]] = {}
    for run in sorted(runs, key=lambda item: item.order):
        found.setdefault(run.order[:3], []).append(run)
    for members in found.values():
        for other in members[1:]:
            check_same_states(members[0], other)
    return [Group(tuple(members)) for members in found.values()]


def matrix(group: Group, quantity: str, task: str = ALL_TASKS) -> tuple[Values, States]:
    """Return values (seed, episode), NaN where lost, and the initial states of the episodes.

    `quantity` is `"success"` or the name of a metric, `task` one task or `"all"`.

    Raises:
        ConfigError: The episodes hold no such metric.
    """
    keys = [key for key in group.one.episode_keys if task in {ALL_TASKS, key.task}]
    tasks, places = group.one.tasks, [key.initial_state for key in keys]
    numbers = {place: index for index, place in enumerate(dict.fromkeys(places))}
    states = States(
        np.array([tasks.index(key.task) for key in keys], dtype=np.intp),
        np.array([numbers[place] for place in places], dtype=np.intp),
    )
    rows = [_row(run, quantity, keys) for run in group.runs]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(keys)), states


def align(first: Group, second: Group, quantity: str, *, same_models: bool = False) -> Pair | None:
    """Put two groups side by side, or return None where no episode of both ran to its end.

    With `same_models`, only the training seeds that both have are kept, in the same order.

    Raises:
        ArtifactError: They met different initial states.
        ConfigError: The episodes hold no such metric.
    """
    check_same_states(first.one, second.one)
    if same_models:
        seeds = {*first.train_seeds} & {*second.train_seeds}
        first, second = (
            Group(tuple(run for run in group.runs if run.row.train_seed in seeds))
            for group in (first, second)
        )
        if not seeds:
            return None
    one, states = matrix(first, quantity)
    other, _ = matrix(second, quantity)
    known = ~np.isnan(one).all(axis=0) & ~np.isnan(other).all(axis=0)
    if not known.any():
        return None
    return Pair(one[:, known], other[:, known], states.of(known), same_models)


def check_one_protocol(runs: Sequence[Run]) -> None:
    """Check that the episodes of all runs can be compared.

    Raises:
        ArtifactError: Two runs differ in environment, step limit, or perturbation probability.
    """
    runs = sorted(runs, key=lambda run: run.source)
    _check_equal(runs, lambda run: run.row.env, "environment")
    _check_equal(runs, lambda run: run.max_steps, "step limit")
    perturbed = [run for run in runs if run.row.perturbation]
    name = "probability of a perturbation"
    _check_equal(perturbed, lambda run: run.perturbation_probability, name)


def check_same_states(first: Run, second: Run) -> None:
    """Check that two runs met the same initial states and perturbations.

    Raises:
        ArtifactError: Tasks or initial states differ.
    """
    hint = "evaluate both with the same tasks, episodes and seed"
    if first.tasks != second.tasks:
        raise ArtifactError(
            f"{first} ran {_listed(first.tasks)}, {second} {_listed(second.tasks)}",
            hint,
        )
    if first.store != second.store or first.episode_keys != second.episode_keys:
        shared = (
            0
            if first.store != second.store
            else len({*first.episode_keys} & {*second.episode_keys})
        )
        raise ArtifactError(
            f"{first} and {second} began from different initial states:"
            f" {len(first.episode_keys)} and {len(second.episode_keys)}, {shared} in common",
            hint,
        )


def _row(run: Run, quantity: str, keys: Sequence[EpisodeKey]) -> list[float]:
    known = {}
    for episode in run.episodes:
        if episode.error:
            continue
        values = {**values_of(episode), SUCCESS: float(episode.success)}
        if quantity not in values:
            raise ConfigError(f"{run} has no metric '{quantity}'", did_you_mean(quantity, values))
        known[episode_key(episode)] = values[quantity]
    return [known.get(key, float("nan")) for key in keys]


def _check_equal(runs: Sequence[Run], value: Callable[[Run], Any], name: str) -> None:
    for run in runs[1:]:
        one, other = value(runs[0]), value(run)
        if one != other:
            first, second = runs[0].source or runs[0], run.source or run
            raise ArtifactError(
                f"{first} and {second} differ in their {name}: {one} and {other}",
                "compare evaluations of one protocol only",
            )


def _listed(tasks: Sequence[str]) -> str:
    return ", ".join(tasks) if len(tasks) <= 4 else f"{len(tasks)} tasks"
