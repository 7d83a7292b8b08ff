"""Evaluations as results: one comparison of all where they allow it, one of each otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lwdctl.analysis.comparison import Comparison, compare
from lwdctl.analysis.comparison_records import ComparisonRow, Horizon, horizon_order
from lwdctl.analysis.evaluations import SUCCESS, Group, group_runs, matrix, read_evaluations
from lwdctl.analysis.figures import COSTS
from lwdctl.analysis.report.content import (
    PERTURBATION,
    Block,
    CaptionedTable,
    Picture,
    embed_figure,
)
from lwdctl.analysis.resample import mean_estimate
from lwdctl.analysis.tables import EMPTY, short, show, show_estimate
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import LwdctlError
from lwdctl.core.progress import Progress
from lwdctl.evaluation.results import ALL_TASKS, Condition, Estimate, ResultRow
from lwdctl.methods import METHODS

MOST_BARS = 12
MOST_COLUMNS = 12
"""Most conditions that stand beside each other in a table of tasks."""
CONTROLS = {
    "oracle": "the autoencoder alone: a demonstration's own latent, from its own initial state",
    "shuffled": "control: the latent of another task or behavior",
    "mean": "control: the mean of all latents",
    "nearest": "control: the latent of the recorded snippet with the most similar observation",
    "random": "control: the latent of a random recorded snippet of the same task and behavior",
}
"""Latent source to what its policies show."""
NOTHING_SOLVED = (
    "No episode of any policy was solved; locomotion defines no success. The bars show the"
    " environment's score instead."
)
_COSTS = {
    "flops_per_step": "FLOPs per step",
    "parameters_at_control_rate": "parameters run at every step",
    "parameters": "trained parameters used",
    "latency_step_ms": "step (ms, median)",
    "latency_replan_ms": "re-plan (ms, median)",
    "latency_threads": "threads",
}
EVALUATION = "evaluation"
_CONDITION = ("policy", "latent", "training seed", "horizon", PERTURBATION)


@dataclass(frozen=True)
class Bar:
    """A number of the headline; `more` stands beside its episodes."""

    label: str
    detail: str
    episodes: str
    estimate: Estimate
    more: str = ""

    def __str__(self) -> str:
        return show_estimate(self.estimate)


@dataclass(frozen=True)
class Headline:
    """The first numbers to read of one comparison: what the bars show, on an axis low to high."""

    quantity: str
    low: float
    high: float
    bars: tuple[Bar, ...]
    notes: tuple[str, ...]

    @property
    def axis(self) -> tuple[str, str]:
        """Text at the left and right end of the bars."""
        return show(self.low), show(self.high) if self.high <= 1 else short(self.high)

    def places(self, bar: Bar) -> list[float]:
        """Return value, low and high of a bar in percent of the axis."""
        estimate, span = bar.estimate, self.high - self.low
        value = self.low if math.isnan(estimate.value) else estimate.value
        numbers = (value, estimate.low, estimate.high)
        fractions = [((value if math.isnan(x) else x) - self.low) / span for x in numbers]
        return [round(100 * min(max(fraction, 0.0), 1.0), 2) for fraction in fractions]


@dataclass(frozen=True)
class Results(Block):
    """Evaluations that can be compared with each other."""

    headline: Headline | None = None


def results_of(
    evaluations: Sequence[Artifact],
    root: Path,
    against: str | None,
    metric: str | None,
    progress: Progress,
) -> tuple[Results, ...]:
    """Compare evaluations; where they cannot be compared with each other, each by itself.

    Raises:
        LwdctlError: A single evaluation has no such policy or metric.
    """
    if not evaluations:
        return ()
    try:
        runs = read_evaluations(evaluations, root)
        comparison = compare(runs, against, metric, progress)
    except LwdctlError as error:
        if len(evaluations) == 1 and (against or metric):
            raise
        if len(evaluations) == 1:
            return (_from_manifest(evaluations[0], error.message),)
        alone = [results_of([item], root, against, metric, progress)[0] for item in evaluations]
        why = f"not compared with the other evaluations: {error.message}"
        return tuple(replace(one, notes=(*one.notes, why)) for one in alone)
    tables = [
        CaptionedTable(table.columns, table.rows, caption) for caption, table in comparison.tables()
    ]
    tables += [*_task_tables(comparison), *_manifest_tables(evaluations)]
    result = Results(
        title=", ".join(item.reference for item in evaluations),
        headline=_headline(comparison, group_runs(runs)),
        tables=tuple(table.without_empty_columns() for table in tables),
        pictures=tuple(_pictures(comparison)),
        notes=(*comparison.notes, *comparison.missing_figures),
    )
    return (result,)


def manifest_rows(evaluations: Sequence[Artifact]) -> list[ResultRow]:
    """Return the result rows that the manifests of evaluations hold."""
    return [
        ResultRow.from_json(row)
        for artifact in evaluations
        for row in artifact.manifest.summary.get("results", [])
    ]


def _from_manifest(evaluation: Artifact, why: str) -> Results:
    """Show the results of the manifest where the episodes cannot be compared."""
    rows = manifest_rows([evaluation])
    cells = [
        (row.task, show(row.episodes), show_estimate(row.success), show(row.score)) for row in rows
    ]
    columns = ("task", "episodes", "success [95 %]", "score")
    table = _by_condition(rows, columns, cells, f"Results of {evaluation.reference}")
    tables = (table, *_manifest_tables([evaluation]))
    return Results(
        title=evaluation.reference,
        tables=tuple(table.without_empty_columns() for table in tables),
        notes=(f"no comparison: {why}",),
    )


def _pictures(comparison: Comparison) -> Iterator[Picture]:
    for name, figure in comparison.figures.items():
        if _adds_something(name, comparison):
            title = name.replace("_", " ").replace("-by-flops", "-by-FLOPs")
            title = title.replace("-by-", " against ")
            yield embed_figure(figure, f"{title[0].upper()}{title[1:]}, with 95 % intervals")


def _adds_something(name: str, comparison: Comparison) -> bool:
    """Return whether a figure shows more than the bars at the top."""
    rows = comparison.overall
    if name.startswith(f"{SUCCESS}-by-") and not _shows_success(comparison):
        return False
    for cost in COSTS:
        if name.endswith(f"-by-{cost.name}"):
            return len({cost.of(row) for row in rows} - {None, 0.0}) > 1
    return len({(row.horizon, row.perturbation) for row in rows} - {(None, 0.0)}) > 1


def _headline(comparison: Comparison, groups: Sequence[Group]) -> Headline:
    """Show the least perturbed condition: one bar per condition, the method first.

    Where nothing is solved, scores by behavior label are shown if there are any, because a mean
    over behaviors of different skill means little.
    """
    least = min(row.perturbation for row in comparison.overall)
    rows = [row for row in comparison.overall if row.perturbation == least]
    solved = _shows_success(comparison)
    metric = comparison.metric.replace("_", " ")
    bars = [] if solved else _scores_by_label(groups, comparison.metric, least)
    if not bars:
        several = len({row.horizon for row in rows} - {None}) > 1
        few = len(rows) <= MOST_BARS
        ordered = sorted(rows, key=lambda row: _rank(row, row.label, few=few))
        bars = [_bar(row, metric, solved=solved, several=several) for row in ordered]
    notes = [] if solved else [NOTHING_SOLVED]
    if len(bars) > MOST_BARS:
        notes.append(f"The first {MOST_BARS} of {len(bars)} conditions; all are in the tables.")
    if len(rows) < len(comparison.overall):
        name = f"perturbation {least:g}" if least else "no perturbation"
        notes.append(f"Shown: {name}. The other conditions are in the tables.")
    low, high = (0.0, 1.0) if solved else _span(bars)
    return Headline(
        quantity="Success" if solved else metric.capitalize(),
        low=low,
        high=high,
        bars=tuple(bars[:MOST_BARS]),
        notes=tuple(notes),
    )


def _shows_success(comparison: Comparison) -> bool:
    """Return whether something was solved, or no score is above zero either."""
    rows = comparison.overall
    scores = np.nan_to_num([row.score.value for row in rows])
    return any(row.successes for row in rows) or not scores.any()


def _scores_by_label(groups: Sequence[Group], metric: str, perturbation: float) -> list[Bar]:
    """Return the mean score of every policy and behavior label under one perturbation."""
    bars = []
    several = len({group.condition.horizon for group in groups} - {None}) > 1
    few = len(groups) <= MOST_BARS
    for group in sorted(groups, key=lambda item: _rank(item.condition, item.one.label, few=few)):
        condition, run = group.condition, group.one
        if condition.perturbation != perturbation:
            continue
        scores, states = matrix(group, metric)
        names = np.array([key.label for key in run.episode_keys])
        for label in sorted(set(names) - {""}):
            some = scores[:, names == label]
            if np.isnan(some).all():
                continue
            estimate = mean_estimate(some, states.of(names == label))
            name = f"{run.label}, {label}{_horizon(condition.horizon, several=several)}"
            bars.append(Bar(name, _role(condition), f"{estimate.n} episodes", estimate))
    return bars


def _role(condition: Condition | ComparisonRow) -> str:
    """Return what a policy with its latent source shows."""
    row = METHODS.all_rows().get(condition.policy)
    return CONTROLS.get(condition.latent, row.summary if row else "")


def _horizon(horizon: Horizon, *, several: bool) -> str:
    return f", horizon {horizon}" if several and horizon is not None else ""


def _bar(row: ComparisonRow, metric: str, *, solved: bool, several: bool) -> Bar:
    seeds = len(row.train_seeds)
    more = f" of {seeds} training seeds" if seeds > 1 else ""
    lost = f" ({row.errors} lost)" if row.errors else ""
    return Bar(
        label=row.label + _horizon(row.horizon, several=several),
        detail=_role(row),
        episodes=f"{row.episodes} episodes{more}{lost}",
        estimate=row.success if solved else row.score,
        more=f"{metric} {short(row.score.value)}" if solved else "none of them solved",
    )


def _rank(shown: Condition | ComparisonRow, label: str, *, few: bool) -> tuple[Any, ...]:
    """Rank the method first; where not all can be shown, the shortest horizons first."""
    policies, latents = [*METHODS, shown.policy], ["", *CONTROLS]
    control = latents.index(shown.latent) if shown.latent in CONTROLS else 0
    role, horizon = (policies.index(shown.policy), control, label), horizon_order(shown.horizon)
    return (role, horizon) if few else (horizon, role)


def _span(bars: Sequence[Bar]) -> tuple[float, float]:
    """Return an axis that begins at zero and holds every interval."""
    estimates = [bar.estimate for bar in bars]
    ends = [end for item in estimates for end in (item.value, item.low, item.high)]
    low, high = float(np.nanmin([0.0, *ends])), float(np.nanmax([0.0, *ends]))
    return (low, high) if high > low else (low, low + 1.0)


def _task_tables(comparison: Comparison) -> Iterator[CaptionedTable]:
    """Yield success per task: a row per task and a column per condition."""
    rows = [row for row in comparison.results if row.task != ALL_TASKS]
    for perturbation in sorted({row.perturbation for row in rows}):
        here = [row for row in rows if row.perturbation == perturbation]
        several = len({row.horizon for row in here} - {None}) > 1
        found: dict[str, dict[str, str]] = {}
        for row in here:
            name = row.label + _horizon(row.horizon, several=several)
            found.setdefault(name, {})[row.task] = show_estimate(row.success)
        names, tasks = list(found), dict.fromkeys(row.task for row in here)
        for start in range(0, len(names), MOST_COLUMNS):
            shown = names[start : start + MOST_COLUMNS]
            caption = "Success per task [95 %]"
            caption += f", perturbation {perturbation:g}" if perturbation else ""
            if len(names) > len(shown):
                caption += f", {start + 1} to {start + len(shown)} of {len(names)} conditions"
            cells = tuple(
                (task, *(found[name].get(task, EMPTY) for name in shown)) for task in tasks
            )
            yield CaptionedTable(("task", *shown), cells, caption, folded=True)


def _manifest_tables(evaluations: Sequence[Artifact]) -> Iterator[CaptionedTable]:
    """Yield what only the manifests hold: results by behavior label, and costs.

    Where there are several evaluations, which may differ in how policies act, rows name theirs.
    """
    several = len(evaluations) > 1
    held = [
        (item.reference if several else EMPTY, row)
        for item in evaluations
        for row in manifest_rows([item])
        if row.task == ALL_TASKS
    ]
    labeled = [(at, row, *found) for at, row in held for found in row.by_label.items()]
    if labeled:
        names = [key for key in labeled[0][1].metrics if key not in {"return", "final_success"}]
        columns = (
            EVALUATION, "label", "episodes", "solved", *names, "return (mean ± sd over episodes)",
            "return of the demonstrations restored",
        )  # fmt: skip
        cells = [(at, *_of_label(label, found, names)) for at, _, label, found in labeled]
        yield _by_condition([row for _, row, *_ in labeled], columns, cells, "By behavior label")
    costs = [(at, row) for at, row in held if row.cost]
    if costs:
        cells = [(at, *(_short_number(row.cost.get(key)) for key in _COSTS)) for at, row in costs]
        columns = (EVALUATION, *_COSTS.values())
        yield _by_condition([row for _, row in costs], columns, cells, "Cost of acting")


def _of_label(label: str, found: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    metrics, std = found.get("metrics", {}), found.get("return_std")
    total = show(metrics.get("return")) + ("" if std is None else f" ± {show(std)}")
    numbers = (found.get("episodes"), found.get("successes"), *map(metrics.get, names))
    return (label, *map(show, numbers), total, show(found.get("source_return")))


def _by_condition(
    rows: Sequence[ResultRow], columns: tuple[str, ...], cells: Sequence[tuple[str, ...]], what: str
) -> CaptionedTable:
    """Return a table with the condition of each row before its cells."""
    conditions = (
        (*map(show, (row.policy, row.latent, row.train_seed, row.horizon)),
         f"{row.perturbation:g}")
        for row in rows
    )  # fmt: skip
    joined = tuple((*one, *rest) for one, rest in zip(conditions, cells, strict=True))
    return CaptionedTable((*_CONDITION, *columns), joined, what)


def _short_number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else show(value)
