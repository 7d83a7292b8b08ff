"""Figures of a comparison: success and score against horizon, success against cost.

matplotlib is imported inside functions, and its figures are made without pyplot: no window,
no global state.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lwdctl.analysis.evaluations import horizon_order
from lwdctl.analysis.marks import Point, draw_error_bars, draw_level, draw_line, name_horizon
from lwdctl.analysis.pairing import SUCCESS
from lwdctl.analysis.plotting import COLORS, MARKERS
from lwdctl.analysis.results import Cell, Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRONT = "Pareto front"
_COLUMNS = 4
_LEGEND_ROW = 0.2  # inches


@dataclass(frozen=True)
class Cost:
    """An axis of cost: which cells have it and how it is called."""

    name: str
    of: Callable[[Cell], float | None]
    title: str
    is_large: bool = False


COSTS = (
    Cost("operations", lambda cell: cell.flops_per_step, "Operations per environment step", True),
    Cost("time", lambda cell: cell.seconds_per_episode, "Wall time per episode (s)"),
)


def draw_figures(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """Draw every figure that the comparison has numbers for, each with a file name's stem."""
    for quantity in dict.fromkeys((SUCCESS, comparison.metric)):
        yield f"{quantity}-by-horizon", _by_horizon(comparison, quantity)
    for cost in COSTS:
        if any(cost.of(cell) for cell in comparison.overall):
            yield f"success-by-{cost.name}", _by_cost(comparison, cost)


def left_out(comparison: Comparison) -> list[str]:
    """Say which figures or points are missing for want of numbers."""
    notes = []
    for cost in COSTS:
        name = cost.title.lower()
        missing = [cell for cell in comparison.overall if not cost.of(cell)]
        if len(missing) == len(comparison.overall):
            notes.append(f"no figure of {name}: the evaluations do not record it")
        elif missing:
            labels = ", ".join(sorted({cell.label for cell in missing}))
            notes.append(f"not in the figure of {name}: {len(missing)} cells without it ({labels})")
    return notes


def _by_horizon(comparison: Comparison, quantity: str) -> Figure:
    points = _points(comparison, quantity)
    horizons = sorted(
        {point.cell.horizon for point in points if point.cell.horizon is not None},
        key=horizon_order,
    )
    figure, panels = _panels(comparison, _axis_name(comparison, quantity))
    for perturbation, axes in panels:
        for index, (label, look) in enumerate(_looks(comparison).items()):
            mine = [
                point
                for point in points
                if (point.cell.perturbation, point.cell.label) == (perturbation, label)
            ]
            placed = [point for point in mine if point.cell.horizon is not None]
            # Beside each other where there is no line to follow.
            shift = 0.0 if len(horizons) > 1 else 0.04 * (index - (len(_looks(comparison)) - 1) / 2)
            draw_line(axes, placed, horizons, shift, look)
            draw_level(axes, [point for point in mine if point.cell.horizon is None], look)
        axes.set_xticks(range(len(horizons)), [str(horizon) for horizon in horizons])
        axes.set_xlim(-0.3, max(len(horizons) - 0.7, 0.3))
        axes.set_xlabel("Horizon (steps between queries)")
    _share_limits(panels, points)
    _finish(figure, panels, comparison, "Bands" if len(horizons) > 1 else "Bars")
    return figure


def _by_cost(comparison: Comparison, cost: Cost) -> Figure:
    points = [point for point in _points(comparison, SUCCESS) if cost.of(point.cell)]
    several = len({point.cell.horizon for point in points} - {None}) > 1
    figure, panels = _panels(comparison, _axis_name(comparison, SUCCESS))
    for perturbation, axes in panels:
        here = [point for point in points if point.cell.perturbation == perturbation]
        axes.set_xscale("log")
        for label, look in _looks(comparison).items():
            mine = [point for point in here if point.cell.label == label]
            if mine:
                places = [cost.of(point.cell) for point in mine]
                draw_error_bars(axes, places, mine, look)
            for point in mine if several else ():
                name_horizon(axes, cost.of(point.cell), point, look)
        _front(axes, here, cost)
        _name_costs(axes, here, cost)
        axes.set_xlabel(cost.title)
    _share_limits(panels, points)
    more = "Small numbers: horizon in steps." if several else ""
    if cost.name == "time":
        more += " Wall time is an episode's share of its batch, simulator included."
    _finish(figure, panels, comparison, "Bars", more)
    return figure


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Return the indices that no other point beats: cheapest first, each better than before."""
    best, front = -math.inf, []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        if values[index] > best:
            best = values[index]
            front.append(index)
    return front


def _points(comparison: Comparison, quantity: str) -> list[Point]:
    points = []
    for cell in comparison.overall:
        numbers = (
            (cell.success, cell.success_low, cell.success_high)
            if quantity == SUCCESS
            else (cell.score, cell.score_low, cell.score_high)
        )
        value, low, high = numbers
        if value is not None:
            points.append(
                Point(cell, value, value if low is None else low, value if high is None else high)
            )
    return points


def _looks(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Return label to line style, the reference first."""
    labels = sorted({cell.label for cell in comparison.cells})
    labels.sort(key=lambda label: label != comparison.against)
    return {
        label: {
            "color": COLORS[index % len(COLORS)],
            "marker": MARKERS[index % len(MARKERS)],
            "label": label,
        }
        for index, label in enumerate(labels)
    }


