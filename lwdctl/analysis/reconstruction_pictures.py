"""Figures of reconstructions: error against the step, and against the update of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lwdctl.analysis.plotting import COLORS
from lwdctl.analysis.reconstruction import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Shown where errors are exactly zero, which a logarithmic axis cannot show.
_SMALLEST = 1e-9


def draw_steps(
    normalized: Mapping[str, Sequence[Interval]], squared: Mapping[str, Sequence[Interval]]
) -> Figure:
    """Draw the error of every policy at every step of the snippet, normalized and in units."""
    figure, panels = _panels(2)
    names = ("Normalized squared error", "Squared error (environment units)")
    for axes, name, curves in zip(panels, names, (normalized, squared), strict=True):
        for index, (arm, curve) in enumerate(curves.items()):
            # The start itself is in the table: before any action there is next to no error.
            _line(axes, range(1, len(curve)), curve[1:], index, arm)
        axes.set_yscale("log")
        axes.set_xlabel("Step of the snippet")
        axes.set_ylabel(name)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", frameon=False,
        ncols=4, fontsize=9,
    )  # fmt: skip
    return figure


def draw_updates(after: Mapping[int, Mapping[str, Interval]]) -> Figure:
    """Draw the error of encoded snippets against the updates of the VAE's training."""
    figure, (axes,) = _panels(1)
    for index, (name, title) in enumerate(
        (("final_normalized", "at the last step"), ("mean_normalized", "mean over steps"))
    ):
        _line(axes, list(after), [found[name] for found in after.values()], index, title, "o")
    axes.set_yscale("log")
    axes.set_xlabel("Updates of the VAE")
    axes.set_ylabel("Normalized squared error")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _panels(count: int) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * count, 3.6), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in panels:
        axes.grid(visible=True, color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    note = f"Bands: 95 % intervals. Values below {_SMALLEST:g} are drawn at it."
    figure.supxlabel(note, fontsize=7.5, x=0.02, ha="left", color="0.3")
    return figure, panels


def _line(
    axes: Any, places: Sequence[int], curve: Sequence[Interval], index: int, name: str,
    marker: str = "",
) -> None:  # fmt: skip
    color = COLORS[index % len(COLORS)]
    mean, low, high = (
        np.maximum([getattr(one, part) for one in curve], _SMALLEST)
        for part in ("mean", "low", "high")
    )
    axes.plot(places, mean, color=color, label=name, linewidth=1.5, marker=marker, markersize=4)
    axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
