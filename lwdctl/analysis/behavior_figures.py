"""Figures of behaviors: foot contacts, returns, metrics, and divergences from the source."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lwdctl.analysis.divergence import MAX_DIVERGENCE
from lwdctl.analysis.plotting import (
    add_legend,
    add_note,
    draw_bars,
    draw_error_bars,
    new_figure,
    series_style,
)
from lwdctl.analysis.trajectories import (
    CONTACT,
    RETURN,
    SOURCE_VS_SOURCE,
    BehaviorComparison,
    metrics,
)

_SIDE = 2.5


def draw_contacts(comparisons: Sequence[BehaviorComparison]) -> Figure:
    """Draw fractions of steps with contact, foot against foot: a panel per group and pair."""
    groups = _groups(comparisons)
    names = comparisons[0].measured
    pairs = list(itertools.combinations(names, 2)) or [(names[0], names[0])]
    figure, grid = _panels(len(pairs), len(groups), (_SIDE, _SIDE))
    for row, (first, second) in zip(grid, pairs, strict=True):
        for axes, group in zip(row, groups, strict=True):
            for index, item in enumerate(comparisons):
                if group in item.groups:
                    points = metrics(item.groups[group], [first, second])
                    axes.scatter(*points.T, **_point_style(index), label=item.behavior)
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
            axes.set_xlabel(_foot(first), size=8)
        row[0].set_ylabel(_foot(second), size=8)
    for axes, group in zip(grid[0], groups, strict=True):
        axes.set_title(group, size=10)
    _finish(
        figure,
        grid,
        f"Fraction of steps with the foot on the floor; a point is one of {_numbers(comparisons)}.",
    )
    return figure


def draw_returns(comparisons: Sequence[BehaviorComparison]) -> Figure:
    """Draw the mean return per behavior and group as bars, standard deviations as lines."""
    groups = [
        group
        for group in _groups(comparisons)
        if any(RETURN in item.statistics.get(group, {}) for item in comparisons)
    ]
    figure, grid = _panels(1, 1, (max(4.5, 1.2 + 0.5 * len(groups) * len(comparisons)), 3.2))
    axes = grid[0][0]
    for index, group in enumerate(groups):
        found = {
            place: item.statistics[group][RETURN]
            for place, item in enumerate(comparisons)
            if RETURN in item.statistics.get(group, {})
        }
        means = [one.mean.value for one in found.values()]
        stds = [one.std for one in found.values()]
        color = series_style(index)["color"]
        draw_bars(axes, index, len(groups), list(found), means, stds, color=color, label=group)
    axes.set_xticks(range(len(comparisons)), [item.behavior for item in comparisons])
    axes.set_ylabel("Return")
    axes.axhline(0.0, color="0.3", linewidth=0.6)
    _finish(figure, grid, f"Means of {_numbers(comparisons)}; lines: one standard deviation.")
    return figure


def draw_divergences(
    comparisons: Sequence[BehaviorComparison], quantities: Sequence[str]
) -> Figure:
    """Draw every policy's divergence from the source, the source-vs-source baseline as a band.

    Args:
        comparisons: The behaviors.
        quantities: Keys of `BehaviorComparison.divergences`, a panel each.
    """
    size = (2.4 + 0.4 * len(comparisons), 3.0)
    figure, grid = _panels(1, len(quantities), size, sharey=True)
    for axes, quantity in zip(grid[0], quantities, strict=True):
        found = [item.divergences.get(quantity, {}) for item in comparisons]
        for place, divergences in enumerate(found):
            if SOURCE_VS_SOURCE in divergences:
                baseline = divergences[SOURCE_VS_SOURCE]
                ends = (place - 0.45, place + 0.45)
                label = "source vs. source" if place == 0 else None
                axes.fill_between(
                    ends, baseline.low, baseline.high, color="0.85", linewidth=0, label=label
                )
                axes.hlines(baseline.value, *ends, color="0.5", linewidth=1)
        policies = [name for name in _groups(comparisons) if any(name in one for one in found)]
        for index, group in enumerate(policies):
            places = [place for place, one in enumerate(found) if group in one]
            shift = 0.22 * (index - (len(policies) - 1) / 2)
            style = series_style(index + 1) | {"marker": series_style(index)["marker"]}
            draw_error_bars(
                axes, [place + shift for place in places],
                [found[place][group] for place in places], label=group, **style,
            )  # fmt: skip
        axes.axhline(MAX_DIVERGENCE, color="0.3", linestyle="--", linewidth=0.8)
        axes.set(xlim=(-0.6, len(comparisons) - 0.4), ylim=(-0.02, 0.74))
        axes.set_xticks(range(len(comparisons)), [item.behavior for item in comparisons])
        axes.set_title(textwrap.fill(quantity.replace("_", " "), 22), size=9)
    grid[0][0].set_ylabel("Jensen-Shannon divergence (nats)")
    _finish(figure, grid, "Bars and band: 95 % intervals. Dashed: ln 2, no overlap.")
    return figure


def draw_metrics(comparisons: Sequence[BehaviorComparison], names: Sequence[str]) -> Figure:
    """Draw one panel per metric: every trajectory of every group as a point."""
    groups = _groups(comparisons)
    figure, grid = _panels(1, len(names), (2.0 + 0.1 * len(groups), 3.2))
    rng = np.random.default_rng(0)  # only moves points sideways
    for axes, name in zip(grid[0], names, strict=True):
        for place, group in enumerate(groups):
            for index, item in enumerate(comparisons):
                if name in item.statistics.get(group, {}):
                    values = metrics(item.groups[group], [name])[:, 0]
                    aside = place + rng.uniform(-0.25, 0.25, len(values))
                    axes.scatter(aside, values, **_point_style(index), label=item.behavior)
        axes.set_xticks(range(len(groups)), groups, rotation=40, ha="right", size=7)
        axes.set_title(textwrap.fill(name.replace("_", " "), 20), size=8)
        axes.tick_params(axis="y", labelsize=7)
    _finish(figure, grid, f"A point is one of {_numbers(comparisons)}.")
    return figure


def _panels(
    rows: int, columns: int, size: tuple[float, float], **subplots: Any
) -> tuple[Figure, list[list[Any]]]:
    width, height = size
    return new_figure(0.6 + width * columns, 0.9 + height * rows, rows, columns, **subplots)


def _finish(figure: Figure, grid: Sequence[Sequence[Any]], note: str) -> None:
    add_legend(figure, itertools.chain.from_iterable(grid))
    add_note(figure, note)


def _groups(comparisons: Sequence[BehaviorComparison]) -> list[str]:
    return list(dict.fromkeys(name for item in comparisons for name in item.groups))


def _point_style(index: int) -> Mapping[str, Any]:
    return {"s": 16, "alpha": 0.7, "linewidths": 0, **series_style(index)}


def _foot(metric: str) -> str:
    return metric.removeprefix(CONTACT).replace("_", " ")


def _numbers(comparisons: Sequence[BehaviorComparison]) -> str:
    counts = sorted({item.count for item in comparisons})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} trajectories per behavior and group"
