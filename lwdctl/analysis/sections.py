"""Sections of text, tables and figures: the form in which every analysis gives its results.

Every `analyze` command writes one `analysis.json` of these beside its figures; the report
shows them without knowing which analysis they come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lwdctl.analysis.plotting import save_figures
from lwdctl.analysis.tables import Table, write_csv, write_json
from lwdctl.core.errors import ArtifactError

RECORD = "analysis.json"
FIGURES = "figures"
"""A figure `x` stands as `figures/x.png` and `figures/x.pdf`."""


@dataclass(frozen=True)
class Section:
    """One result of an analysis.

    Attributes:
        text: What was measured and how to read it.
        figure: Stem of the figure's files, or "".
        table: Numbers that go with it, or None.
        drawing: The figure; None where there is none, and for a section read back.
    """

    title: str
    text: str
    figure: str = ""
    table: Table | None = None
    drawing: Figure | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Findings:
    """The results of an analysis.

    Attributes:
        sections: In reading order.
        tables: Stem to table, for files of all points.
        summary: Summary numbers, JSON-ready.
        lost: Group to the number of episodes that a simulator error ended, where there are any.
    """

    title: str
    sections: Sequence[Section]
    tables: Mapping[str, Table] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, Figure]:
        """Stem to figure."""
        return {one.figure: one.drawing for one in self.sections if one.drawing}

    def save(self, directory: Path, title: str) -> None:
        """Write `analysis.json`, `figures/` and one CSV file per table into a directory."""
        if self.figures:
            (directory / FIGURES).mkdir(exist_ok=True)
        save_figures(self.figures, directory / FIGURES)
        sections = [
            {
                "title": one.title, "text": one.text, "figure": one.figure,
                "table": one.table and vars(one.table),
            }
            for one in self.sections
        ]  # fmt: skip
        write_json(directory / RECORD, {"title": title, "sections": sections})
        for stem, table in self.tables.items():
            write_csv(directory / f"{stem}.csv", table)


def read_sections(directory: Path) -> tuple[str, tuple[Section, ...]]:
    """Read back the title and the sections that `Findings.save` wrote.

    Raises:
        ArtifactError: The file is missing or is no such record.
    """
    path = directory / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["title"], tuple(_section(values) for values in record["sections"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is no record of an analysis: {type(error).__name__}: {error}",
            "analyze again with this version of lwdctl",
        ) from error


def _section(values: Mapping[str, Any]) -> Section:
    table = values["table"]
    if table is not None:
        table = Table.of(table["columns"], table["rows"])
    return Section(values["title"], values["text"], values["figure"], table)
