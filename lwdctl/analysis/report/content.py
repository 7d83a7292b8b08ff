"""What a page is made of: blocks of text, tables, and pictures as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from lwdctl.analysis.plotting import render
from lwdctl.analysis.tables import EMPTY, Table

PERTURBATION = "perturbation"
PIXELS_PER_INCH = 96
"""Of CSS."""
STILLS_WIDTH = 960
"""Widest grid of stills, in pixels; evaluations keep the full size."""
_JPEG_QUALITY = 82
_DENSITY = 2
"""File pixels per CSS pixel of the figures that analyses write."""


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


def data_uri(content: bytes, media_type: str) -> str:
    """Return bytes as a `data:` address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def embed_figure(figure: Figure, caption: str) -> Picture:
    """Return a figure as an SVG picture, the same bytes for the same figure."""
    width = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return Picture(data_uri(render(figure, "svg"), "image/svg+xml"), caption, width)


def embed_png(path: Path, caption: str) -> Picture:
    """Return a PNG file as it is.

    Raises:
        OSError: It cannot be read or is no picture.
    """
    with Image.open(path) as image:
        width = image.width // _DENSITY
    return Picture(data_uri(path.read_bytes(), "image/png"), caption, width)


def embed_stills(path: Path, caption: str) -> Picture:
    """Return a grid of stills as a small JPEG.

    Raises:
        OSError: It cannot be read or is no picture.
    """
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    if pixels.width > STILLS_WIDTH:
        height = round(pixels.height * STILLS_WIDTH / pixels.width)
        pixels = pixels.resize((STILLS_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    pixels.save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return Picture(data_uri(buffer.getvalue(), "image/jpeg"), caption, pixels.width)
