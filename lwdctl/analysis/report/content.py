"""What a page is made of: blocks of text, tables and pictures; those of single artifacts.

An analysis shows its sections, a trained model its loss terms against training steps, and an
evaluation its recorded episodes: grids of stills, and videos as far as they fit.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from lwdctl.analysis.plotting import COLORS, new_figure, render
from lwdctl.analysis.sections import FIGURES, Section, read_sections
from lwdctl.analysis.tables import EMPTY, Table
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.stored_files import read_stored, stored_file
from lwdctl.core.errors import ArtifactError, DataError, first_line
from lwdctl.core.untrusted import parse_json, typed

PERTURBATION = "perturbation"
PIXELS_PER_INCH = 96
"""Of CSS."""
STILLS_WIDTH = 960
"""Widest grid of stills, in pixels; evaluations keep the full size."""
_JPEG_QUALITY = 82
_DENSITY = 2
"""File pixels per CSS pixel of the figures that analyses write."""
MOST_FOLDED = 25
"""Longer tables are hidden behind their captions at first."""
LOG = "metrics.jsonl"
RECORDS = "episodes"
"""Folder of an evaluation with one record of episodes per condition."""
TRAINED = ("vae", "diffusion", "baseline")
"""Types of artifact that keep a training log."""
HELD_OUT = "held_out_"
NO_LOSS = ("update", "seconds", "samples_per_second", "learning_rate")
MOST_POINTS = 400
"""Longer curves are averaged over neighboring rows."""
LARGEST = 1e100
"""Larger numbers, NaN and infinity are not drawn: matplotlib cannot scale axes for them."""
LOG_SPAN = 10.0
"""A term that spans more than this factor is drawn on a logarithmic axis."""
VIDEO_BYTES = 4_000_000
"""Most bytes of videos that go into one report."""
MOST_EPISODES = 24
"""Most episodes that a report shows; the evaluation keeps the files of all."""
PICTURE_BYTES = 2**24
"""Most bytes of a picture."""
MOST_PIXELS = 2**25
"""Most pixels of a picture: decoded, they take 100 MB."""

Points = tuple[list[float], list[float]]
Row = Mapping[str, float | None]


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
class Picture:
    """A picture; `width` is how wide it is shown where there is room, in CSS pixels."""

    uri: str
    caption: str
    width: int


@dataclass(frozen=True)
class Block:
    """A heading with what stands below it: text, tables, pictures, notes, further blocks."""

    title: str
    reference: str = ""
    paragraphs: tuple[str, ...] = ()
    tables: tuple[CaptionedTable, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode: its stills, and its video as a data URI, or "" where it was left out."""

    title: str
    stills: Picture | None
    video: str
    note: str


def data_uri(content: bytes, media_type: str) -> str:
    """Return bytes as a `data:` address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def embed_figure(figure: Figure, caption: str) -> Picture:
    """Return a figure as an SVG picture, the same bytes for the same figure."""
    width = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return Picture(data_uri(render(figure, "svg"), "image/svg+xml"), caption, width)


def embed_png(directory: Path, name: str, caption: str) -> Picture:
    """Return a PNG file of an artifact as it is.

    Raises:
        ArtifactError: There is no such file inside the artifact, or it is a link, or too large.
        DataError: It is no picture.
    """
    content = read_stored(directory, name, PICTURE_BYTES)
    with _open_png(content, directory / name) as image:
        width = image.width // _DENSITY
    return Picture(data_uri(content, "image/png"), caption, width)


def embed_stills(directory: Path, name: str, caption: str) -> Picture:
    """Return a grid of stills as a small JPEG; raises as `embed_png` does."""
    path = directory / name
    with _open_png(read_stored(directory, name, PICTURE_BYTES), path) as image:
        try:
            pixels = image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{path} is damaged: {first_line(error)}") from error
    if pixels.width > STILLS_WIDTH:
        height = round(pixels.height * STILLS_WIDTH / pixels.width)
        pixels = pixels.resize((STILLS_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    pixels.save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return Picture(data_uri(buffer.getvalue(), "image/jpeg"), caption, pixels.width)


def _open_png(content: bytes, path: Path) -> Image.Image:
    """Open a picture after a look at how many pixels it would take; they are not decoded yet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # counted below
            image = Image.open(io.BytesIO(content), formats=("PNG",))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no picture: {type(error).__name__}") from error
    if image.width * image.height > MOST_PIXELS:
        raise DataError(
            f"{path} has {image.width:,} x {image.height:,} pixels, more than {MOST_PIXELS:,}"
        )
    return image


def show_analysis(artifact: Artifact) -> Block:
    """Return the sections of an analysis; what cannot be read becomes a note."""
    stage = artifact.manifest.provenance.get("stage")
    reference = f"{artifact.reference}, lwdctl {stage}" if stage else artifact.reference
    try:
        artifact.check()
        title, sections = read_sections(artifact.path)
    except ArtifactError as error:
        return Block(artifact.reference, reference, notes=(error.message,))
    notes: list[str] = []
    blocks = tuple(_section_block(section, artifact.path, notes) for section in sections)
    return Block(title, reference, notes=tuple(notes), blocks=blocks)


def _section_block(section: Section, directory: Path, notes: list[str]) -> Block:
    tables: list[CaptionedTable] = []
    pictures: list[Picture] = []
    if section.table:
        rows = section.table.cells()
        folded = len(rows) > MOST_FOLDED
        tables.append(CaptionedTable(section.table.columns, rows, section.title, folded))
    if section.figure:
        try:
            name = f"{FIGURES}/{section.figure}.png"
            pictures.append(embed_png(directory, name, section.title))
        except (DataError, ArtifactError) as error:
            notes.append(f"the figure {section.figure} cannot be shown: {error.message}")
    text = tuple(line.strip() for line in section.text.split("\n\n") if line.strip())
    return Block(section.title, paragraphs=text, tables=tuple(tables), pictures=tuple(pictures))


