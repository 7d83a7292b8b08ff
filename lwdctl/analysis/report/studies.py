"""The analyses that were made from the same lineage, the newest of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lwdctl.analysis.report.pictures import embed_png
from lwdctl.analysis.report.records import Describe, Grid, Part, Picture, Study
from lwdctl.analysis.report.trace import trace
from lwdctl.analysis.sections import FIGURES, Section, read_sections
from lwdctl.analysis.words import cells
from lwdctl.artifacts import catalog
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import ArtifactError

KIND = "analysis"
MOST_ROWS = 25
"""Longer tables are folded."""


def find_analyses(
    lineage: Mapping[str, Artifact], root: Path, describe: Describe
) -> list[Artifact]:
    """Return the analyses of what is in a lineage, oldest first.

    One belongs to it when what it was made from, ancestors of its other inputs left out, is
    part of it. Of one command with the same inputs, the newest is taken.

    Args:
        lineage: Digest to artifact.
        root: Workspace to look in.
        describe: Tells an analysis' command.
    """
    newest: dict[tuple[str, tuple[str, ...]], Artifact] = {}
    for artifact in catalog.finished(root, KIND):
        leading = _leading_inputs(artifact, root)
        if leading & lineage.keys():
            inputs = tuple(sorted(item.digest for item in artifact.manifest.inputs))
            newest[describe(artifact).command, inputs] = artifact
    return list(newest.values())


def _leading_inputs(artifact: Artifact, root: Path) -> set[str]:
    """Return the digests of its inputs that no other input was made from."""
    digests = {item.digest for item in artifact.manifest.inputs}
    found = trace([artifact], root).found
    below = {
        item.digest for digest in digests & found.keys() for item in found[digest].manifest.inputs
    }
    return digests - _closed(below, found)


def _closed(digests: Iterable[str], found: Mapping[str, Artifact]) -> set[str]:
    """Add everything that the artifacts with these digests were made from."""
    answer: set[str] = set()
    waiting = list(digests)
    while waiting:
        digest = waiting.pop()
        if digest not in answer:
            answer.add(digest)
            inputs = found[digest].manifest.inputs if digest in found else ()
            waiting += [item.digest for item in inputs]
    return answer


def show_analyses(analyses: Sequence[Artifact], describe: Describe) -> tuple[Study, ...]:
    """Return the sections of analyses; what cannot be read is said, not raised."""
    return tuple(_study(item, describe(item).command) for item in analyses)


def _study(artifact: Artifact, command: str) -> Study:
    try:
        artifact.check()
        title, sections = read_sections(artifact.path)
    except ArtifactError as error:
        return Study(artifact.reference, artifact.reference, command, (), (error.message,))
    notes: list[str] = []
    parts = tuple(_part(section, artifact.path, notes) for section in sections)
    return Study(title, artifact.reference, command, parts, tuple(notes))


def _part(section: Section, directory: Path, notes: list[str]) -> Part:
    grid = None
    if section.table:
        rows = cells(section.table)
        grid = Grid(section.title, section.table.columns, rows, folded=len(rows) > MOST_ROWS)
    text = tuple(line.strip() for line in section.text.split("\n\n") if line.strip())
    return Part(section.title, text, _picture(section, directory, notes), grid)


def _picture(section: Section, directory: Path, notes: list[str]) -> Picture | None:
    if not section.figure:
        return None
    path = directory / FIGURES / f"{section.figure}.png"
    try:
        return embed_png(path, section.title)
    except OSError as error:
        notes.append(f"the figure {section.figure} cannot be shown: {error}")
        return None
