"""Figures of behaviors: foot contacts, returns, metrics, and divergences from the source."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lwdctl.analysis.behavior import SOS, Compared, feet, values_of
from lwdctl.analysis.divergence import LARGEST
from lwdctl.analysis.plotting import COLORS, MARKERS
from lwdctl.analysis.trajectories import CONTACT, RETURN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE = 2.5


def draw_contacts(compared: Sequence[Compared]) -> Figure:
    """Draw one panel per group and pair of feet: share of steps with contact, foot by foot."""
    groups = _groups(compared)
    names = feet(next(iter(compared[0].groups.values())))
    pairs = list(itertools.combinations(names, 2)) or [(names[0], names[0])]
    figure, grid = _panels(len(pairs), len(groups), (_SIDE, _SIDE))
    for row, (first, second) in zip(grid, pairs, strict=True):
        for axes, group in zip(row, groups, strict=True):
            for index, item in enumerate(compared):
                if group in item.groups:
                    points = values_of(item.groups[group], [first, second])
                    axes.scatter(*points.T, **_look(index), label=item.behavior)
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
            axes.set_xlabel(_foot(first), size=8)
        row[0].set_ylabel(_foot(second), size=8)
    for axes, group in zip(grid[0], groups, strict=True):
        axes.set_title(group, size=10)
    _legend(figure, grid[0][0])
    _note(
        figure,
        f"Share of steps with the foot on the floor; a point is one of {_numbers(compared)}.",
    )
    return figure


def draw_returns(compared: Sequence[Compared]) -> Figure:
    """Draw the mean return per behavior and group as bars, deviations as lines."""
    groups = [
        group
        for group in _groups(compared)
        if any(RETURN in item.spreads.get(group, {}) for item in compared)
    ]
    figure, ((axes,),) = _panels(1, 1, (max(4.5, 1.2 + 0.5 * len(groups) * len(compared)), 3.2))
    width = 0.8 / len(groups)
    for index, group in enumerate(groups):
        mine = [
            (place, item.spreads[group][RETURN])
            for place, item in enumerate(compared)
            if RETURN in item.spreads.get(group, {})
        ]
        axes.bar(
            [place + width * (index - (len(groups) - 1) / 2) for place, _ in mine],
            [spread.mean for _, spread in mine],
            width,
            yerr=[spread.deviation for _, spread in mine],
            color=COLORS[index % len(COLORS)],
            error_kw={"elinewidth": 1, "capsize": 2},
            label=group,
        )
    axes.set_xticks(range(len(compared)), [item.behavior for item in compared])
    axes.set_ylabel("Return")
    axes.axhline(0.0, color="0.3", linewidth=0.6)
    _legend(figure, axes)
    _note(figure, f"Means of {_numbers(compared)}; lines: one standard deviation.")
    return figure


def draw_divergences(compared: Sequence[Compared], quantities: Sequence[str], name: str) -> Figure:
    """Draw every policy's divergence from the source, with the source's own as a band.

    Args:
        compared: The behaviors.
        quantities: Keys of `Compared.divergences`, a panel each.
        name: What an axis shows.
    """
    figure, grid = _panels(1, len(quantities), (2.4 + 0.4 * len(compared), 3.0), sharey=True)
    for axes, quantity in zip(grid[0], quantities, strict=True):
        policies = [group for group in _groups(compared) if _has(compared, quantity, group)]
        for place, item in enumerate(compared):
            level = item.divergences.get(quantity, {}).get(SOS)
            if level:
                axes.fill_between(
                    (place - 0.45, place + 0.45), level.low, level.high, color="0.85", linewidth=0,
                    label="source against itself" if place == 0 else None,
                )  # fmt: skip
                axes.hlines(level.mean, place - 0.45, place + 0.45, color="0.5", linewidth=1)
        for index, group in enumerate(policies):
            _draw_policy(axes, compared, quantity, group, index, len(policies))
        axes.axhline(LARGEST, color="0.3", linestyle="--", linewidth=0.8)
        axes.set(xlim=(-0.6, len(compared) - 0.4), ylim=(-0.02, 0.74))
        axes.set_xticks(range(len(compared)), [item.behavior for item in compared])
        axes.set_title(textwrap.fill(quantity.replace("_", " "), 22), size=9)
    grid[0][0].set_ylabel(name)
    _legend(figure, grid[0][0])
    _note(figure, "Bars and band: 95 % intervals. Dashed: ln 2, nothing in common.")
    return figure


def draw_metrics(compared: Sequence[Compared], names: Sequence[str]) -> Figure:
    """Draw one panel per metric: every trajectory of every group as a point."""
    groups = _groups(compared)
    figure, grid = _panels(1, len(names), (2.0 + 0.1 * len(groups), 3.2))
    rng = np.random.default_rng(0)  # only spreads points sideways
    for axes, name in zip(grid[0], names, strict=True):
        for place, group in enumerate(groups):
            for index, item in enumerate(compared):
                if name in item.spreads.get(group, {}):
                    values = values_of(item.groups[group], [name])[:, 0]
                    aside = place + rng.uniform(-0.25, 0.25, len(values))
                    axes.scatter(aside, values, **_look(index), label=item.behavior)
        axes.set_xticks(range(len(groups)), groups, rotation=40, ha="right", size=7)
        axes.set_title(textwrap.fill(name.replace("_", " "), 20), size=8)
        axes.tick_params(axis="y", labelsize=7)
    _legend(figure, grid[0][0])
    _note(figure, f"A point is one of {_numbers(compared)}.")
    return figure


def _draw_policy(
    axes: Any, compared: Sequence[Compared], quantity: str, group: str, index: int, count: int
) -> None:
    found = [
        (place, item.divergences[quantity][group])
        for place, item in enumerate(compared)
        if group in item.divergences.get(quantity, {})
    ]
    shift = 0.22 * (index - (count - 1) / 2)
    means = [one.mean for _, one in found]
    below = [max(one.mean - one.low, 0.0) for _, one in found]
    above = [max(one.high - one.mean, 0.0) for _, one in found]
    axes.errorbar(
        [place + shift for place, _ in found], means, yerr=(below, above), capsize=2, linewidth=1.2,
        linestyle="", marker=MARKERS[index % len(MARKERS)], markersize=5,
        color=COLORS[(index + 1) % len(COLORS)], label=group,
    )  # fmt: skip


def _panels(
    rows: int, columns: int, size: tuple[float, float], sharey: bool = False
) -> tuple[Figure, list[list[Any]]]:
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=(0.6 + width * columns, 0.9 + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    for axes in grid.flat:
        axes.grid(visible=True, color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, [list(row) for row in grid]


def _groups(compared: Sequence[Compared]) -> list[str]:
    return list(dict.fromkeys(name for item in compared for name in item.groups))


def _has(compared: Sequence[Compared], quantity: str, group: str) -> bool:
    return any(group in item.divergences.get(quantity, {}) for item in compared)


def _look(index: int) -> Mapping[str, Any]:
    return {
        "s": 16, "alpha": 0.7, "linewidths": 0,
        "color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)],
    }  # fmt: skip


def _foot(metric: str) -> str:
    return metric.removeprefix(CONTACT).replace("_", " ")


def _numbers(compared: Sequence[Compared]) -> str:
    counts = sorted({item.count for item in compared})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} trajectories per behavior and group"


def _legend(figure: Any, axes: Any) -> None:
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper center", frameon=False, fontsize=8,
        ncols=max(1, min(len(entries), int(figure.get_figwidth() / 1.5))),
    )  # fmt: skip


def _note(figure: Any, text: str) -> None:
    wrapped = textwrap.fill(text, int(figure.get_figwidth() * 18))
    figure.supxlabel(wrapped, fontsize=7.5, x=0.02, ha="left", color="0.3")
