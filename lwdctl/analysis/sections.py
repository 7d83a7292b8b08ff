"""Sections of text, tables and figures: the form in which every analysis gives its results.

Every `analyze` command writes one `analysis.json` of these beside its figures; the report
shows them without knowing which analysis they come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lwdctl.analysis.plotting import save_figures
from lwdctl.analysis.tables import Table, write_csv, write_json
from lwdctl.artifacts.stored_files import read_stored
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import file_stem
from lwdctl.core.untrusted import parse_json, typed

RECORD = "analysis.json"
_AGAIN = "analyze again with this version of lwdctl"
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
                "title": one.title, "text": one.text,
                "figure": one.figure and file_stem(one.figure),
                "table": one.table and vars(one.table),
            }
            for one in self.sections
        ]  # fmt: skip
        write_json(directory / RECORD, {"title": title, "sections": sections})
        for stem, table in self.tables.items():
            write_csv(directory / f"{file_stem(stem)}.csv", table)


def read_sections(directory: Path) -> tuple[str, tuple[Section, ...]]:
    """Read back the title and the sections that `Findings.save` wrote.

    Raises:
        ArtifactError: The file is missing or is no such record.
    """
    path = directory / RECORD
    where = f"{path} is no record of an analysis"
    content = parse_json(read_stored(directory, RECORD), where, hint=_AGAIN)
    record = typed(_Record, content, where, hint=_AGAIN)
    for index, section in enumerate(record.sections):
        table = section.table or Table((), ())
        for row in table.rows:
            if len(row) != len(table.columns):
                raise ArtifactError(
                    f"{where}: sections[{index}].table: a row of {len(row)} cells in a table of"
                    f" {len(table.columns)} columns",
                    _AGAIN,
                )
    return record.title, tuple(Section(**vars(one)) for one in record.sections)


@dataclass(frozen=True)
class _SectionRecord:
    title: str
    text: str
    figure: str
    table: Table | None


@dataclass(frozen=True)
class _Record:
    title: str
    sections: tuple[_SectionRecord, ...]
