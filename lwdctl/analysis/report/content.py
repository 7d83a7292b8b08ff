"""What a report shows, as plain records: text, tables, pictures as data URIs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lwdctl.analysis.tables import EMPTY, Table

PERTURBATION = "perturbation"


@dataclass(frozen=True)
class CaptionedTable(Table):
    """A table of text cells; the first cell of a row names it.

    Attributes:
        caption: What the table shows.
        folded: Whether it is hidden behind its caption at first.
        wraps: Whether its first cells are long and may be broken into lines.
    """

    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    folded: bool = False
    wraps: bool = False

    def without_empty_columns(self) -> CaptionedTable:
        """Leave out columns without any value, and perturbations that are all 0."""
        if not self.rows:
            return self
        kept = [
            index
            for index, name in enumerate(self.columns)
            if {row[index] for row in self.rows} - {EMPTY, "0" if name == PERTURBATION else EMPTY}
        ]
        columns = tuple(self.columns[index] for index in kept)
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return replace(self, columns=columns, rows=rows)


@dataclass(frozen=True)
class Expected:
    """An expected number beside the measured one; `met` is None where nothing was measured."""

    metric: str
    where: str
    measured: str
    expected: str
    met: bool | None
    source: str


@dataclass(frozen=True)
class RecipeResults:
    """A recipe and what its stages gave.

    Attributes:
        title: What the experiment shows.
        path: Its file.
        paper: Table or figure of the paper that it reproduces.
        time: Wall time that the recipe states.
        device: Machine that the time was measured on.
        command: The command line that runs it.
        smoke: Whether its toy size was run.
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
    """The first numbers to read of one comparison.

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
    tables: tuple[CaptionedTable, ...]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]
    methods: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class AnalysisSection:
    """A section of an analysis."""

    title: str
    text: tuple[str, ...]
    picture: Picture | None
    table: CaptionedTable | None


@dataclass(frozen=True)
class Analysis:
    """One analysis artifact; `command` made it, as far as its manifest says."""

    title: str
    reference: str
    command: str
    sections: tuple[AnalysisSection, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingCurves:
    """The training log of one artifact."""

    reference: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode: its stills, and its video as a data URI, or "" where it was left out."""

    title: str
    stills: Picture | None
    video: str
    note: str


@dataclass(frozen=True)
class ArtifactEntry:
    """One artifact of the lineage; `command` made it, as far as its manifest says."""

    reference: str
    anchor: str
    digest: str
    finished: str
    seconds: str
    seed: str
    commit: str
    inputs: tuple[str, ...]
    command: str
    settings: CaptionedTable


@dataclass(frozen=True)
class Lineage:
    """Everything that the results derive from, oldest first; `alerts` are short warnings."""

    artifacts: tuple[ArtifactEntry, ...]
    machines: CaptionedTable
    software: CaptionedTable
    data: CaptionedTable | None
    alerts: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The whole page; `missing` maps an empty section to the reason."""

    title: str
    lead: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    recipes: tuple[RecipeResults, ...]
    results: tuple[Results, ...]
    analyses: tuple[Analysis, ...]
    curves: tuple[TrainingCurves, ...]
    episodes: tuple[RecordedEpisode, ...]
    lineage: Lineage
    warnings: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
