"""Figures of a comparison: success and score against horizon, success against cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from lwdctl.analysis.comparison_records import ComparisonRow, horizon_order
from lwdctl.analysis.evaluations import SUCCESS
from lwdctl.analysis.plotting import (
    draw_curve,
    draw_error_bars,
    draw_reference_band,
    finish,
    new_figure,
    series_style,
)
from lwdctl.analysis.tables import show_range
from lwdctl.evaluation.results import Estimate

FRONT = "Pareto front"
_COLUMNS = 4

Panels = Sequence[tuple[float, Any]]
Point = tuple[ComparisonRow, Estimate]


@dataclass(frozen=True)
class Cost:
    """An axis of cost: its name in file names, its value for a condition, and its title."""

    name: str
    of: Callable[[ComparisonRow], float | None]
    title: str
    is_large: bool = False


COSTS = (
    Cost("flops", lambda row: row.flops_per_step, "FLOPs per environment step", True),
    Cost("time", lambda row: row.seconds_per_episode, "Wall time per episode (s)"),
)


@dataclass(frozen=True)
class ComparisonFigures:
    """Draws conditions over all tasks; the series of the reference `against` comes first."""

    rows: Sequence[ComparisonRow]
    env: str
    metric: str
    against: str

    def draw(self) -> Iterator[tuple[str, Figure]]:
        """Yield every figure that there are numbers for, after its file name's stem."""
        for quantity in dict.fromkeys((SUCCESS, self.metric)):
            yield f"{quantity}-by-horizon", self._by_horizon(quantity)
        for cost in COSTS:
            if any(cost.of(row) for row in self.rows):
                yield f"success-by-{cost.name}", self._by_cost(cost)

    @property
    def _styles(self) -> Mapping[str, Mapping[str, Any]]:
        labels = {row.label for row in self.rows}
        ordered = sorted(labels, key=lambda label: (label != self.against, label))
        return {name: {**series_style(index), "label": name} for index, name in enumerate(ordered)}

    def _by_horizon(self, quantity: str) -> Figure:
        points = self._points(quantity)
        horizons = sorted(
            {row.horizon for row, _ in points if row.horizon is not None}, key=horizon_order
        )
        figure, panels = self._panels(quantity)
        for perturbation, axes in panels:
            for index, (label, style) in enumerate(self._styles.items()):
                key = (perturbation, label)
                mine = [item for item in points if (item[0].perturbation, item[0].label) == key]
                placed = [point for point in mine if point[0].horizon is not None]
                # Beside each other where there is no line to follow.
                alone = len(horizons) <= 1
                shift = 0.04 * (index - (len(self._styles) - 1) / 2) if alone else 0.0
                places = [shift + horizons.index(row.horizon or 0) for row, _ in placed]
                estimates = [estimate for _, estimate in placed]
                if len(placed) > 1:
                    draw_curve(axes, places, estimates, **style)
                elif placed:
                    draw_error_bars(axes, places, estimates, **style)
                for row, estimate in mine:
                    if row.horizon is None:
                        draw_reference_band(axes, estimate, **style)
            axes.set_xticks(range(len(horizons)), [str(horizon) for horizon in horizons])
            axes.set_xlim(-0.3, max(len(horizons) - 0.7, 0.3))
            axes.set_xlabel("Action horizon (steps)")
        self._finish(figure, panels, points, "Bands" if len(horizons) > 1 else "Bars")
        return figure

    def _by_cost(self, cost: Cost) -> Figure:
        points = [(row, estimate) for row, estimate in self._points(SUCCESS) if cost.of(row)]
        several = len({row.horizon for row, _ in points} - {None}) > 1
        figure, panels = self._panels(SUCCESS)
        for perturbation, axes in panels:
            here = [point for point in points if point[0].perturbation == perturbation]
            axes.set_xscale("log")
            for label, style in self._styles.items():
                mine = [point for point in here if point[0].label == label]
                places = [cost.of(row) or 0.0 for row, _ in mine]
                if mine:
                    draw_error_bars(axes, places, [estimate for _, estimate in mine], **style)
                for place, (row, estimate) in zip(places, mine, strict=True):
                    if several and row.horizon is not None:
                        axes.annotate(
                            str(row.horizon), (place, estimate.value), color=style["color"],
                            # A policy's costlier points stand higher: below right is free.
                            xytext=(3, -9), textcoords="offset points", fontsize=6.5, zorder=1.5,
                            path_effects=[withStroke(linewidth=2, foreground="white")],
                        )  # fmt: skip
            _draw_front(axes, here, cost)
            _label_costs(axes, [cost.of(row) or 1.0 for row, _ in here], cost)
            axes.set_xlabel(cost.title)
        more = "Small numbers: action horizon in steps. " if several else ""
        if cost.name == "time":
            more += "Wall time: an episode's part of the time of its batch, simulator included."
        self._finish(figure, panels, points, "Bars", more)
        return figure

    def _points(self, quantity: str) -> list[Point]:
        pairs = ((row, row.success if quantity == SUCCESS else row.score) for row in self.rows)
        return [
            (row, estimate if not math.isnan(estimate.low) else Estimate(*3 * (estimate.value,), 1))
            for row, estimate in pairs
            if not math.isnan(estimate.value)
        ]

    def _panels(self, quantity: str) -> tuple[Figure, Panels]:
        perturbations = sorted({row.perturbation for row in self.rows})
        columns = min(_COLUMNS, len(perturbations))
        rows = math.ceil(len(perturbations) / columns)
        width = max(5.0, 0.9 + 2.7 * columns)
        figure, grid = new_figure(width, 1.5 + 2.7 * rows, rows, columns, sharey=True)
        every = [axes for row in grid for axes in row]
        for axes in every[len(perturbations) :]:
            axes.remove()
        name = self.metric.replace("_", " ").capitalize() + " (mean)"
        name = "Success (fraction of episodes)" if quantity == SUCCESS else name
        for row in grid:
            row[0].set_ylabel(name)
        panels = list(zip(perturbations, every, strict=False))
        for perturbation, axes in panels:
            title = f"Perturbation {perturbation:g}" if perturbation else "No perturbation"
            axes.set_title(title, size=10)
        return figure, panels

    def _finish(
        self, figure: Figure, panels: Panels, points: Sequence[Point], shown: str, more: str = ""
    ) -> None:
        if points and all(item.low >= 0 and item.high <= 1 for _, item in points):
            for _, axes in panels:  # fractions on their whole range can be compared between figures
                axes.set_ylim(-0.03, 1.03)
        episodes = show_range([row.episodes for row in self.rows])
        seeds = show_range([len(row.train_seeds) for row in self.rows])
        counts = f"n = {episodes} episodes a point, {seeds} training seed{'s' * (seeds != '1')}."
        note = f"Environment: {self.env}. {counts} {shown}: 95 % intervals. {more}"
        finish(figure, note, (*self._styles, FRONT))


