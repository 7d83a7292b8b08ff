"""The tables of a comparison and of the evaluations behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lwdctl.analysis.report.records import Grid
from lwdctl.analysis.results import Cell, Comparison, Control, PairedTest
from lwdctl.analysis.words import NOTHING, control_row, estimate, pair_row, show
from lwdctl.artifacts.artifact import Artifact
from lwdctl.evaluation.results import ALL_TASKS

MOST_COLUMNS = 12
"""Most conditions that stand beside each other in a table of tasks."""
PERTURBATION = "perturbation"
_COSTS = (
    ("flops_per_step", "operations per step"),
    ("parameters_at_control_rate", "weights run at every step"),
    ("parameters", "trained weights used"),
    ("latency_step_ms", "step (ms, median)"),
    ("latency_replan_ms", "re-plan (ms, median)"),
    ("latency_threads", "threads"),
)


def comparison_grids(comparison: Comparison) -> Iterator[Grid]:
    """Yield the tables of a comparison: conditions, paired tests, controls, tasks."""
    overall, metric = comparison.overall, comparison.metric
    yield lean(_conditions(overall, metric))
    if comparison.pairs:
        yield lean(_tests(comparison.pairs, comparison.against, metric))
    if comparison.controls:
        yield lean(_controls(comparison.controls, metric))
    yield from _tasks(comparison)


def evaluation_grids(evaluations: Sequence[Artifact]) -> Iterator[Grid]:
    """Yield what only the manifests say: results by behavior label, and costs."""
    cells = [
        cell
        for artifact in evaluations
        for cell in artifact.manifest.summary.get("results", [])
        if cell.get("task") == ALL_TASKS
    ]
    labeled = [cell for cell in cells if cell.get("by_label")]
    if labeled:
        yield lean(_labels(labeled))
    priced = [cell for cell in cells if cell.get("cost")]
    if priced:
        yield lean(_costs(priced))


def manifest_grid(artifact: Artifact) -> Grid:
    """Return an evaluation's own results, for want of a comparison."""
    rows = [
        (*_who(cell), show(cell.get("task")), show(cell.get("episodes")), _success(cell),
         show(cell.get("score")))
        for cell in artifact.manifest.summary.get("results", [])
    ]  # fmt: skip
    columns = (*_WHO, "task", "episodes", "success [95 %]", "score")
    return lean(Grid(f"Results of {artifact.reference}", columns, tuple(rows)))


def lean(grid: Grid) -> Grid:
    """Leave out the columns that say nothing in any row, or no disturbance in every row."""
    kept = [
        index
        for index, name in enumerate(grid.columns)
        if not grid.rows
        or {row[index] for row in grid.rows} - {NOTHING, "0" if name == PERTURBATION else NOTHING}
    ]
    columns = tuple(grid.columns[index] for index in kept)
    rows = tuple(tuple(row[index] for index in kept) for row in grid.rows)
    return replace(grid, columns=columns, rows=rows)


def _conditions(cells: Sequence[Cell], metric: str) -> Grid:
    columns = (
        "policy", "latent", "horizon", PERTURBATION, "training seeds", "episodes", "lost",
        "success [95 %]", f"{metric} [95 %]", "operations per step",
    )  # fmt: skip
    rows = [
        (
            cell.label,
            show(cell.latent),
            show(cell.horizon),
            f"{cell.perturbation:g}",
            ", ".join(str(seed) for seed in cell.train_seeds if seed is not None) or NOTHING,
            str(cell.episodes),
            show(cell.errors or None),
            estimate(cell.success, cell.success_low, cell.success_high, cell.success_deviation),
            estimate(cell.score, cell.score_low, cell.score_high, cell.score_deviation),
            NOTHING if cell.flops_per_step is None else f"{cell.flops_per_step:.3g}",
        )
        for cell in cells
    ]
    return Grid("All conditions, over all tasks", columns, tuple(rows))


