"""Sections of text, tables and figures: the form in which every analysis gives its results.

Every `analyze` command writes one `analysis.json` of these beside its figures; the report
shows them without knowing which analysis they come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
        figure: Stem of a figure's files, or "".
        table: Numbers that go with it, or None.
    """

    title: str
    text: str
    figure: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class Findings:
    """The results of an analysis.

    Attributes:
        sections: In reading order.
        figures: Stem to figure, each shown by one of the sections.
        tables: Stem to table, for files of all points.
        summary: Summary numbers, JSON-ready.
        lost: Group to the number of episodes that a simulator error ended, where there are any.
    """

    title: str
    sections: Sequence[Section]
    figures: Mapping[str, Figure]
    tables: Mapping[str, Table] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)

    def save(self, directory: Path, title: str = "") -> None:
        """Write `analysis.json`, `figures/` and one CSV file per table into a directory.

        Args:
            directory: Where to write; it must exist.
            title: Title to write instead of the analysis' own.

        Raises:
            ValueError: A figure that no section shows, or the other way round.
        """
        named = {section.figure for section in self.sections} - {""}
        if named != set(self.figures):
            drawn = sorted(self.figures)
            raise ValueError(f"sections name figures {sorted(named)}, drawn are {drawn}")
        if self.figures:
            (directory / FIGURES).mkdir(exist_ok=True)
        save_figures(self.figures, directory / FIGURES)
        sections = [asdict(section) for section in self.sections]
        write_json(directory / RECORD, {"title": title or self.title, "sections": sections})
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
        rows = tuple(tuple(row) for row in table["rows"])
        table = Table(tuple(table["columns"]), rows)
    return Section(values["title"], values["text"], values["figure"], table)
