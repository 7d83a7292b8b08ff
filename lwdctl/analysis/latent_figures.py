"""Figures of latents at the width of a paper's column: projections, and the use of dimensions."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from lwdctl.analysis.latent_dimensions import DimensionUse
from lwdctl.analysis.latent_points import UNKNOWN, Grouping
from lwdctl.analysis.plotting import COLORS, new_figure, series_style
from lwdctl.core.seeding import generator

Values = npt.NDArray[np.float64]

WIDTH = 3.4
"""Inches: one column of a two-column paper."""
_LINE_HEIGHT = 0.15
_LINE_LETTERS = 58
_LAYERS = 8


@dataclass(frozen=True)
class Projection:
    """Points in the plane.

    Attributes:
        stem: Beginning of file names (`"tsne"`).
        title: Name for readers.
        coordinates: (point, 2).
        axes: Names of the two axes, empty where their units have no meaning.
    """

    stem: str
    title: str
    coordinates: Values
    axes: tuple[str, str] = ("", "")


def draw_categories(projection: Projection, grouping: Grouping, caption: str) -> Figure:
    """Draw points with one color and marker per category; points without one are gray."""
    shown = sorted(set(grouping.index.tolist()) - {UNKNOWN})
    longest = max((len(grouping.categories[index]) for index in shown), default=1)
    columns = max(1, min(len(shown), 60 // (longest + 5)))
    figure, axes = _panel(projection, caption, -(-len(shown) // columns))
    size = _marker_size(len(grouping.index))
    _scatter(axes, projection, grouping.index == UNKNOWN, size, color="0.8", marker=".")
    # In layers, so that the category drawn last does not hide the others.
    layer = generator("drawing order").integers(_LAYERS, size=len(grouping.index))
    for step in range(_LAYERS):
        for index in shown:
            here = (grouping.index == index) & (layer == step)
            _scatter(axes, projection, here, size, **series_style(index))
    for index in shown:
        name = grouping.categories[index].replace("_", " ")
        axes.scatter([], [], s=18, label=name, linewidths=0, **series_style(index))
    figure.legend(
        loc="outside lower center", ncols=columns, fontsize=7, frameon=False, handletextpad=0.2,
        columnspacing=0.8, labelspacing=0.25, borderpad=0.1,
    )  # fmt: skip
    return figure


def draw_position(projection: Projection, position: Values, caption: str) -> Figure:
    """Draw points colored by where in its episode each snippet starts."""
    figure, axes = _panel(projection, caption)
    order = generator("drawing order").permutation(len(position))
    drawn = axes.scatter(
        *projection.coordinates[order].T, c=position[order], cmap="viridis", vmin=0, vmax=1,
        s=_marker_size(len(position)), linewidths=0, rasterized=True,
    )  # fmt: skip
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("Start of the snippet (fraction of the episode)", size=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def draw_plain(projection: Projection, caption: str) -> Figure:
    """Draw points that have no property to color them by."""
    figure, axes = _panel(projection, caption)
    everything = np.ones(len(projection.coordinates), bool)
    _scatter(axes, projection, everything, _marker_size(len(everything)), **series_style(0))
    return figure


def draw_dimensions(use: DimensionUse) -> Figure:
    """Draw each dimension's standard deviations and KL, sorted by that of the posterior mean."""
    order = np.argsort(-use.mean_std)
    rank = np.arange(1, len(order) + 1)
    figure, ((upper,), (lower,)) = new_figure(WIDTH, 3.6, rows=2, sharex=True)
    upper.plot(rank, use.mean_std[order], color=COLORS[0], label="of the mean")
    upper.plot(
        rank, use.posterior_std[order], color=COLORS[1], linestyle="--", label="of the posterior"
    )
    upper.axhline(1.0, color="0.5", linewidth=0.8, linestyle=":", label="of the prior")
    upper.set_yscale("log")
    upper.set_ylabel("Standard deviation", size=8)
    figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    lower.plot(rank, use.kl[order], color=COLORS[2])
    lower.set_ylim(bottom=0)
    lower.set_ylabel("KL (nats)", size=8)
    lower.set_xlabel("Latent dimension, sorted by the mean's standard deviation", size=8)
    for axes in (upper, lower):
        axes.tick_params(labelsize=7)
    return figure


def _panel(projection: Projection, caption: str, legend_rows: int = 0) -> tuple[Figure, Any]:
    lines = (projection.title, *caption.split("\n"))
    title = "\n".join(textwrap.fill(line, _LINE_LETTERS) for line in lines)
    height = 2.9 + _LINE_HEIGHT * (legend_rows + title.count("\n"))
    figure, ((axes,),) = new_figure(WIDTH, height)
    axes.grid(visible=False)
    axes.set_title(title, size=7.5, loc="left")
    axes.tick_params(labelsize=7)
    axes.set_xlabel(projection.axes[0], size=8)
    axes.set_ylabel(projection.axes[1], size=8)
    if not any(projection.axes):
        axes.set_xticks([])
        axes.set_yticks([])
    return figure, axes


def _scatter(
    axes: Any, projection: Projection, here: npt.NDArray[np.bool_], size: float, **style: Any
) -> None:
    points = projection.coordinates[here].T
    axes.scatter(*points, s=size, linewidths=0, rasterized=True, **style)


def _marker_size(points: int) -> float:
    return float(np.clip(8000 / points, 5.0, 16.0))
