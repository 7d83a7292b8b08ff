"""What a report shows, as plain records: text, tables, pictures as data URIs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lwdctl.artifacts.artifact import Artifact


@dataclass(frozen=True)
class Expected:
    """An expected number beside the measured one; `met` is None where nothing was measured."""

    stage: str
    metric: str
    where: str
    measured: str
    expected: str
    met: bool | None
    source: str


@dataclass(frozen=True)
class RecipeFacts:
    """A recipe and what became of its stages.

    Attributes:
        title: What the experiment shows.
        path: Its file.
        paper: Table or figure of the paper that it stands for.
        time: Wall time as the recipe says it.
        device: Machine that time was measured on.
        command: The line that runs it.
        smoke: Whether its toy size is meant.
        expected: Expected numbers beside measured ones; empty for a toy run.
        missing: Ids of stages without an artifact that is up to date.
    """

    title: str
    path: str
    paper: str
    time: str
    device: str
    command: str
    smoke: bool
    expected: tuple[Expected, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Making:
    """How an artifact was made.

    Attributes:
        command: The stage's command (`"train-vae"`), or "" where no stage is known for it.
        line: The command line that makes it again, or "".
        changed: Settings that differ from the stage's defaults.
    """

    command: str
    line: str
    changed: Mapping[str, Any]


Describe = Callable[[Artifact], Making]
"""Tells how an artifact was made; stages are known above this room only."""


@dataclass(frozen=True)
class Grid:
    """A table with a caption.

    Attributes:
        caption: What it shows.
        columns: Column names, with units.
        rows: Cells as text; the first of a row names it.
        folded: Hidden behind its caption at first.
        wraps: Its first cells are long and may be broken.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    wraps: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture; `width` is how wide it is shown where there is room, in CSS pixels."""

    uri: str
    caption: str
    width: int


@dataclass(frozen=True)
class Bar:
    """A value with its interval: positions in percent of the axis, and as text."""

    label: str
    detail: str
    text: str
    episodes: str
    more: str
    place: float
    low: float
    high: float


@dataclass(frozen=True)
class Headline:
    """The first thing to read of one comparison.

    Attributes:
        quantity: What the bars show.
        axis: Text at the left and right end of the bars.
        bars: One per policy and horizon.
        notes: What a reader must know beside them.
    """

    quantity: str
    axis: tuple[str, str]
    bars: tuple[Bar, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """Evaluations that can be compared with each other."""

    title: str
    headline: Headline | None
    grids: tuple[Grid, ...]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]
    methods: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Part:
    """A section of an analysis."""

    title: str
    text: tuple[str, ...]
    picture: Picture | None
    grid: Grid | None


@dataclass(frozen=True)
class Study:
    """One analysis artifact."""

    title: str
    reference: str
    command: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curves:
    """The training log of one artifact."""

    reference: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    """An episode: its stills, its video as a data URI, or "" where it was left out."""

    title: str
    stills: Picture | None
    video: str
    note: str


@dataclass(frozen=True)
class Node:
    """One artifact of the lineage."""

    reference: str
    anchor: str
    digest: str
    finished: str
    seconds: str
    seed: str
    commit: str
    inputs: tuple[str, ...]
    line: str
    changed: Grid | None
    settings: Grid


@dataclass(frozen=True)
class Lineage:
    """Everything the results were made from, oldest first; `alerts` are short warnings."""

    nodes: tuple[Node, ...]
    machines: Grid
    software: Grid
    data: Grid | None
    alerts: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The whole page."""

    title: str
    lead: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    recipes: tuple[RecipeFacts, ...]
    results: tuple[Results, ...]
    studies: tuple[Study, ...]
    curves: tuple[Curves, ...]
    clips: tuple[Clip, ...]
    lineage: Lineage
    warnings: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
