"""Training curves: every loss term of a `metrics.jsonl` against training steps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lwdctl.analysis.plotting import COLORS, new_figure
from lwdctl.analysis.report.content import Block, Picture, embed_figure
from lwdctl.artifacts.artifact import Artifact

LOG = "metrics.jsonl"
TRAINED = ("vae", "diffusion", "baseline")
"""Types of artifact that keep a training log."""
HELD_OUT = "held_out_"
NO_LOSS = ("update", "seconds", "samples_per_second", "learning_rate")
MOST_POINTS = 400
"""Longer curves are averaged over neighboring rows."""
LOG_SPAN = 10.0
"""A term that spans more than this factor is drawn on a logarithmic axis."""

Points = tuple[list[float], list[float]]
Row = Mapping[str, float]


def training_curves(artifacts: Sequence[Artifact]) -> tuple[Block, ...]:
    """Draw the logs of the artifacts that were trained; note where one is missing."""
    return tuple(_curves(item) for item in artifacts if item.type in TRAINED)


def read_rows(path: Path) -> tuple[list[Row], int]:
    """Return a log's rows and how many of its lines could not be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [], 0
    rows: list[Row] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "update" in row:
            rows.append(row)
    return rows, len(lines) - len(rows)


def _curves(artifact: Artifact) -> Block:
    logs = [file.path for file in artifact.manifest.files if file.path.split("/")[-1] == LOG]
    if not logs:
        return Block(artifact.reference, notes=(f"no {LOG} among its files",))
    pictures: list[Picture] = []
    notes: list[str] = []
    for log in sorted(logs):
        part = log.removesuffix(LOG).strip("/")
        rows, broken = read_rows(artifact.path / log)
        drawn = list(_pictures(rows, f"{artifact.reference} {part}".strip()))
        pictures += drawn
        if broken:
            notes.append(f"{log}: {broken} lines could not be read and were left out")
        if not drawn:
            notes.append(f"{log}: {len(rows)} rows, too few for a curve")
    return Block(artifact.reference, pictures=tuple(pictures), notes=tuple(notes))


def _pictures(rows: Sequence[Row], where: str) -> Iterator[Picture]:
    names = dict.fromkeys(name for row in rows for name in row)
    for name in names:
        if name in NO_LOSS or name.startswith(HELD_OUT):
            continue
        lines = {"training": _points(rows, name), "held out": _points(rows, HELD_OUT + name)}
        if len(lines["training"][0]) < 2:
            continue
        title = name.replace("_", " ")
        last = ", ".join(f"{key} {ys[-1]:.4g}" for key, (_, ys) in lines.items() if ys)
        caption = f"{where}: {title} against training steps; last: {last}"
        yield embed_figure(_figure(title, lines), caption)


def _points(rows: Sequence[Row], name: str) -> Points:
    known = [
        (float(row["update"]), float(row[name]))
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]
    size = max(1, math.ceil(len(known) / MOST_POINTS))
    groups = [known[start : start + size] for start in range(0, len(known), size)]
    # The last step of a group stands for it: nothing is shown before it was measured.
    return [group[-1][0] for group in groups], [
        math.fsum(value for _, value in group) / len(group) for group in groups
    ]


def _figure(title: str, lines: Mapping[str, Points]) -> Figure:
    figure, ((axes,),) = new_figure(4.4, 2.9)
    for (name, (xs, ys)), color in zip(lines.items(), COLORS, strict=False):
        if xs:
            marker = "o" if len(xs) <= 30 else ""
            axes.plot(xs, ys, color=color, label=name, linewidth=1.3, marker=marker, markersize=3)
    values = [value for _, ys in lines.values() for value in ys]
    if min(values) > 0 and max(values) / min(values) > LOG_SPAN:
        axes.set_yscale("log")
    axes.set_title(title, size=10)
    axes.set_xlabel("Training steps", size=9)
    axes.tick_params(labelsize=8)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure
