"""The report's section on the data: what ingest found in the files, and plots of their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lwdctl.analysis.report.content import Block, CaptionedTable
from lwdctl.analysis.report.inspection import MOST_FOLDED, MOST_ROWS, data_pictures
from lwdctl.analysis.tables import EMPTY
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.records import Finding
from lwdctl.core.untrusted import parse_json, typed
from lwdctl.data.inspection_text import labels_table, ranges_table
from lwdctl.data.quality.ingest_report import INGEST_REPORT


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
