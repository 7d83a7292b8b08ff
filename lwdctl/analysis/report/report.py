"""Build a report from a workspace, and render it: no script, no address outside the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment

from lwdctl.analysis.comparison import STATISTICS
from lwdctl.analysis.report.content import (
    MOST_FOLDED,
    TRAINED,
    Block,
    CaptionedTable,
    recorded_episodes,
    show_analysis,
    training_curves,
)
from lwdctl.analysis.report.inspection import MOST_ROWS, data_pictures
from lwdctl.analysis.report.pages import page_templates, show_minute
from lwdctl.analysis.report.results import Results, manifest_rows, results_of
from lwdctl.analysis.tables import EMPTY, gather, show
from lwdctl.artifacts import lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.core.records import Finding
from lwdctl.core.untrusted import parse_json, typed
from lwdctl.data.inspection_text import labels_table, ranges_table
from lwdctl.data.quality.ingest_report import INGEST_REPORT
from lwdctl.evaluation.results import ALL_TASKS

COMMIT = 9
"""Characters of a commit's name to show."""


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
        paper: Table or figure of the paper that it reproduces.
        time: Wall time that the recipe states, on the machine `device`.
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


class Report(NamedTuple):
    """The HTML page, and what a reader must know first."""

    html: str
    warnings: tuple[str, ...]


