"""Build a report from a workspace, and render it: no script, no address outside the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import lwdctl
from lwdctl.analysis.report.analyses import ANALYSIS, find_analyses, show_analyses
from lwdctl.analysis.report.content import Block, CaptionedTable
from lwdctl.analysis.report.episodes import RecordedEpisode, left_out, recorded_episodes
from lwdctl.analysis.report.lineage import (
    Lineage,
    commit_of,
    describe_lineage,
    seconds_of,
    settings_of,
    show_minute,
    trace,
)
from lwdctl.analysis.report.results import Results, manifest_rows, results_of
from lwdctl.analysis.report.training_curves import training_curves
from lwdctl.analysis.tables import EMPTY, show
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.evaluation.results import ALL_TASKS

TEMPLATES = Path(__file__).parent / "templates"
ABSENT = {
    "results": "There is no evaluation among these artifacts.",
    "analyses": "No analysis of these artifacts is in the workspace; `lwdctl analyze` makes them.",
    "curves": "There is no trained model among these artifacts.",
    "episodes": "No videos were recorded; `lwdctl eval --video N` records N episodes of every"
    " policy.",
}
"""Section to its text where it is empty."""
_NUMBER = re.compile(r"[<+-]?[\d,]*\.?\d+(e[+-]?\d+)?( .*)?")


@dataclass(frozen=True)
class Expected:
    """An expected number beside the measured one; `met` is None where nothing was measured."""

    metric: str
    where: str
    measured: str
    expected: str
    met: bool | None
    source: str


@dataclass(frozen=True)
class RecipeResults:
    """A recipe and what its stages gave.

    Attributes:
        title: What the experiment shows.
        path: Its file.
        paper: Table or figure of the paper that it reproduces.
        time: Wall time that the recipe states.
        device: Machine that the time was measured on.
        command: The command line that runs it.
        smoke: Whether its toy size was run.
        expected: Expected numbers beside measured ones; empty for a toy run.
        missing: Ids of stages without an artifact that is up to date.
    """

    title: str
    path: str
    paper: str
    time: str
    device: str
    command: str
    smoke: bool
    expected: tuple[Expected, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The whole page; `missing` maps an empty section to the reason."""

    title: str
    lead: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    recipes: tuple[RecipeResults, ...]
    results: tuple[Results, ...]
    analyses: tuple[Block, ...]
    curves: tuple[Block, ...]
    episodes: tuple[RecordedEpisode, ...]
    lineage: Lineage
    warnings: tuple[str, ...]
    missing: Mapping[str, str]