def _tests(pairs: Sequence[PairedTest], against: str, metric: str) -> Grid:
    columns = (
        "policy", "against", "horizon", PERTURBATION, "initial states", "better", "worse",
        "success difference [95 %]", "p", "p (Holm)",
        f"{metric} difference [95 %]", f"p of {metric}", "p (Holm)",
    )  # fmt: skip
    caption = (
        f"Paired tests: minus {against} on the same initial states"
        " (better, worse: states solved more often, less often)"
    )
    return Grid(caption, columns, tuple(map(pair_row, pairs)))


def _controls(controls: Sequence[Control], metric: str) -> Grid:
    columns = (
        "policy", "horizon", PERTURBATION, "initial states", "success difference [95 %]",
        f"{metric} difference [95 %]",
    )  # fmt: skip
    caption = "Disturbed minus undisturbed: the same models on the same initial states"
    return Grid(caption, columns, tuple(map(control_row, controls)))


def _tasks(comparison: Comparison) -> Iterator[Grid]:
    """Yield success per task: a row per task and a column per condition."""
    cells = [cell for cell in comparison.cells if cell.task != ALL_TASKS]
    for perturbation in sorted({cell.perturbation for cell in cells}):
        here = [cell for cell in cells if cell.perturbation == perturbation]
        several = len({cell.horizon for cell in here} - {None}) > 1

        def name(cell: Cell, several: bool = several) -> str:
            return f"{cell.label}, horizon {show(cell.horizon)}" if several else cell.label

        names = list(dict.fromkeys(map(name, here)))
        for start in range(0, len(names), MOST_COLUMNS):
            shown = names[start : start + MOST_COLUMNS]
            caption = "Success per task [95 %]"
            caption += f", perturbation {perturbation:g}" if perturbation else ""
            more = f", {start + 1} to {start + len(shown)} of {len(names)} conditions"
            yield _matrix(caption + (more if len(names) > len(shown) else ""), here, shown, name)


def _matrix(
    caption: str, cells: Sequence[Cell], names: Sequence[str], name: Callable[[Cell], str]
) -> Grid:
    found = {
        (cell.task, name(cell)): estimate(cell.success, cell.success_low, cell.success_high)
        for cell in cells
    }
    tasks = dict.fromkeys(cell.task for cell in cells)
    rows = tuple((task, *(found.get((task, item), NOTHING) for item in names)) for task in tasks)
    return Grid(caption, ("task", *names), rows, folded=True)


_WHO = ("policy", "latent", "training seed", "horizon", PERTURBATION)


def _who(cell: Mapping[str, Any]) -> tuple[str, ...]:
    keys = ("policy", "latent", "train_seed", "horizon")
    return (*(show(cell.get(key)) for key in keys), f"{cell.get('perturbation') or 0:g}")


def _success(cell: Mapping[str, Any]) -> str:
    return estimate(cell.get("success"), cell.get("success_low"), cell.get("success_high"))


def _labels(cells: Sequence[Mapping[str, Any]]) -> Grid:
    names = [key for key in cells[0].get("metrics", {}) if key not in {"return", "final_success"}]
    rows = []
    for cell in cells:
        for label, found in cell["by_label"].items():
            metrics = found.get("metrics", {})
            spread = found.get("return_std")
            total = show(metrics.get("return"))
            rows.append((
                *_who(cell), label, show(found.get("episodes")), show(found.get("successes")),
                *(show(metrics.get(key)) for key in names),
                f"{total} ± {show(spread)}" if spread is not None else total,
                show(found.get("source_return")),
            ))  # fmt: skip
    columns = (
        *_WHO, "label", "episodes", "solved", *names, "return (mean ± sd over episodes)",
        "return of the demonstrations restored",
    )  # fmt: skip
    return Grid("By behavior label", columns, tuple(rows))


def _costs(cells: Sequence[Mapping[str, Any]]) -> Grid:
    def number(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else show(value)

    rows = [(*_who(cell), *(number(cell["cost"].get(key)) for key, _ in _COSTS)) for cell in cells]
    columns = (*_WHO, *(title for _, title in _COSTS))
    return Grid("What acting costs", columns, tuple(rows))
