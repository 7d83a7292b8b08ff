"""The style of every figure: colors, axes, bands, error bars, reference lines, legends, files.

Figures are made without pyplot: no window, no global state.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from lwdctl.artifacts.files import write_durably
from lwdctl.core.plain_text import file_stem
from lwdctl.evaluation.results import Estimate

FORMATS = ("png", "pdf")
"""A figure stands as PNG for screens and as PDF for papers."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colors of Okabe and Ito (2008) that stand out on white; distinct for color-blind readers."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TALLEST = 100.0
"""Greatest height of a figure in inches; matplotlib draws no picture that is much taller."""
REFERENCE_COLOR = "0.35"
"""Gray of reference lines and of demonstrations."""


def series_style(index: int) -> dict[str, Any]:
    """Return color and marker of a series; both repeat, their pair only after 56."""
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, list[list[Any]]]:
    """Return a figure and its axes as [row][column], in the common style.

    Width and height are in inches; `subplots` are further arguments of `Figure.subplots`.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **subplots)
    for axes in grid.flat:
        axes.grid(visible=True, color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, [list(row) for row in grid]


def draw_curve(
    axes: Any, places: Sequence[float], estimates: Sequence[Estimate], **style: Any
) -> None:
    """Draw a line through estimates with their intervals as a band."""
    lows, highs = [item.low for item in estimates], [item.high for item in estimates]
    axes.fill_between(places, lows, highs, color=style["color"], alpha=0.16, linewidth=0)
    line = {"markersize": 4.5, "linewidth": 1.6, **style}
    axes.plot(places, [item.value for item in estimates], **line)


def draw_error_bars(
    axes: Any, places: Sequence[float], estimates: Sequence[Estimate], **style: Any
) -> None:
    """Draw estimates as points with their intervals."""
    axes.errorbar(
        places, [item.value for item in estimates], yerr=error_bars(estimates), linestyle="",
        markersize=5, elinewidth=1, capsize=2, **style,
    )  # fmt: skip


def error_bars(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    """Return the lengths of the intervals below and above the values."""
    # Rounding can put the mean a hair outside its interval, which matplotlib does not accept.
    below = [max(0.0, item.value - item.low) for item in estimates]
    above = [max(0.0, item.high - item.value) for item in estimates]
    return below, above


def draw_bars(
    axes: Any, index: int, count: int, places: Sequence[float], values: Sequence[float],
    errors: Any, **style: Any,
) -> None:  # fmt: skip
    """Draw series `index` of `count` as bars that stand side by side at every place.

    `errors` are the lengths of the error bars, symmetric or (below, above).
    """
    width = 0.8 / count
    shifted = [place + width * (index - (count - 1) / 2) for place in places]
    error_style = {"elinewidth": 1, "capsize": 2, "ecolor": "0.2"}
    axes.bar(shifted, values, width, yerr=errors, error_kw=error_style, **style)


def draw_reference_band(axes: Any, estimate: Estimate, **style: Any) -> None:
    """Draw an estimate without a place on the axis as a dashed line with a band across it."""
    if not math.isnan(estimate.low):
        axes.axhspan(estimate.low, estimate.high, color=style["color"], alpha=0.1, linewidth=0)
    axes.axhline(estimate.value, linestyle="--", linewidth=1.4, **{**style, "marker": ""})


def finish(figure: Figure, note: str, order: Sequence[str] | None = None) -> None:
    """Put one legend above all panels, and below them what intervals and points mean.

    Args:
        figure: A figure whose panels are drawn.
        note: Sentence below the panels.
        order: Labels of the legend in their order; None shows each as it was drawn first.
    """
    entries: dict[str, Any] = {}
    for panel in figure.axes:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    names = [name for name in order if name in entries] if order is not None else list(entries)
    if names:
        longest = max(len(name) for name in names)
        columns = min(len(names), max(1, int(figure.get_figwidth() * 13 / (longest + 6))))
        rows = math.ceil(len(names) / columns)
        figure.set_figheight(min(figure.get_figheight() + 0.2 * (rows - 1), TALLEST))
        figure.legend(
            [entries[name] for name in names], names, loc="outside upper center", frameon=False,
            ncols=columns, fontsize=9,
        )  # fmt: skip
    wrapped = textwrap.fill(note.strip(), int(figure.get_figwidth() * 18))
    figure.supxlabel(wrapped, fontsize=7.5, x=0.02, ha="left", color="0.3")


def render(figure: Figure, file_format: str) -> bytes:
    """Return the content of a PNG, PDF or SVG file, the same bytes for the same figure."""
    _show_as_written(figure)
    buffer = io.BytesIO()
    # Vector formats would otherwise hold the time of day, and SVG random ids.
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(file_format)
    with mpl.rc_context({"svg.hashsalt": "lwdctl"}), warnings.catch_warnings():
        # Names may have signs that the font lacks, and be longer than the figure.
        warnings.filterwarnings("ignore", r"Glyph .* missing|constrained_layout not applied")
        figure.savefig(buffer, format=file_format, dpi=200, metadata=metadata)
    return buffer.getvalue()


def _show_as_written(figure: Figure) -> None:
    """Show names out of data as they are, not as formulas; powers on logarithmic axes remain."""
    powers = {
        id(label)
        for panel in figure.axes
        for axis in (panel.xaxis, panel.yaxis)
        if isinstance(axis.get_major_formatter(), LogFormatter)
        for label in axis.get_ticklabels(which="both")
    }
    for text in figure.findobj(Text):
        if id(text) not in powers:
            text.set_parse_math(False)


def save_figures(figures: Mapping[str, Figure], directory: Path) -> list[Path]:
    """Write figures by stem as PNG and PDF into an existing directory and return the paths.

    Stems may come out of data; see `file_stem`.
    """
    paths = []
    for stem, figure in figures.items():
        for ending in FORMATS:
            paths.append(directory / f"{file_stem(stem)}.{ending}")
            write_durably(paths[-1], render(figure, ending))
    return paths