def _panels(comparison: Comparison, value_name: str) -> tuple[Figure, list[tuple[float, Any]]]:
    from matplotlib.figure import Figure

    perturbations = sorted({cell.perturbation for cell in comparison.cells})
    columns = min(_COLUMNS, len(perturbations))
    rows = math.ceil(len(perturbations) / columns)
    width = max(5.0, 0.9 + 2.7 * columns)
    figure = Figure(figsize=(width, 1.5 + 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    every = list(grid.flat)
    for axes in every[len(perturbations) :]:
        axes.remove()
    panels = list(zip(perturbations, every, strict=False))
    for index, (perturbation, axes) in enumerate(panels):
        axes.set_title(f"Perturbation {perturbation:g}" if perturbation else "Undisturbed", size=10)
        axes.grid(visible=True, color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if index % columns == 0:
            axes.set_ylabel(value_name)
    return figure, panels


def _front(axes: Any, points: Sequence[Point], cost: Cost) -> None:
    """Draw the front of what chooses by itself; controls are drawn, not on it."""
    points = [point for point in points if point.cell.is_method]
    costs = [cost.of(point.cell) or 0.0 for point in points]
    front = pareto_front(costs, [point.value for point in points])
    places = [costs[index] for index in front]
    values = [points[index].value for index in front]
    axes.plot(
        places, values, drawstyle="steps-post", color="0.55", linewidth=1.2, linestyle="--",
        label=FRONT, zorder=1,
    )  # fmt: skip


def _name_costs(axes: Any, points: Sequence[Point], cost: Cost) -> None:
    """Name decades, or 1, 2 and 5 of each where there are few; 1.5 G, not 1.5e9."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    costs = [cost.of(point.cell) or 1.0 for point in points] or [1.0]
    few = max(costs) / min(costs) < 100
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.xaxis.set_major_formatter(
        EngFormatter(sep="\N{THIN SPACE}")
        if cost.is_large
        else FuncFormatter(lambda value, _: f"{value:g}")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())


def _axis_name(comparison: Comparison, quantity: str) -> str:
    if quantity == SUCCESS:
        return "Success (share of episodes)"
    return comparison.metric.replace("_", " ").capitalize() + " (mean)"


def _share_limits(panels: Sequence[tuple[float, Any]], points: Sequence[Point]) -> None:
    """Show shares on their whole range, so that heights can be compared between figures."""
    if points and all(point.low >= 0 and point.high <= 1 for point in points):
        for _, axes in panels:
            axes.set_ylim(-0.03, 1.03)


def _finish(
    figure: Figure, panels: Sequence[tuple[float, Any]], comparison: Comparison, shown: str,
    more: str = "",
) -> None:  # fmt: skip
    entries: dict[str, Any] = {}
    for _, axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    order = [name for name in (*_looks(comparison), FRONT) if name in entries]
    width = figure.get_figwidth()
    longest = max((len(name) for name in entries), default=1)
    columns = max(1, int(width * 13 / (longest + 6)))
    rows = math.ceil(len(entries) / columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * max(0, rows - 1))
    figure.legend(
        [entries[name] for name in order], order, loc="outside upper center", frameon=False,
        ncols=min(columns, len(entries)), fontsize=9,
    )  # fmt: skip
    text = f"Environment: {comparison.env}. {_counted(comparison)} {shown}: 95 % intervals. {more}"
    wrapped = textwrap.fill(text.strip(), int(width * 18))
    figure.supxlabel(wrapped, fontsize=7.5, x=0.02, ha="left", color="0.3")


def _counted(comparison: Comparison) -> str:
    cells = comparison.overall
    episodes = _range([cell.episodes for cell in cells])
    seeds = _range([len(cell.train_seeds) for cell in cells])
    word = "seed" if seeds == "1" else "seeds"
    return f"n = {episodes} episodes a point, {seeds} training {word}."


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
