"""Tables of results: from records, as CSV, Markdown or text cells; numbers as people read them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lwdctl.artifacts.files import write_durably
from lwdctl.artifacts.manifest import plain
from lwdctl.core.plain_text import aligned, visible
from lwdctl.evaluation.results import Estimate

Item = TypeVar("Item")

EMPTY = "–"
"""Shown where a table has no value."""
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the beginning of a formula, in ASCII and in full width."""


@dataclass(frozen=True)
class Table:
    """Rows of values under named columns.

    Attributes:
        columns: Column names, with units.
        rows: Values: text, numbers or None.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
        """Return a table of rows in which an estimate takes three cells: value, low and high."""

        def cells(value: Any) -> tuple[Any, ...]:
            whole = isinstance(value, Estimate)
            return (value.value, value.low, value.high) if whole else (value,)

        return cls(
            tuple(columns), tuple(tuple(x for one in row for x in cells(one)) for row in rows)
        )

    @classmethod
    def from_records(cls, kind: type, records: Iterable[Any]) -> Table:
        """Return a table with a row for each record; its estimates take three columns.

        Args:
            kind: Dataclass of the records; names the columns where there are no records.
            records: Its instances.
        """
        columns = [
            field.name + end
            for field in dataclasses.fields(kind)
            for end in (("", "_low", "_high") if field.type in (Estimate, "Estimate") else ("",))
        ]
        return cls.of(columns, (vars(record).values() for record in records))

    def to_csv(self) -> str:
        """Return CSV text; nothing and NaN are empty, lists are joined with spaces."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(_csv_value(column) for column in self.columns)
        writer.writerows([_csv_value(value) for value in row] for row in self.rows)
        return buffer.getvalue()

    def to_markdown(self) -> str:
        """Return a Markdown table with short numbers."""
        lines = [self.columns, ["---"] * len(self.columns), *self.cells()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def cells(self) -> tuple[tuple[str, ...], ...]:
        """Return the rows as text for people."""
        return tuple(tuple(show(value) for value in row) for row in self.rows)

    def __str__(self) -> str:
        """Return the table with aligned columns."""
        return "\n".join(aligned([self.columns, *self.cells()]))


def gather(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Return key to the items that have it, in order of appearance."""
    found: dict[Any, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def flatten(record: Any) -> dict[str, Any]:
    """Return a dataclass record as a flat mapping; see `flatten_estimate`."""
    found: dict[str, Any] = {}
    for name, value in vars(record).items():
        found |= flatten_estimate(name, value) if isinstance(value, Estimate) else {name: value}
    return found


def flatten_estimate(name: str, estimate: Estimate) -> dict[str, float]:
    """Return an estimate as `name`, `name_low` and `name_high`."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def write_csv(path: Path, table: Table) -> None:
    """Write a table as CSV, as a whole: an earlier file of that name is replaced."""
    write_durably(path, table.to_csv().encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON, as a whole; NaN becomes null."""
    write_durably(path, (json.dumps(plain(value), indent=1) + "\n").encode())


def show(value: Any) -> str:
    """Return a value for people: numbers short, nothing as a dash."""
    if value is None or (isinstance(value, str | list | tuple) and not value):
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return EMPTY if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(show(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items()) or EMPTY
    return visible(str(value))


def short(value: float) -> str:
    """Return three decimals of a small number, four digits of a larger one, a dash for NaN."""
    if math.isnan(value):
        return EMPTY
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def show_estimate(estimate: Estimate, std: float | None = None) -> str:
    """Return a value with its 95 % interval and standard deviation over seeds, where known."""
    if math.isnan(estimate.value) or math.isnan(estimate.low):
        return short(estimate.value)
    more = "" if std is None else f" sd {short(std)}"
    return f"{short(estimate.value)} [{short(estimate.low)}, {short(estimate.high)}]{more}"


def show_difference(estimate: Estimate) -> str:
    """Return a difference with its sign and 95 % interval."""
    if math.isnan(estimate.value):
        return EMPTY
    ends = (EMPTY if math.isnan(end) else f"{end:+.3g}" for end in (estimate.low, estimate.high))
    return f"{estimate.value:+.3g} [{', '.join(ends)}]"


def show_range(values: Collection[int]) -> str:
    """Return a number that all have, or the smallest and the largest one."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def show_p(value: float) -> str:
    """Return a p-value, a dash for NaN."""
    if math.isnan(value):
        return EMPTY
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _csv_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        text = " ".join(str(item) for item in value if item is not None)
        return _csv_text(text) if any(isinstance(item, str) for item in value) else text
    if isinstance(value, str):
        return _csv_text(value)
    return "" if isinstance(value, float) and math.isnan(value) else value


def _csv_text(text: str) -> str:
    r"""Return text that no spreadsheet takes for a formula.

    Control characters are escaped, and a text that begins like a formula gets a backslash
    (`\=1+1`); numbers stay numbers.
    """
    text = visible(text)
    if not text.lstrip().startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"\\{text}"
    return text