def build_report(
    sources: Sequence[Artifact],
    root: Path,
    recipes: Sequence[RecipeResults] = (),
    *,
    against: str | None = None,
    metric: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Gather everything that one report shows.

    Args:
        sources: What the report is about: evaluations, or all artifacts of a recipe.
        root: Workspace that they stand in.
        recipes: The recipes that they come from.
        against: Label or policy that the others are tested against; None takes `lwd`.
        metric: Name of the score; None takes the environment's first metric.
        progress: Where to report.

    Raises:
        LwdctlError: A damaged evaluation, or no policy or metric of that name.
    """
    progress = progress or SilentProgress()
    progress.message(f"reading {', '.join(item.reference for item in sources)}")
    traced = trace(sources, root)
    evaluations = [item for item in sources if item.type == "evaluation"]
    everything = trace([*sources, *find_analyses(traced.found, root)], root)
    lineage = describe_lineage(everything)
    results = results_of(evaluations, root, against, metric, progress)
    analyses = show_analyses([item for item in everything.artifacts if item.type == ANALYSIS])
    curves = training_curves(traced.artifacts)
    episodes = recorded_episodes(evaluations)
    sections = {"results": results, "analyses": analyses, "curves": curves, "episodes": episodes}
    missing = {name: ABSENT[name] for name, content in sections.items() if not content}
    if left_out(evaluations):
        missing["episodes"] = left_out(evaluations)
    return Report(
        title=_title(sources, recipes),
        lead=tuple(_lead(results, recipes)),
        facts=tuple(_facts(evaluations, traced.artifacts)),
        recipes=tuple(recipes),
        results=results,
        analyses=analyses,
        curves=curves,
        episodes=episodes,
        lineage=lineage,
        warnings=(*_warnings(evaluations, recipes), *lineage.alerts),
        missing=missing,
    )


def render_page(report: Report) -> str:
    """Return the HTML page; the same report gives the same text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (numeric_columns, commit_of, seconds_of, settings_of, show):
        environment.globals[function.__name__] = function
    environment.filters["minute"] = show_minute
    template = environment.get_template("report.html")
    return template.render(report=report, version=lwdctl.__version__) + "\n"


def numeric_columns(table: CaptionedTable) -> list[bool]:
    """Return which columns hold numbers, to be set flush right."""
    return [
        any(row[index] != EMPTY for row in table.rows)
        and all(row[index] == EMPTY or bool(_NUMBER.fullmatch(row[index])) for row in table.rows)
        for index in range(len(table.columns))
    ]


def _title(sources: Sequence[Artifact], recipes: Sequence[RecipeResults]) -> str:
    if recipes:
        return "; ".join(recipe.title for recipe in recipes)
    return "Evaluation of " + ", ".join(dict.fromkeys(item.name for item in sources))


def _lead(results: Sequence[Results], recipes: Sequence[RecipeResults]) -> Iterator[str]:
    """Yield the main number of every comparison, and how many expected numbers were met."""
    for item in results:
        if item.headline:
            bar = item.headline.bars[0]
            yield f"{bar.label}: {item.headline.quantity.lower()} {bar} in {bar.episodes}."
    verdicts = [item.met for recipe in recipes for item in recipe.expected]
    if verdicts:
        yield f"{sum(map(bool, verdicts))} of {len(verdicts)} expected numbers met."


def _warnings(evaluations: Sequence[Artifact], recipes: Sequence[RecipeResults]) -> Iterator[str]:
    if any(recipe.smoke for recipe in recipes):
        yield "a toy run (--smoke): it shows that everything works, its numbers mean nothing"
    for recipe in recipes:
        if recipe.missing:
            yield f"{recipe.path}: no artifact that is up to date for {', '.join(recipe.missing)}"
    for item in evaluations:
        lost = sum(row.errors for row in manifest_rows([item]) if row.task == ALL_TASKS)
        if lost:
            yield f"{item.reference} lost {lost} episodes to simulator errors"


def _facts(
    evaluations: Sequence[Artifact], artifacts: Sequence[Artifact]
) -> Iterator[tuple[str, str]]:
    """Yield name and value of what was run, on which data, when and where."""
    rows = manifest_rows(evaluations)
    if rows:
        yield "Environment", _listed(row.env for row in rows)
        tasks = dict.fromkeys(row.task for row in rows if row.task != ALL_TASKS)
        yield f"Tasks ({len(tasks)})", _listed(tasks)
        names = (
            f"{row.policy} ({row.latent} latent)" if row.latent else row.policy for row in rows
        )
        yield "Policies", _listed(names)
    for item in artifacts:
        if item.type == "snippets":
            yield f"Data ({item.name})", _data(item.manifest.summary)
    for protocol in dict.fromkeys(item.manifest.summary.get("protocol") for item in evaluations):
        if protocol:
            yield "Protocol", str(protocol)
    times = [str(item.manifest.provenance.get("finished") or "") for item in artifacts]
    hosts = [item.manifest.provenance.get("host") or {} for item in artifacts]
    machines = _listed(
        f"{show(host.get('name'))} ({show(host.get('processors'))} processors)" for host in hosts
    )
    devices = _listed(item.manifest.provenance.get("device") for item in artifacts)
    span = " to ".join(dict.fromkeys([show_minute(min(times)), show_minute(max(times))]))
    yield "Made", f"{span}, on {machines}, device {devices}"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(show(value) for value in values))


def _data(summary: Mapping[str, Any]) -> str:
    parts = [f"{show(summary.get('episodes'))} demonstrations"]
    if summary.get("validation_episodes"):
        parts[0] += f" ({summary['validation_episodes']} of them held out)"
    if summary.get("steps"):
        parts.append(f"{summary['steps']:,} steps")
    labels = {key: count for key, count in summary.get("episodes_by_label", {}).items() if key}
    if labels:
        parts.append("by label: " + show(labels))
    if summary.get("success") is not None:
        parts.append(f"success rate of the demonstrations {show(summary['success'])}")
    if summary.get("format"):
        parts.append(f"read as {summary['format']}")
    return ", ".join(parts)