def read_rows(content: bytes) -> tuple[list[Row], int]:
    """Return a log's rows and how many of its lines could not be read."""
    lines = content.splitlines()
    rows: list[Row] = []
    for line in lines:
        try:
            row = typed(dict[str, float | None], parse_json(line, LOG, allow_nan=True), LOG)
        except ArtifactError:
            continue
        if row.get("update") is not None:
            rows.append(row)
    return rows, len(lines) - len(rows)


def training_curves(artifact: Artifact) -> Block:
    """Draw every loss term of a model's training logs; note where there is none."""
    files = artifact.manifest.files
    logs = {file.path: file for file in files if file.path.split("/")[-1] == LOG}
    if not logs:
        return Block(artifact.reference, notes=(f"no {LOG} among its files",))
    pictures: list[Picture] = []
    notes: list[str] = []
    for log in sorted(logs):
        part = log.removesuffix(LOG).strip("/")
        try:
            rows, broken = read_rows(artifact.read(logs[log]))
        except ArtifactError as error:
            notes.append(f"{log} is not shown: {error.message}")
            continue
        drawn = list(_curves(rows, f"{artifact.reference} {part}".strip()))
        pictures += drawn
        if broken:
            notes.append(f"{log}: {broken} lines could not be read and were left out")
        if not drawn:
            notes.append(f"{log}: {len(rows)} rows, too few for a curve")
    return Block(artifact.reference, pictures=tuple(pictures), notes=tuple(notes))


def _curves(rows: Sequence[Row], where: str) -> Iterator[Picture]:
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
        yield embed_figure(_loss_figure(title, lines), caption)


def _points(rows: Sequence[Row], name: str) -> Points:
    pairs = ((row["update"], row.get(name)) for row in rows)
    known = [
        (step, value)
        for step, value in pairs
        if step is not None and abs(step) < LARGEST and value is not None and abs(value) < LARGEST
    ]
    size = max(1, math.ceil(len(known) / MOST_POINTS))
    groups = [known[start : start + size] for start in range(0, len(known), size)]
    # The last step of a group stands for it: nothing is shown before it was measured.
    return [group[-1][0] for group in groups], [
        math.fsum(value for _, value in group) / len(group) for group in groups
    ]


def _loss_figure(title: str, lines: Mapping[str, Points]) -> Figure:
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


def recorded_episodes(
    evaluations: Sequence[Artifact],
) -> tuple[tuple[RecordedEpisode, ...], str]:
    """Show the first recorded episode of every policy, then the second, and so on.

    Returns:
        The episodes, with videos as far as they fit, and a note on how many are not shown, or "".
    """
    recordings = [
        (artifact, PurePosixPath(file.path))
        for artifact in evaluations
        for file in artifact.manifest.files
        if file.path.startswith("videos/") and file.path.endswith(".mp4")
    ]
    recordings.sort(key=lambda item: item[1].stem)  # stable: policies stay in their order
    left = VIDEO_BYTES
    episodes = []
    for artifact, inside in recordings[:MOST_EPISODES]:
        episode, used = _episode(artifact, inside, left)
        left -= used
        episodes.append(episode)
    note = f"{len(episodes)} of {len(recordings)} recorded episodes are shown;"
    note += " the evaluation holds all"
    return tuple(episodes), note if len(recordings) > len(episodes) else ""


def _episode(artifact: Artifact, inside: PurePosixPath, left: int) -> tuple[RecordedEpisode, int]:
    title = f"{inside.parent.name}, {_outcome(artifact, inside)}"
    name = str(inside)
    notes: list[str] = []
    stills, content = None, b""
    try:
        picture = str(inside.with_suffix(".png"))
        stills = embed_stills(artifact.path, picture, f"Stills of {title}")
    except (ArtifactError, DataError) as error:
        notes.append(f"no stills: {error.message}")
    try:
        size = stored_file(artifact.path, name).stat().st_size
        if size <= left:
            content = read_stored(artifact.path, name, left)
        else:
            notes.append(
                f"video left out for its size ({size / 1e6:.1f} MB): {artifact.reference}, {inside}"
            )
    except (ArtifactError, OSError) as error:
        notes.append(f"no video: {first_line(error)}")
    video = data_uri(content, "video/mp4") if content else ""
    return RecordedEpisode(title, stills, video, "; ".join(notes)), len(content)


def _outcome(artifact: Artifact, inside: PurePosixPath) -> str:
    """Return an episode's number, task and outcome, as far as they are recorded."""
    number = inside.stem.rpartition("-")[2]
    record: Mapping[str, Any] = {}
    try:
        content = read_stored(artifact.path, f"{RECORDS}/{inside.parent.name}.json")
        values = typed(dict[str, Any], parse_json(content, RECORDS, allow_nan=True), RECORDS)
        episodes = typed(list[dict[str, Any]], values.get("episodes"), RECORDS)
        record = next((one for one in episodes if str(one.get("index")) == str(int(number))), {})
    except (ArtifactError, ValueError):  # the video is shown without it
        pass
    parts = [f"episode {int(number) if number.isdecimal() else number}"]
    parts += [str(record[key]) for key in ("task", "label") if record.get(key)]
    if "success" in record:
        parts.append("solved" if record["success"] else "not solved")
    return ", ".join(parts)
