"""What is drawn into a panel: lines with bands, levels, points with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lwdctl.analysis.results import Cell


@dataclass(frozen=True)
class Point:
    """What one cell shows of one quantity."""

    cell: Cell
    value: float
    low: float
    high: float


def draw_line(
    axes: Any,
    points: Sequence[Point],
    horizons: Sequence[int | str],
    shift: float,
    look: dict[str, Any],
) -> None:
    """Draw one policy over the horizons with its band; a single point gets error bars."""
    places = [shift + horizons.index(point.cell.horizon or 0) for point in points]
    if len(points) < 2:
        if points:
            draw_error_bars(axes, places, points, look)
        return
    lows, highs = [point.low for point in points], [point.high for point in points]
    axes.fill_between(places, lows, highs, color=look["color"], alpha=0.16, linewidth=0)
    axes.plot(places, [point.value for point in points], markersize=4.5, linewidth=1.6, **look)


def draw_level(axes: Any, points: Sequence[Point], look: dict[str, Any]) -> None:
    """Draw what has no horizon as a level across all of them."""
    for point in points:
        axes.axhspan(point.low, point.high, color=look["color"], alpha=0.1, linewidth=0)
        style = {**look, "marker": ""}
        axes.axhline(point.value, linestyle="--", linewidth=1.4, **style)


def draw_error_bars(axes: Any, places: Any, points: Sequence[Point], look: dict[str, Any]) -> None:
    """Draw points with their intervals."""
    # Rounding can put the mean a hair outside its interval, which matplotlib refuses.
    below = [max(0.0, point.value - point.low) for point in points]
    above = [max(0.0, point.high - point.value) for point in points]
    axes.errorbar(
        places,
        [point.value for point in points],
        yerr=(below, above),
        linestyle="",
        markersize=5,
        elinewidth=1,
        capsize=2,
        **look,
    )


def name_horizon(axes: Any, place: float | None, point: Point, look: dict[str, Any]) -> None:
    """Write a point's horizon beside it."""
    if point.cell.horizon is None or place is None:
        return
    from matplotlib.patheffects import withStroke

    axes.annotate(
        str(point.cell.horizon),
        (place, point.value),
        xytext=(3, -9),  # a policy's dearer points stand higher: below on the right is free
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=1.5,
        textcoords="offset points",
        fontsize=6.5,
        color=look["color"],
    )
