"""The report as one HTML file: no script, no address outside itself."""

from __future__ import annotations

import re
from pathlib import Path

import lwdctl
from lwdctl.analysis.report.records import Grid, Report
from lwdctl.analysis.words import NOTHING

TEMPLATES = Path(__file__).parent / "templates"
_NUMBER = re.compile(r"[<+-]?[\d,]*\.?\d+(e[+-]?\d+)?( .*)?")


def render_page(report: Report) -> str:
    """Return the page; the same report gives the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["numeric"] = numeric_columns
    template = environment.get_template("report.html")
    return template.render(report=report, version=lwdctl.__version__) + "\n"


def numeric_columns(grid: Grid) -> list[bool]:
    """Tell which columns hold numbers, to be set flush right."""
    return [
        any(row[index] != NOTHING for row in grid.rows)
        and all(row[index] == NOTHING or bool(_NUMBER.fullmatch(row[index])) for row in grid.rows)
        for index in range(len(grid.columns))
    ]
