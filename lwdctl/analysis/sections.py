"""What an analysis found, as sections of text, numbers and pictures.

Every `analyze` command writes one `analysis.json` of these beside its figures; the report
shows them without knowing which analysis they come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwdctl.artifacts.durable import write_durably
from lwdctl.artifacts.manifest import plain
from lwdctl.core.errors import ArtifactError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORD = "analysis.json"
FIGURES = "figures"
FORMATS = ("png", "pdf")
"""A figure `x` stands as `figures/x.png` for screens and `figures/x.pdf` for papers."""


@dataclass(frozen=True)
class Table:
    """Rows of values under named columns.

    Attributes:
        columns: Column names, with units.
        rows: Cells: text, numbers or None.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Section:
    """One thing that was looked at.

    Attributes:
        title: Headline.
        text: What was measured and how to read it, in plain sentences.
        figure: Stem of a figure's files, or "".
        table: Numbers that go with it, or None.
    """

    title: str
    text: str
    figure: str = ""
    table: Table | None = None


def write_sections(
    directory: Path, title: str, sections: Sequence[Section], figures: Mapping[str, Figure]
) -> None:
    """Write sections and their figures below a draft's directory.

    Args:
        directory: Where to write.
        title: Headline of the whole analysis.
        sections: In reading order.
        figures: Stem to figure.
    """
    from lwdctl.analysis.figures import render

    named = {section.figure for section in sections} - {""}
    if named != set(figures):
        raise ValueError(f"sections name figures {sorted(named)}, drawn are {sorted(figures)}")
    folder = directory / FIGURES
    if figures:
        folder.mkdir(exist_ok=True)
    for stem, figure in figures.items():
        for ending in FORMATS:
            write_durably(folder / f"{stem}.{ending}", render(figure, ending))
    record = {"title": title, "sections": [asdict(section) for section in sections]}
    write_durably(directory / RECORD, (json.dumps(plain(record), indent=1) + "\n").encode())


def read_sections(directory: Path) -> tuple[str, tuple[Section, ...]]:
    """Read back what `write_sections` wrote.

    Returns:
        The title and the sections.

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
