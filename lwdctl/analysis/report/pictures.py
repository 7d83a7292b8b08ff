"""Pictures as data URIs: figures as SVG, files as they are or as small JPEGs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from lwdctl.analysis.report.records import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 96
"""CSS's."""
STILLS_WIDTH = 960
"""Widest grid of stills, in pixels; evaluations keep the full size."""
_JPEG_QUALITY = 82
_DENSITY = 2
"""File pixels per CSS pixel of the figures that analyses write."""


def data_uri(content: bytes, media_type: str) -> str:
    """Return bytes as a `data:` address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def draw(figure: Figure, caption: str) -> Picture:
    """Return a figure as a picture, the same bytes for the same figure."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    # Otherwise ids are drawn at random and the file holds the time of day.
    with mpl.rc_context({"svg.hashsalt": "lwdctl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    width = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return Picture(data_uri(buffer.getvalue(), "image/svg+xml"), caption, width)


def embed_png(path: Path, caption: str) -> Picture:
    """Return a PNG file as it is.

    Raises:
        OSError: It cannot be read or is no picture.
    """
    from PIL import Image

    with Image.open(path) as image:
        width = image.width // _DENSITY
    return Picture(data_uri(path.read_bytes(), "image/png"), caption, width)


def embed_stills(path: Path, caption: str) -> Picture:
    """Return a grid of stills as a small JPEG.

    Raises:
        OSError: It cannot be read or is no picture.
    """
    from PIL import Image

    with Image.open(path) as image:
        plain = image.convert("RGB")
    if plain.width > STILLS_WIDTH:
        height = round(plain.height * STILLS_WIDTH / plain.width)
        plain = plain.resize((STILLS_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    plain.save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return Picture(data_uri(buffer.getvalue(), "image/jpeg"), caption, plain.width)
