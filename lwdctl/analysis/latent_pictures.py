"""Pictures of latents at the width of a paper's column: projections, and every dimension's use."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lwdctl.analysis.latent_health import LatentHealth
from lwdctl.analysis.latent_table import UNKNOWN, Grouping
from lwdctl.analysis.plotting import COLORS, MARKERS
from lwdctl.core.seeding import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]

WIDTH = 3.4
"""Inches: one column of a two-column paper."""
_LINE = 0.15
_LETTERS = 58
_LAYERS = 8
_OTHERS = "0.8"


@dataclass(frozen=True)
class View:
    """Points in the plane.

    Attributes:
        stem: Beginning of file names (`"tsne"`).
        title: What it is.
        coordinates: (point, 2).
        axes: Names of the two axes, empty where their units mean nothing.
    """

    stem: str
    title: str
    coordinates: Values
    axes: tuple[str, str] = ("", "")


def draw_groups(view: View, grouping: Grouping, caption: str) -> Figure:
    """Draw a view with one color and marker per category; points without one are gray."""
    names = [(index, grouping.categories[index]) for index in sorted(set(grouping.index.tolist()))
             if index != UNKNOWN]  # fmt: skip
    columns = _columns([name for _, name in names])
    figure, axes = _canvas(view, caption, -(-len(names) // columns))
    size = _size(len(grouping.index))
    _scatter(axes, view, grouping.index == UNKNOWN, size, color=_OTHERS, marker=".")
    # In layers, so that the category drawn last does not hide the others.
    layer = generator("drawing order").integers(_LAYERS, size=len(grouping.index))
    for step in range(_LAYERS):
        for index, _ in names:
            here = (grouping.index == index) & (layer == step)
            _scatter(axes, view, here, size, **_look(index))
    for index, name in names:
        axes.scatter([], [], s=18, label=_readable(name), linewidths=0, **_look(index))
    figure.legend(
        loc="outside lower center", ncols=columns, fontsize=7, frameon=False, handletextpad=0.2,
        columnspacing=0.8, labelspacing=0.25, borderpad=0.1,
    )  # fmt: skip
    return figure


def draw_position(view: View, position: Values, caption: str) -> Figure:
    """Draw a view colored by where in its episode each snippet starts."""
    figure, axes = _canvas(view, caption, 0)
    order = generator("drawing order").permutation(len(position))
    drawn = axes.scatter(
        *view.coordinates[order].T, c=position[order], cmap="viridis", vmin=0, vmax=1,
        s=_size(len(position)), linewidths=0, rasterized=True,
    )  # fmt: skip
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("Start of the snippet (share of the episode)", size=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def draw_plain(view: View, caption: str) -> Figure:
    """Draw a view of data that has nothing to color by."""
    figure, axes = _canvas(view, caption, 0)
    everything = np.ones(len(view.coordinates), bool)
    _scatter(axes, view, everything, _size(len(everything)), **_look(0))
    return figure


def draw_dimensions(health: LatentHealth) -> Figure:
    """Draw each dimension's spread, posterior deviation and KL, the most spread first."""
    from matplotlib.figure import Figure

    order = np.argsort(-health.spread)
    rank = np.arange(1, len(order) + 1)
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    looks = (("spread of the mean", health.spread, 0, "-"),
             ("posterior deviation", health.posterior, 1, "--"))  # fmt: skip
    for name, values, index, line in looks:
        upper.plot(rank, values[order], color=COLORS[index], linestyle=line, label=name)
    upper.axhline(1.0, color="0.5", linewidth=0.8, linestyle=":", label="prior")
    upper.set_yscale("log")
    upper.set_ylabel("Standard deviation", size=8)
    figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    lower.plot(rank, health.kl[order], color=COLORS[2])
    lower.set_ylim(bottom=0)
    lower.set_ylabel("KL (nats)", size=8)
    lower.set_xlabel("Latent dimension, by falling spread of its mean", size=8)
    for axes in (upper, lower):
        _tidy(axes)
    return figure


def _canvas(view: View, caption: str, legend_rows: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    wrapped = "\n".join(
        textwrap.fill(line, _LETTERS) for line in (view.title, *caption.split("\n"))
    )
    height = 2.9 + _LINE * (legend_rows + wrapped.count("\n"))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(wrapped, size=7.5, loc="left")
    _tidy(axes)
    axes.set_xlabel(view.axes[0], size=8)
    axes.set_ylabel(view.axes[1], size=8)
    if not any(view.axes):
        axes.set_xticks([])
        axes.set_yticks([])
    return figure, axes


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)


def _scatter(
    axes: Any, view: View, here: npt.NDArray[np.bool_], size: float, **look: Any
) -> None:  # fmt: skip
    axes.scatter(*view.coordinates[here].T, s=size, linewidths=0, rasterized=True, **look)


def _look(index: int) -> dict[str, Any]:
    """Return color and marker of a category; both repeat, their pair only after 56."""
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _columns(names: list[str]) -> int:
    """Return how many legend columns fit the width."""
    longest = max((len(name) for name in names), default=1)
    return max(1, min(len(names), 60 // (longest + 5)))


def _size(points: int) -> float:
    return float(np.clip(8000 / points, 5.0, 16.0))
