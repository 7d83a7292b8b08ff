"""The report's section on the data: what ingest found in the files, and plots of their numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lwdctl.analysis.report.content import Block, CaptionedTable
from lwdctl.analysis.report.inspection import MOST_FOLDED, MOST_ROWS, data_pictures
from lwdctl.analysis.tables import EMPTY
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import plain_text
from lwdctl.data.ingest_report import INGEST_REPORT
from lwdctl.data.inspection_text import labels_table, ranges_table


def show_data(artifact: Artifact) -> Block | None:
    """Return what the ingest report of a snippet store says.

    A store of an earlier version, or one that was not made by ingest, has none: None. A report that
    is damaged becomes a note.
    """
    if INGEST_REPORT not in {file.path for file in artifact.manifest.files}:
        return None
    try:
        artifact.check()
        report = json.loads(artifact.payload(INGEST_REPORT).read_text(encoding="utf-8"))
        return _block(artifact.reference, report)
    except ArtifactError as error:
        return Block(artifact.reference, notes=(error.message,))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return Block(artifact.reference, notes=(f"{INGEST_REPORT} cannot be read: {error!r}",))


def _block(reference: str, report: Mapping[str, Any]) -> Block:
    findings, numbers = report["findings"], report["statistics"]
    counts = [
        f"{count} {name}{'' if count == 1 else 's'}"
        for name in ("warning", "note")
        for count in [sum(item["severity"] == name for item in findings)]
    ]
    files = [_file_line(item, report["format"]) for item in report["files"]]
    return Block(
        reference,
        paragraphs=(*files, f"The checks of ingest gave {' and '.join(counts)}."),
        tables=tuple(_tables(findings, numbers)),
        pictures=tuple(data_pictures(numbers)),
    )


def _file_line(file: Mapping[str, Any], data_format: str) -> str:
    by = file["recognized_by"]
    reason = f", recognized by {plain_text(by)}" if by else ""
    return f"{plain_text(file['path'])}, read as {plain_text(data_format)}{reason}"


def _tables(
    findings: list[Mapping[str, Any]], numbers: Mapping[str, Any]
) -> Iterator[CaptionedTable]:
    if findings:
        rows = tuple(
            (
                item["check"],
                item["severity"],
                plain_text(f"{item['where']}: {item['message']}".removeprefix(": ")),
                plain_text(item["hint"]) or EMPTY,
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
