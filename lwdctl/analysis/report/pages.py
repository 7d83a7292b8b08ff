"""The templates of every page: texts are escaped, a missing value is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import lwdctl
from lwdctl.analysis.report.content import CaptionedTable
from lwdctl.analysis.tables import EMPTY, show
from lwdctl.core.plain_text import visible_lines

TEMPLATES = Path(__file__).parent / "templates"
_NUMBER = re.compile(r"[<+-]?[\d,]*\.?\d+(e[+-]?\d+)?( .*)?")


def page_templates() -> Environment:
    """Return the templates with the functions that `parts.html` uses."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (numeric_columns, show):
        environment.globals[function.__name__] = function
    environment.globals["version"] = lwdctl.__version__
    environment.filters["minute"] = show_minute
    return environment


def _shown(value: Any) -> Any:
    """Return what a page shows of a value: texts without characters that act on a reader."""
    marked_up = hasattr(value, "__html__")
    return visible_lines(value) if isinstance(value, str) and not marked_up else value


def show_minute(time: Any) -> str:
    """Return a UTC ISO 8601 time to the minute."""
    return str(time)[:16].replace("T", " ") + " UTC" if time else EMPTY


def numeric_columns(table: CaptionedTable) -> list[bool]:
    """Return which columns hold numbers, to be set flush right."""
    return [
        any(row[index] != EMPTY for row in table.rows)
        and all(row[index] == EMPTY or bool(_NUMBER.fullmatch(row[index])) for row in table.rows)
        for index in range(len(table.columns))
    ]
