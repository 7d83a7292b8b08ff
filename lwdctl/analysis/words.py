"""Numbers, and the rows of a comparison, as the terminal and the report write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lwdctl.analysis.results import Control, CostRatio, PairedTest
from lwdctl.analysis.tables import Table

NOTHING = "–"


def show(value: Any) -> str:
    """Write a value for people: numbers short, nothing as a dash."""
    if value is None or value in ("", [], ()):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return NOTHING if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(show(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items()) or NOTHING
    return str(value)


def exact(value: Any) -> str:
    """Write a setting so that it can be given again: no digit is dropped."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, list | tuple):
        return ", ".join(exact(item) for item in value) or NOTHING
    return show(value)


def short(value: float) -> str:
    """Write three decimals of a share, four digits of anything larger, a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    return (
        f"{value:.3f}"
        if abs(value) < 10
        else f"{value:,.4g}"
        if abs(value) < 1e4
        else f"{value:,.0f}"
    )


def estimate(
    value: float | None, low: float | None, high: float | None, deviation: float | None = None
) -> str:
    """Write a value, its 95 % interval and its deviation over training seeds, as far as known."""
    if value is None:
        return NOTHING
    if low is None or high is None:
        return short(value)
    spread = "" if deviation is None else f" sd {short(deviation)}"
    return f"{short(value)} [{short(low)}, {short(high)}]{spread}"


def difference(value: float, low: float, high: float) -> str:
    """Write a difference with its 95 % interval."""
    ends = (NOTHING if math.isnan(end) else f"{end:+.3g}" for end in (low, high))
    return f"{value:+.3g} [{', '.join(ends)}]"


def p_value(value: float) -> str:
    """Write a p-value."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def minute(time: Any) -> str:
    """Write a UTC ISO 8601 time to the minute."""
    return str(time)[:16].replace("T", " ") + " UTC" if time else NOTHING


def cells(table: Table) -> tuple[tuple[str, ...], ...]:
    """Return an analysis table's rows as text."""
    return tuple(tuple(show(cell) for cell in row) for row in table.rows)


def pair_row(pair: PairedTest) -> tuple[str, ...]:
    """Write a paired test: who, under what, states, differences, p-values."""
    return (
        pair.label,
        pair.against,
        " / ".join(dict.fromkeys([show(pair.horizon), show(pair.against_horizon)])),
        f"{pair.perturbation:g}",
        str(pair.states),
        str(pair.better),
        str(pair.worse),
        difference(pair.success_difference, pair.success_low, pair.success_high),
        p_value(pair.success_p),
        p_value(pair.success_p_holm),
        difference(pair.score_difference, pair.score_low, pair.score_high),
        p_value(pair.score_p),
        p_value(pair.score_p_holm),
    )


def control_row(control: Control) -> tuple[str, ...]:
    """Write a disturbed run minus its undisturbed control."""
    return (
        control.label,
        show(control.horizon),
        f"{control.perturbation:g}",
        str(control.states),
        difference(control.success_difference, control.success_low, control.success_high),
        difference(control.score_difference, control.score_low, control.score_high),
    )


def cost_row(cost: CostRatio) -> tuple[str, ...]:
    """Write what a policy's equal success costs, or that it solves less."""
    return (
        cost.label,
        cost.against,
        " / ".join(dict.fromkeys([show(cost.horizon), show(cost.against_horizon)])),
        f"{cost.perturbation:g}",
        f"{short(cost.success)} / {short(cost.against_success)}",
        f"{cost.flops_per_step:.3g} / {cost.against_flops_per_step:.3g}",
        "solves less" if cost.ratio is None else f"{cost.ratio:.3g}",
    )