def missing_figures(rows: Sequence[ComparisonRow]) -> Iterator[str]:
    """Yield which figures or points are missing for want of numbers."""
    for cost in COSTS:
        name = cost.title[0].lower() + cost.title[1:] if cost.name == "time" else cost.title
        lacking = [row.label for row in rows if not cost.of(row)]
        if len(lacking) == len(rows):
            yield f"no figure of {name}: the evaluations do not record it"
        elif lacking:
            conditions = "condition lacks" if len(lacking) == 1 else "conditions lack"
            labels = ", ".join(sorted(set(lacking)))
            yield f"figure of {name}: {len(lacking)} {conditions} it ({labels})"


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Return the indices of the points that no other one dominates, the cheapest first."""
    best, front = -math.inf, []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        if values[index] > best:
            best = values[index]
            front.append(index)
    return front


def _draw_front(axes: Any, points: Sequence[Point], cost: Cost) -> None:
    """Draw the front of the policies that act by themselves; controls are not on it."""
    own = [(cost.of(row) or 0.0, estimate.value) for row, estimate in points if row.is_method]
    costs, values = [place for place, _ in own], [value for _, value in own]
    front = pareto_front(costs, values)
    axes.plot(
        [costs[index] for index in front], [values[index] for index in front], label=FRONT,
        drawstyle="steps-post", color="0.55", linewidth=1.2, linestyle="--", zorder=1,
    )  # fmt: skip


def _label_costs(axes: Any, costs: Sequence[float], cost: Cost) -> None:
    """Label decades, or 1, 2 and 5 of each where there are few; 1.5 G, not 1.5e9."""
    low, high = min(costs, default=1.0), max(costs, default=1.0)
    few = high / low < 100
    if low == high:  # matplotlib finds no limits for it
        axes.set_xlim(low / 2, high * 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.xaxis.set_major_formatter(
        EngFormatter(sep="\N{THIN SPACE}")
        if cost.is_large
        else FuncFormatter(lambda value, _: f"{value:g}")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
