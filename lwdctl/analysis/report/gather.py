"""Gather a report from a workspace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lwdctl.analysis.report.clips import left_out, recorded_episodes
from lwdctl.analysis.report.curves import training_curves
from lwdctl.analysis.report.facts import facts_of
from lwdctl.analysis.report.lineage import lineage_of
from lwdctl.analysis.report.records import Describe, RecipeFacts, Report, Results
from lwdctl.analysis.report.results import results_of
from lwdctl.analysis.report.studies import KIND, find_analyses, show_analyses
from lwdctl.analysis.report.trace import trace
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.evaluation.results import ALL_TASKS

ABSENT = {
    "results": "No evaluation belongs to this.",
    "studies": "No analysis of these artifacts is in the workspace; `lwdctl analyze` makes them.",
    "curves": "Nothing that was trained belongs to this.",
    "clips": "No videos were recorded; `lwdctl eval --video N` records N episodes of every policy.",
}
"""Section to what is said where it is empty."""


def gather(
    leading: Sequence[Artifact],
    root: Path,
    describe: Describe,
    recipes: Sequence[RecipeFacts] = (),
    *,
    against: str = "",
    metric: str = "",
    progress: Progress | None = None,
) -> Report:
    """Gather everything that one report shows.

    Args:
        leading: What it is about: evaluations, or all artifacts of a recipe.
        root: Workspace that they stand in.
        describe: Tells how an artifact was made.
        recipes: The recipes that they come from.
        against: Label or policy that the others are tested against, or "".
        metric: Name of the score, or "".
        progress: Where to report.

    Raises:
        LwdctlError: A damaged evaluation, or no policy or metric of that name.
    """
    progress = progress or SilentProgress()
    progress.message(f"reading {', '.join(item.reference for item in leading)}")
    traced = trace(leading, root)
    evaluations = [item for item in leading if item.kind == "evaluation"]
    analyses = find_analyses(traced.found, root, describe)
    everything = trace([*leading, *analyses], root)
    lineage = lineage_of(everything.artifacts, everything.lost, describe)
    results = results_of(evaluations, root, against, metric, progress)
    studies = show_analyses([item for item in everything.artifacts if item.kind == KIND], describe)
    curves = training_curves(traced.artifacts)
    clips = recorded_episodes(evaluations)
    return Report(
        title=_title(leading, recipes),
        lead=tuple(_lead(results, recipes)),
        facts=tuple(facts_of(evaluations, traced.artifacts)),
        recipes=tuple(recipes),
        results=results,
        studies=studies,
        curves=curves,
        clips=clips,
        lineage=lineage,
        warnings=(*_warnings(evaluations, recipes), *lineage.alerts),
        missing=_missing(evaluations, results=results, studies=studies, curves=curves, clips=clips),
    )


def _missing(evaluations: Sequence[Artifact], **sections: Sequence[object]) -> dict[str, str]:
    notes = {key: ABSENT[key] for key, found in sections.items() if not found}
    return notes | ({"clips": left_out(evaluations)} if left_out(evaluations) else {})


def _title(leading: Sequence[Artifact], recipes: Sequence[RecipeFacts]) -> str:
    if recipes:
        return "; ".join(recipe.title for recipe in recipes)
    return "Evaluation of " + ", ".join(dict.fromkeys(item.name for item in leading))


def _lead(results: Sequence[Results], recipes: Sequence[RecipeFacts]) -> Iterator[str]:
    """Say the main number of every comparison, and count the expected numbers that were met."""
    for item in results:
        if item.headline:
            bar = item.headline.bars[0]
            yield f"{bar.label}: {item.headline.quantity.lower()} {bar.text} in {bar.episodes}."
    verdicts = [item.met for recipe in recipes for item in recipe.expected]
    met = sum(1 for item in verdicts if item)
    if verdicts:
        yield f"{met} of {len(verdicts)} expected numbers met."


def _warnings(evaluations: Sequence[Artifact], recipes: Sequence[RecipeFacts]) -> list[str]:
    warnings = []
    if any(recipe.smoke for recipe in recipes):
        warnings.append(
            "a toy run (--smoke): it shows that everything works, its numbers mean nothing"
        )
    warnings += [
        f"{recipe.path}: no artifact that is up to date for {', '.join(recipe.missing)}"
        for recipe in recipes
        if recipe.missing
    ]
    for item in evaluations:
        lost = sum(
            cell.get("errors", 0)
            for cell in item.manifest.summary.get("results", [])
            if cell.get("task") == ALL_TASKS
        )
        if lost:
            warnings.append(f"{item.reference} lost {lost} episodes to simulator errors")
    return warnings
