"""The lineage of results: artifacts, commands, settings, software, machines, data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lwdctl.analysis.report.content import CaptionedTable
from lwdctl.analysis.tables import EMPTY, show
from lwdctl.artifacts import lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import ArtifactError

COMMIT = 9


@dataclass
class Trace:
    """The artifacts that were found, by digest, and why others are missing."""

    found: dict[str, Artifact] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def artifacts(self) -> list[Artifact]:
        """The artifacts, the one finished first first."""
        return sorted(
            self.found.values(),
            key=lambda item: (str(item.manifest.provenance["finished"]), item.reference),
        )


def trace(artifacts: Sequence[Artifact], root: Path) -> Trace:
    """Follow the inputs of some artifacts back to their sources."""
    traced = Trace()
    waiting = list(artifacts)
    while waiting:
        artifact = waiting.pop()
        if artifact.digest in traced.found:
            continue
        traced.found[artifact.digest] = artifact
        home = lineage.workspace_of(artifact, root)
        for item in artifact.manifest.inputs:
            try:
                waiting.append(lineage.find_input(item, home))
            except ArtifactError as error:
                traced.lost[item.digest] = error.message
    return traced


@dataclass(frozen=True)
class Lineage:
    """Everything that the results derive from, oldest first.

    Attributes:
        artifacts: The artifacts.
        commands: The command lines that made them, each once.
        tables: Data, machines and software.
        alerts: What keeps them from being reproduced, in short.
        warnings: The same with the particulars.
    """

    artifacts: tuple[Artifact, ...]
    commands: tuple[str, ...]
    tables: tuple[CaptionedTable, ...]
    alerts: tuple[str, ...]
    warnings: tuple[str, ...]


def describe_lineage(traced: Trace) -> Lineage:
    """Describe artifacts, oldest first, and warn of what keeps them from being reproduced."""
    artifacts = traced.artifacts
    problems = list(_problems(artifacts, traced.lost))
    machines = _grouped("Machines", artifacts, _machine)
    return Lineage(
        artifacts=tuple(artifacts),
        commands=tuple(dict.fromkeys(map(_command, artifacts))),
        tables=(_data(artifacts), machines, _grouped("Software", artifacts, _software)),
        alerts=tuple(f"{what} (see Lineage)" for what, _ in problems),
        warnings=tuple(f"{what}: {'; '.join(which)}" for what, which in problems),
    )


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


def show_minute(time: Any) -> str:
    """Return a UTC ISO 8601 time to the minute."""
    return str(time)[:16].replace("T", " ") + " UTC" if time else EMPTY


def _command(artifact: Artifact) -> str:
    missing = f"# {artifact.reference}: its manifest records no command"
    return str(artifact.manifest.provenance.get("command") or missing)


def _exact(value: Any) -> str:
    """Return a setting with all of its digits."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, list | tuple):
        return ", ".join(_exact(item) for item in value) or EMPTY
    return show(value)


def _git(artifact: Artifact) -> Mapping[str, Any]:
    return artifact.manifest.provenance.get("git") or {}


def _problems(
    artifacts: Sequence[Artifact], lost: Mapping[str, str]
) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield every problem with its particulars."""
    commits: dict[str, list[str]] = {}
    for item in artifacts:
        commits.setdefault(str(_git(item).get("commit") or "")[:COMMIT], []).append(item.reference)
    if len(commits) > 1:
        listed = [f"{key or 'unknown'} ({', '.join(names)})" for key, names in commits.items()]
        yield f"the artifacts were made at {len(commits)} different commits", listed
    dirty = [item.reference for item in artifacts if _git(item).get("dirty")]
    if dirty:
        count = f"{len(dirty)} of {len(artifacts)} artifacts"
        why = "made with changes that no commit holds: the commit does not reproduce them"
        yield f"{count} were {why}", dirty
    if lost:
        yield "inputs are gone or were changed", list(lost.values())


def _grouped(
    caption: str, artifacts: Sequence[Artifact], describe: Callable[[Artifact], str]
) -> CaptionedTable:
    """Return one row for each different description, with the artifacts that have it."""
    groups: dict[str, list[str]] = {}
    for item in artifacts:
        groups.setdefault(describe(item), []).append(item.reference)
    rows = tuple(
        ("all artifacts" if len(groups) == 1 else ", ".join(names), description)
        for description, names in groups.items()
    )
    return CaptionedTable(("artifacts", "made with"), rows, caption, wraps=True)


def _machine(artifact: Artifact) -> str:
    made = artifact.manifest.provenance
    return show({**(made.get("host") or {}), "device": made.get("device")})


def _software(artifact: Artifact) -> str:
    made = artifact.manifest.provenance
    own = {"lwdctl": made.get("lwdctl"), "Python": made.get("python")}
    return show({**own, **(made.get("packages") or {})})


def _data(artifacts: Sequence[Artifact]) -> CaptionedTable:
    rows = tuple(
        (item.reference, *(show(source.get(key)) for key in ("path", "bytes", "sha256")))
        for item in artifacts
        for source in item.manifest.summary.get("sources", [])
    )
    columns = ("artifact", "file", "bytes", "SHA-256")
    caption = "Data files that were read" if rows else "No data files were read"
    return CaptionedTable(columns, rows, caption)
