"""Evaluations as results: one comparison of all where they allow it, one of each otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lwdctl.analysis.comparison import compare
from lwdctl.analysis.figures import COSTS, draw_figures, left_out
from lwdctl.analysis.pairing import SUCCESS, group_runs
from lwdctl.analysis.report.headline import headline, score_by_label, shows_success
from lwdctl.analysis.report.pictures import draw
from lwdctl.analysis.report.records import Picture, Results
from lwdctl.analysis.report.tables import comparison_grids, evaluation_grids, manifest_grid
from lwdctl.analysis.results import METHODS, Comparison
from lwdctl.analysis.runs import read_runs
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import LwdctlError
from lwdctl.core.progress import Progress


def results_of(
    evaluations: Sequence[Artifact], root: Path, against: str, metric: str, progress: Progress
) -> tuple[Results, ...]:
    """Compare evaluations; where they cannot stand in one comparison, each has its own.

    Args:
        evaluations: Of kind `evaluation`.
        root: Workspace to follow their lineage in.
        against: Label or policy that the others are tested against, or "".
        metric: Name of the score, or "".
        progress: Where to report.

    Raises:
        LwdctlError: A single evaluation has no such policy or metric.
    """
    if not evaluations:
        return ()
    try:
        return (_together(evaluations, root, against, metric, progress),)
    except LwdctlError as error:
        if len(evaluations) == 1:
            if against or metric:
                raise
            return (_alone(evaluations[0], error.message),)
        why = f"not compared with the other evaluations: {error.message}"
    answer = []
    for item in evaluations:
        (one,) = results_of([item], root, against, metric, progress)
        notes = (*one.notes, why)
        answer.append(Results(one.title, one.headline, one.grids, one.pictures, notes, one.methods))
    return tuple(answer)


def _together(
    evaluations: Sequence[Artifact], root: Path, against: str, metric: str, progress: Progress
) -> Results:
    runs = read_runs(evaluations, root)
    comparison = compare(runs, against, metric, progress)
    labels = score_by_label(group_runs(runs), comparison.metric)
    return Results(
        title=", ".join(item.reference for item in evaluations),
        headline=headline(comparison, labels),
        grids=(*comparison_grids(comparison), *evaluation_grids(evaluations)),
        pictures=tuple(_pictures(comparison)),
        notes=(*comparison.notes, *left_out(comparison)),
        methods=tuple(METHODS.items()),
    )


def _alone(evaluation: Artifact, why: str) -> Results:
    """Show what the manifest says where the episodes cannot be compared."""
    return Results(
        title=evaluation.reference,
        headline=None,
        grids=(manifest_grid(evaluation), *evaluation_grids([evaluation])),
        pictures=(),
        notes=(f"no comparison: {why}",),
    )


def _pictures(comparison: Comparison) -> Iterator[Picture]:
    for name, figure in draw_figures(comparison):
        if _says_something(name, comparison):
            words = name.replace("_", " ").replace("-by-", " against ")
            yield draw(figure, f"{words.capitalize()}, with 95 % intervals")


def _says_something(name: str, comparison: Comparison) -> bool:
    """Tell whether a figure shows more than the bars at the top."""
    cells = comparison.overall
    if name.startswith(f"{SUCCESS}-by-") and not shows_success(comparison):
        return False
    for cost in COSTS:
        if name.endswith(f"-by-{cost.name}"):
            return len({cost.of(cell) for cell in cells} - {None, 0.0}) > 1
    return len({(cell.horizon, cell.perturbation) for cell in cells} - {(None, 0.0)}) > 1
