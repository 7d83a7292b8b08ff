"""The page of `lwdctl inspect --html`: what is in files of demonstrations, with plots."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lwdctl.analysis.plotting import COLORS, REFERENCE_COLOR, finish, new_figure
from lwdctl.analysis.report.content import MOST_FOLDED, CaptionedTable, Picture, embed_figure
from lwdctl.analysis.report.pages import page_templates
from lwdctl.analysis.tables import EMPTY
from lwdctl.core.plain_text import plain_text
from lwdctl.data.inspection_text import all_findings, facts, placed, tables

if TYPE_CHECKING:  # a report reads no data, and needs none of the readers
    from lwdctl.data.inspection import Inspection, Inspections

WIDTH = 5.2
"""Of every figure in inches: two stand side by side on a desk, one scales on a phone."""
MOST_ROWS = 200
MOST_LABELS = 20
MOST_COMPONENTS = 32
MOST_PANELS = 8
FAR = 3.0
"""A step limit further away than this many times the longest episode is not drawn."""


def render_inspections(found: Inspections) -> str:
    """Return one HTML page that needs no script and no other file; the same gives the same."""
    files = [_file(item) for item in found.files]
    names = [Path(item.path).name for item in found.files]
    title = names[0] if len(names) == 1 else f"{len(names)} files"
    template = page_templates().get_template("inspection.html")
    return template.render(title=f"Inspection of {title}", files=files, found=found) + "\n"


def _file(found: Inspection) -> dict[str, Any]:
    """Return what the template shows of one file."""
    rows: dict[str, list[str]] = {}
    name = ""
    for head, value in facts(found):
        name = head or name
        rows.setdefault(name, []).append(value)
    return {
        "path": found.path,
        "facts": rows,
        "findings": [(item, placed(item, found.path)) for item in all_findings(found)],
        "tables": [
            CaptionedTable(
                tuple(heads),
                tuple(tuple(cell if cell != "-" else EMPTY for cell in row) for row in cells),
                title,
                folded=len(cells) > MOST_FOLDED,
            )
            for title, (heads, cells) in tables(found, MOST_ROWS)
        ],
        "pictures": list(data_pictures(found.statistics)),
        "command": found.command,
    }


def data_pictures(numbers: Mapping[str, Any]) -> Iterator[Picture]:
    """Yield the plots of what `DataChecks.statistics` returned, none for {}."""
    if not numbers:
        return
    with warnings.catch_warnings():  # signs that the font has not are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        yield _lengths(numbers["length"])
        if any(item["return"] for item in numbers["labels"].values()):
            yield _returns(numbers["labels"])
        yield _action_ranges(numbers["action"])
        if numbers["example"]:
            yield _example(numbers["example"])


def _lengths(length: Mapping[str, Any]) -> Picture:
    figure, ((axes,),) = new_figure(WIDTH, 2.4)
    edges, counts = np.array(length["histogram"]["edges"]), length["histogram"]["counts"]
    limit, caption = length["limit"], "Episode lengths"
    is_near = 0 < limit <= FAR * length["maximum"]
    end = 1.05 * max(length["maximum"], limit if is_near else 0)
    # Where all episodes are equally long, the bar would be too thin to see.
    widths = np.maximum(np.diff(edges), 0.01 * end)
    middles = (edges[:-1] + edges[1:]) / 2
    axes.bar(middles, counts, widths, color=COLORS[0], edgecolor="white", linewidth=0.5)
    axes.set_xlim(0, end)
    if is_near:
        axes.axvline(limit, color=COLORS[1], linestyle="--", label=f"step limit {limit:,}")
        _legend_above(axes)
        caption += " beside the step limit"
    elif limit:
        caption += f"; the step limit of {limit:,} lies outside the plot"
    _title(axes, "Steps", "Episodes")
    return embed_figure(figure, caption)


def _returns(labels: Mapping[str, Any]) -> Picture:
    known = {name: item["return"] for name, item in labels.items() if item["return"]}
    shown = dict(list(known.items())[:MOST_LABELS])
    figure, ((axes,),) = new_figure(WIDTH, 0.9 + 0.3 * len(shown))
    for place, item in enumerate(shown.values()):
        axes.plot([item["minimum"], item["maximum"]], [place] * 2, color=COLORS[0], linewidth=5,
                  alpha=0.4, solid_capstyle="butt")  # fmt: skip
        axes.plot(item["median"], place, "o", color=COLORS[0], markersize=6)
    names = [_label(name) if name else "no label" for name in shown]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    _title(axes, "Return (sum of rewards)", "")
    left = len(known) - len(shown)
    more = f"; {left:,} more labels are in the table" if left else ""
    return embed_figure(figure, f"Returns per label: range and median{more}")


def _action_ranges(action: Mapping[str, Any]) -> Picture:
    low, high = np.array(action["low"]), np.array(action["high"])
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, np.finfo(float).tiny)
    smallest = ((np.array(action["minimum"]) - middle) / half)[:MOST_COMPONENTS]
    largest = ((np.array(action["maximum"]) - middle) / half)[:MOST_COMPONENTS]
    figure, ((axes,),) = new_figure(WIDTH, 1.1 + 0.2 * len(smallest))
    axes.barh(range(len(smallest)), largest - smallest, left=smallest, height=0.6, color=COLORS[0])
    for side in (-1, 1):
        label = "limits" if side > 0 else None
        axes.axvline(side, color=COLORS[1], linestyle="--", label=label, zorder=3)
    axes.set_xlim(min(-1, smallest.min()) - 0.08, max(1, largest.max()) + 0.08)
    axes.set_yticks(range(len(smallest)))
    axes.set_ylim(len(smallest) - 0.5, -0.5)
    _legend_above(axes)
    _title(axes, "Recorded range, scaled so that the limits are -1 and 1", "Action component")
    left = action["size"] - len(smallest)
    more = f"; {left:,} more components are not drawn" if left else ""
    return embed_figure(figure, f"Recorded actions beside their limits{more}")


def _example(example: Mapping[str, Any]) -> Picture:
    """Draw the actions of one episode, each with the observation that it follows."""
    actions = example["actions"][:MOST_PANELS]
    figure, rows = new_figure(WIDTH, 1.0 + 1.0 * len(actions), len(actions), sharex=True)
    pairs = zip(example["observations"], example["observation_names"], strict=True)
    for index, ((axes,), values, (seen, name)) in enumerate(
        zip(rows, actions, pairs, strict=False)
    ):
        axes.plot(values, color=COLORS[0], linewidth=1.2, label="action (left axis)")
        axes.set_ylabel(f"action[{index}]", size=8)
        axes.tick_params(labelsize=7)
        if seen is not None:
            other = axes.twinx()
            other.spines[["top"]].set_visible(False)
            other.tick_params(labelsize=7, colors=REFERENCE_COLOR)
            other.plot(seen, color=COLORS[1], linewidth=1, alpha=0.8,
                       label="observation that matches it best (right axis)")  # fmt: skip
            axes.set_title(_label(name), size=8, loc="right", color=REFERENCE_COLOR, pad=2)
    rows[-1][0].set_xlabel("Step", size=9)
    finish(figure, "")
    left = len(example["actions"]) - len(actions)
    more = f"; {left:,} more components are not drawn" if left else ""
    if any(item is not None for item in example["observations"]):
        more = f": a motion is the slope of its observation, a target comes before it{more}"
    source = plain_text(example["source"], 80)
    return embed_figure(figure, f"Actions of one episode ({source}) over time{more}")


def _legend_above(axes: Any) -> None:
    axes.legend(
        frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0
    )


def _title(axes: Any, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal, size=9)
    axes.set_ylabel(vertical, size=9)
    axes.tick_params(labelsize=8)


def _label(text: str) -> str:
    """Return a text from a file as a short label."""
    return plain_text(text, 32)
