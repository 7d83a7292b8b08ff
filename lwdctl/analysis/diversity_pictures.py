"""Figures of diversity: the spread of states by step, and shares of modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lwdctl.analysis.plotting import COLORS
from lwdctl.evaluation.results import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lwdctl.analysis.diversity import Spread


def draw_spread(steps: npt.NDArray[np.int64], spreads: Mapping[str, Spread]) -> Figure:
    """Draw the variance of states at every step, a line with a band per group."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (name, spread) in enumerate(spreads.items()):
        color = COLORS[(index - 1) % len(COLORS)] if index else "0.3"
        mean, low, high = (
            [getattr(point, part) for point in spread.curve] for part in ("value", "low", "high")
        )
        axes.plot(steps, mean, color=color, label=name, linewidth=1.6)
        axes.fill_between(steps, low, high, color=color, alpha=0.16, linewidth=0)
    axes.set_xlabel("Step")
    axes.set_ylabel("Variance of normalized states")
    axes.set_ylim(bottom=0)
    _finish(figure, "Bands: 95 % bootstrap intervals over starts.")
    return figure


def draw_modes(
    names: Sequence[str], groups: Mapping[str, Mapping[str, float]], starts: int
) -> Figure:
    """Draw every mode's share of trajectories as bars, one color per group.

    Args:
        names: The modes.
        groups: Group to mode to share.
        starts: Trajectories per group.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.6, 1.2 + 1.1 * len(names)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(groups)
    for index, (group, found) in enumerate(groups.items()):
        values = [found[name] for name in names]
        ends = [wilson(round(value * starts), starts) for value in values]
        axes.bar(
            [place + width * (index - (len(groups) - 1) / 2) for place in range(len(names))],
            values,
            width,
            yerr=(
                [max(value - low, 0.0) for value, (low, _) in zip(values, ends, strict=True)],
                [max(high - value, 0.0) for value, (_, high) in zip(values, ends, strict=True)],
            ),
            color=COLORS[(index - 1) % len(COLORS)] if index else "0.6",
            error_kw={"elinewidth": 0.8, "capsize": 1.5, "ecolor": "0.2"},
            label=group,
        )
    # A dollar sign would begin a formula.
    shown = [name.replace("_", " ").replace("$", r"\$") for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=20, ha="right", size=8)
    axes.set_ylabel("Share of trajectories")
    _finish(figure, f"{starts} trajectories per group. Lines: 95 % Wilson intervals.")
    return figure


def _finish(figure: Figure, note: str) -> None:
    (axes,) = figure.axes
    axes.grid(visible=True, axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=4,
        fontsize=9,
    )  # fmt: skip
    figure.supxlabel(note, fontsize=7.5, x=0.02, ha="left", color="0.3")
