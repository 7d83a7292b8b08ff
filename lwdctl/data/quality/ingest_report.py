"""The report that lies in a snippet store's artifact: what was found in the data, and numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lwdctl.artifacts.files import write_durably
from lwdctl.artifacts.manifest import plain
from lwdctl.core.plain_text import plain_text
from lwdctl.core.records import SEVERITIES, Finding
from lwdctl.data.reader import MergedReader

INGEST_REPORT = "ingest_report.json"


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings by severity, otherwise in their order."""
    return sorted(findings, key=lambda item: SEVERITIES.index(item.severity))


def describe_finding(finding: Finding) -> str:
    """Return a finding as one line."""
    where = f"{finding.where}: " if finding.where else ""
    hint = f" ({finding.hint})" if finding.hint else ""
    return plain_text(f"{finding.severity}: {where}{finding.message}{hint}")


def write_report(
    directory: Path,
    source: MergedReader,
    findings: Sequence[Finding],
    statistics: Mapping[str, Any],
) -> None:
    """Write `INGEST_REPORT`.

    It holds `format`, `files` (path and what recognized the format, "" where the user named it),
    `findings` (as in `core.records.Finding`) and `statistics` (as in `DataChecks.statistics`).
    """
    report = {
        "format": source.spec.source_format,
        "files": [
            {"path": str(path), "recognized_by": reason}
            for path, reason in zip(source.paths, source.recognized_by, strict=True)
        ],
        "findings": [asdict(item) for item in findings],
        "statistics": statistics,
    }
    text = json.dumps(plain(report), indent=1, allow_nan=False)
    write_durably(directory / INGEST_REPORT, text.encode())
