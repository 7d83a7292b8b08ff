"""The analyses that were made from the same lineage, the newest of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lwdctl.analysis.report.content import Block, CaptionedTable, Picture, embed_png
from lwdctl.analysis.report.lineage import trace
from lwdctl.analysis.sections import FIGURES, Section, read_sections
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ArtifactError

ANALYSIS = "analysis"
MOST_ROWS = 25
"""Longer tables are folded."""


def find_analyses(lineage: Mapping[str, Artifact], root: Path) -> list[Artifact]:
    """Return the analyses of what is in a lineage, oldest first.

    An analysis belongs to it when its primary inputs, those that no other of its inputs derives
    from, are part of it. Of analyses of one kind with the same inputs, the newest is taken.
    """
    newest: dict[tuple[tuple[str, ...], tuple[str, ...]], Artifact] = {}
    for artifact in Workspace(root).artifacts(ANALYSIS):
        if _primary_inputs(artifact, root) & lineage.keys():
            inputs = tuple(sorted(item.digest for item in artifact.manifest.inputs))
            # Every analysis has settings of its own: their names say which one it is.
            newest[tuple(sorted(artifact.manifest.config)), inputs] = artifact
    return list(newest.values())


def show_analyses(analyses: Sequence[Artifact]) -> tuple[Block, ...]:
    """Return the sections of analyses; what cannot be read becomes a note."""
    return tuple(map(_show, analyses))


def _primary_inputs(artifact: Artifact, root: Path) -> set[str]:
    """Return the digests of its inputs that no other input derives from."""
    inputs = {item.digest for item in artifact.manifest.inputs}
    found = trace([artifact], root).found
    ancestors: set[str] = set()
    for digest in inputs & found.keys():
        traced = trace([found[digest]], root)
        ancestors |= {*traced.found, *traced.lost} - {digest}
    return inputs - ancestors


def _show(artifact: Artifact) -> Block:
    stage = artifact.manifest.provenance.get("stage")
    reference = f"{artifact.reference}, lwdctl {stage}" if stage else artifact.reference
    try:
        artifact.check()
        title, sections = read_sections(artifact.path)
    except ArtifactError as error:
        return Block(artifact.reference, reference, notes=(error.message,))
    notes: list[str] = []
    blocks = tuple(_block(section, artifact.path, notes) for section in sections)
    return Block(title, reference, notes=tuple(notes), blocks=blocks)


def _block(section: Section, directory: Path, notes: list[str]) -> Block:
    tables: tuple[CaptionedTable, ...] = ()
    if section.table:
        rows = section.table.cells()
        folded = len(rows) > MOST_ROWS
        tables = (CaptionedTable(section.table.columns, rows, section.title, folded),)
    text = tuple(line.strip() for line in section.text.split("\n\n") if line.strip())
    pictures: tuple[Picture, ...] = ()
    if section.figure:
        try:
            path = directory / FIGURES / f"{section.figure}.png"
            pictures = (embed_png(path, section.title),)
        except OSError as error:
            notes.append(f"the figure {section.figure} cannot be shown: {error}")
    return Block(section.title, paragraphs=text, tables=tables, pictures=pictures)
