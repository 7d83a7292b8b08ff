"""The numbers that a recipe expects, compared with the measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lwdctl.core.config import from_mapping, option
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean

_ROUNDING = 1e-9
"""0.7 + 0.1 is less than 0.8 in floating point."""


@dataclass(frozen=True)
class _Numbers:
    """The scalar keys of an `[[expected]]` table."""

    stage: str = option("", "Id of the stage that measures it.")
    metric: str = option("", "Key of a result row or of the summary.")
    value: float | None = option(None, "Expected value.")
    tolerance: float = option(0.0, "How far from `value` is still as expected.", minimum=0)
    at_least: float | None = option(None, "Smallest value that is as expected.")
    at_most: float | None = option(None, "Largest value that is as expected.")
    source: str = option("", "Where the number comes from.")


@dataclass(frozen=True)
class Expectation:
    """One expected number.

    Attributes:
        stage: Id of the stage that measures it.
        metric: Key of a result row (`"success"`, `"metrics.max_overlap"`), or of the
            stage's summary when `where` is empty.
        where: Keys and values that the result row must have.
        low: Smallest value that is as expected.
        high: Largest value that is as expected.
        text: The expectation as text.
        source: Where the number comes from.
        sweep: Label to value of the axes of a sweep for which it holds; empty for all.
    """

    stage: str
    metric: str
    where: Mapping[str, Any]
    low: float
    high: float
    text: str
    source: str
    sweep: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """An expectation and the measured number.

    Attributes:
        expectation: What was expected.
        measured: The number; None when nothing was measured, or when several result rows match.
        interval: Its 95 % interval, where the result row has one.
        rows: Number of result rows that match.
    """

    expectation: Expectation
    measured: float | None
    interval: tuple[float, float] | None = None
    rows: int = 1

    @property
    def met(self) -> bool:
        """Whether the measured value lies in the expected range."""
        low, high = self.expectation.low - _ROUNDING, self.expectation.high + _ROUNDING
        return self.measured is not None and low <= self.measured <= high


def read_expectation(table: Mapping[str, Any], stages: Sequence[str], where: str) -> Expectation:
    """Read one `[[expected]]` table.

    Raises:
        ConfigError: A key is unknown, the stage is unknown, or there is no number.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is not a table", "write [[expected]] above its keys")
    row, sweep = table.get("where", {}), table.get("sweep", {})
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where}: 'where' takes a table", 'example: where = { task = "all" }')
    if not isinstance(sweep, Mapping):
        raise ConfigError(f"{where}: 'sweep' takes a table", "example: sweep = { seed = 0 }")
    rest = {key: value for key, value in table.items() if key not in ("where", "sweep")}
    numbers = from_mapping(_Numbers, rest, where)
    if numbers.stage not in stages:
        raise ConfigError(
            f"{where}: no stage '{numbers.stage}'", did_you_mean(numbers.stage, stages)
        )
    if not numbers.metric:
        raise ConfigError(f"{where}: 'metric' is missing")
    low, high, text = _range(numbers, where)
    return Expectation(numbers.stage, numbers.metric, row, low, high, text, numbers.source, sweep)


def compare(expectation: Expectation, summary: Mapping[str, Any]) -> Comparison:
    """Look the expected number up in a stage's summary."""
    if not expectation.where:
        return Comparison(expectation, _number(summary, expectation.metric))
    rows = [
        row
        for row in summary.get("results") or ()
        if all(row.get(key) == value for key, value in expectation.where.items())
    ]
    if len(rows) != 1:
        return Comparison(expectation, None, rows=len(rows))
    (row,) = rows
    low = _number(row, f"{expectation.metric}_low")
    high = _number(row, f"{expectation.metric}_high")
    interval = None if low is None or high is None else (low, high)
    return Comparison(expectation, _number(row, expectation.metric), interval)


def _range(numbers: _Numbers, where: str) -> tuple[float, float, str]:
    bounds = [number is not None for number in (numbers.at_least, numbers.at_most)]
    if (numbers.value is not None) == any(bounds):
        raise ConfigError(f"{where}: give either 'value' or 'at_least' and 'at_most'")
    if numbers.value is not None:
        low, high = numbers.value - numbers.tolerance, numbers.value + numbers.tolerance
        return low, high, f"{numbers.value:g} ± {numbers.tolerance:g}"
    low = -float("inf") if numbers.at_least is None else numbers.at_least
    high = float("inf") if numbers.at_most is None else numbers.at_most
    bounds_text = [
        f"{sign} {number:g}"
        for sign, number in (("≥", numbers.at_least), ("≤", numbers.at_most))
        if number is not None
    ]
    return low, high, ", ".join(bounds_text)


def _number(values: Mapping[str, Any], dotted: str) -> float | None:
    found: Any = values
    for key in dotted.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    # A truth value counts as 1 or 0.
    return float(found) if isinstance(found, int | float) else None