def build_report(
    sources: Sequence[Artifact],
    root: Path,
    recipes: Sequence[RecipeResults] = (),
    *,
    against: str | None = None,
    metric: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Gather everything that one report shows, and render it; the same gives the same bytes.

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
    progress.message(f"reading {_references(sources)}")
    own, _ = lineage.trace(sources, root)
    evaluations = [item for item in sources if item.type == "evaluation"]
    everything, lost = lineage.trace([*sources, *find_analyses(own, root)], root)
    results = results_of(evaluations, root, against, metric, progress)
    episodes, left_out = recorded_episodes(evaluations)
    artifacts = list(everything.values())
    problems = list(_problems(artifacts, lost))
    alerts = (f"{what} (see Lineage)" for what, _ in problems)
    missing = "# {}: its manifest records no command"
    commands = (
        str(item.manifest.provenance.get("command") or missing.format(item.reference))
        for item in artifacts
    )
    named = "; ".join(recipe.title for recipe in recipes)
    listed = ", ".join(dict.fromkeys(item.name for item in sources))
    warnings = (*_warnings(evaluations, recipes), *alerts)
    report = {
        "title": named if recipes else f"Evaluation of {listed}",
        "lead": list(_lead(results, recipes)),
        "facts": list(_facts(evaluations, list(own.values()))),
        "recipes": recipes,
        "results": results,
        "data": [
            block
            for item in artifacts
            if item.type == "snippets" and (block := show_data(item)) is not None
        ],
        "analyses": [show_analysis(item) for item in artifacts if item.type == "analysis"],
        "curves": [training_curves(item) for item in own.values() if item.type in TRAINED],
        "episodes": episodes,
        "episodes_left_out": left_out,
        "artifacts": artifacts,
        "commands": list(dict.fromkeys(commands)),
        "tables": list(_origin_tables(artifacts)),
        "problems": problems,
        "warnings": warnings,
    }
    template = _templates().get_template("report.html")
    return Report(template.render(report=report) + "\n", warnings)


def _templates() -> Environment:
    environment = page_templates()
    for function in (commit_of, seconds_of, settings_of):
        environment.globals[function.__name__] = function
    environment.globals["methods"] = STATISTICS
    return environment


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
            yield f"Data ({item.name})", describe_data(item.manifest.summary)
    protocols = gather(evaluations, lambda item: str(item.manifest.summary.get("protocol") or ""))
    protocols.pop("", None)
    for protocol, followed in protocols.items():
        yield "Protocol" + (f" ({_references(followed)})" if len(protocols) > 1 else ""), protocol
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


def describe_data(summary: Mapping[str, Any]) -> str:
    """Say in one line what a snippet store holds, from its summary."""
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


def settings_of(artifact: Artifact) -> CaptionedTable:
    """Return the full configuration that made an artifact."""
    rows = tuple((key, _exact(value)) for key, value in sorted(artifact.manifest.config.items()))
    return CaptionedTable(("setting", "value"), rows, "All settings", folded=True)


def seconds_of(artifact: Artifact) -> str:
    """Return how long the making of an artifact took."""
    made = artifact.manifest.provenance
    try:
        span = datetime.fromisoformat(made["finished"]) - datetime.fromisoformat(made["started"])
    except (KeyError, TypeError, ValueError):
        return EMPTY
    return f"{span.total_seconds():,.0f} s"


def commit_of(artifact: Artifact) -> str:
    """Return the commit that made an artifact, and whether there were changes to it."""
    git = _git(artifact)
    if not git.get("commit"):
        return "unknown"
    return str(git["commit"])[:COMMIT] + (" + changes" if git.get("dirty") else "")


def _exact(value: Any) -> str:
    """Return a setting with all of its digits."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, list | tuple):
        return ", ".join(_exact(item) for item in value) or EMPTY
    return show(value)


def _git(artifact: Artifact) -> Mapping[str, Any]:
    return artifact.manifest.provenance.get("git") or {}


def _problems(artifacts: Sequence[Artifact], lost: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what keeps artifacts from being reproduced, in short, and its particulars."""
    commits = gather(artifacts, lambda item: str(_git(item).get("commit") or "")[:COMMIT])
    if len(commits) > 1:
        listed = [f"{key or 'unknown'} ({_references(made)})" for key, made in commits.items()]
        yield f"the artifacts were made at {len(commits)} different commits", "; ".join(listed)
    dirty = [item.reference for item in artifacts if _git(item).get("dirty")]
    if dirty:
        count = f"{len(dirty)} of {len(artifacts)} artifacts"
        why = "made with changes that no commit holds: the commit does not reproduce them"
        yield f"{count} were {why}", "; ".join(dirty)
    if lost:
        yield "inputs are gone or were changed", "; ".join(lost.values())


def _origin_tables(artifacts: Sequence[Artifact]) -> Iterator[CaptionedTable]:
    """Yield the data files that were read, and the machines and software that artifacts share."""
    rows = tuple(
        (item.reference, *(show(source.get(key)) for key in ("path", "bytes", "sha256")))
        for item in artifacts
        for source in item.manifest.summary.get("sources", [])
    )
    caption = "Data files that were read" if rows else "No data files were read"
    yield CaptionedTable(("artifact", "file", "bytes", "SHA-256"), rows, caption)
    for caption, describe in (("Machines", _machine_of), ("Software", _software_of)):
        groups = gather(artifacts, describe)
        rows = tuple(
            ("all artifacts" if len(groups) == 1 else _references(made), description)
            for description, made in groups.items()
        )
        yield CaptionedTable(("artifacts", "made with"), rows, caption, wraps=True)


def _machine_of(artifact: Artifact) -> str:
    made = artifact.manifest.provenance
    return show({**(made.get("host") or {}), "device": made.get("device")})


def _software_of(artifact: Artifact) -> str:
    made = artifact.manifest.provenance
    own = {"lwdctl": made.get("lwdctl"), "Python": made.get("python")}
    return show({**own, **(made.get("packages") or {})})


def _references(artifacts: Iterable[Artifact]) -> str:
    return ", ".join(item.reference for item in artifacts)


def find_analyses(found: Mapping[str, Artifact], root: Path) -> list[Artifact]:
    """Return the analyses of what is in a lineage, oldest first.

    An analysis belongs to it when one of its primary inputs, those that no other of its inputs
    derives from, is part of it. Of analyses of one kind with the same inputs, the newest is taken.
    """
    newest: dict[tuple[tuple[str, ...], tuple[str, ...]], Artifact] = {}
    for artifact in Workspace(root).artifacts("analysis"):
        if _primary_inputs(artifact, root) & found.keys():
            inputs = tuple(sorted(item.digest for item in artifact.manifest.inputs))
            # Every analysis has settings of its own: their names say which one it is.
            newest[tuple(sorted(artifact.manifest.config)), inputs] = artifact
    return list(newest.values())


def _primary_inputs(artifact: Artifact, root: Path) -> set[str]:
    """Return the digests of its inputs that no other input derives from."""
    inputs = {item.digest for item in artifact.manifest.inputs}
    found, _ = lineage.trace([artifact], root)
    ancestors: set[str] = set()
    for digest in inputs & found.keys():
        below, lost = lineage.trace([found[digest]], root)
        ancestors |= {*below, *lost} - {digest}
    return inputs - ancestors


@dataclass(frozen=True)
class _File:
    path: str
    recognized_by: str


@dataclass(frozen=True)
class _Report:
    """What `data.quality.ingest_report.write_report` wrote."""

    format: str
    files: tuple[_File, ...]
    findings: tuple[Finding, ...]
    statistics: Mapping[str, Any]


def show_data(artifact: Artifact) -> Block | None:
    """Return what the ingest report of a snippet store says.

    A store of an earlier version, or one that was not made by ingest, has none: None. A report that
    is damaged becomes a note.
    """
    stored = [file for file in artifact.manifest.files if file.path == INGEST_REPORT]
    if not stored:
        return None
    where = f"{INGEST_REPORT} cannot be read"
    try:
        report = typed(_Report, parse_json(artifact.read(stored[0]), where), where)
        return _block(artifact.reference, report)
    except ArtifactError as error:
        return Block(artifact.reference, notes=(error.message,))
    # Statistics of another shape, or numbers that cannot be drawn.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return Block(artifact.reference, notes=(f"{where}: {error!r}",))


def _block(reference: str, report: _Report) -> Block:
    findings, numbers = report.findings, report.statistics
    counts = [
        f"{count} {name}{'' if count == 1 else 's'}"
        for name in ("warning", "note")
        for count in [sum(item.severity == name for item in findings)]
    ]
    files = [_file_line(item, report.format) for item in report.files]
    return Block(
        reference,
        paragraphs=(*files, f"The checks of ingest gave {' and '.join(counts)}."),
        tables=tuple(_tables(findings, numbers)),
        pictures=tuple(data_pictures(numbers)),
    )


def _file_line(file: _File, data_format: str) -> str:
    by = file.recognized_by
    reason = f", recognized by {plain_text(by)}" if by else ""
    return f"{plain_text(file.path)}, read as {plain_text(data_format)}{reason}"


def _tables(findings: Sequence[Finding], numbers: Mapping[str, Any]) -> Iterator[CaptionedTable]:
    if findings:
        rows = tuple(
            (
                plain_text(item.check),
                item.severity,
                plain_text(f"{item.where}: {item.message}".removeprefix(": ")),
                plain_text(item.hint) or EMPTY,
            )
            for item in findings[:MOST_ROWS]
        )
        left = len(findings) - len(rows)
        more = f", {left:,} more are in {INGEST_REPORT}" if left else ""
        heads = ("check", "severity", "what was found", "what decides it")
        yield CaptionedTable(heads, rows, f"Findings{more}", wraps=True)
    if not numbers:
        return
    for title, (columns, cells) in (
        ("Episodes by label", labels_table(numbers["labels"])),
        ("Ranges of what is stored", ranges_table(numbers)),
    ):
        shown = tuple(
            tuple(cell if cell not in ("", "-") else EMPTY for cell in row)
            for row in cells[:MOST_ROWS]
        )
        folded = len(shown) > MOST_FOLDED
        yield CaptionedTable(tuple(columns), shown, title, folded).without_empty_columns()
