"""Pictures as data URIs: figures as SVG, PNG files as they are, stills as small JPEGs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from lwdctl.analysis.plotting import render
from lwdctl.analysis.report.content import Picture

PIXELS_PER_INCH = 96
"""Of CSS."""
STILLS_WIDTH = 960
"""Widest grid of stills, in pixels; evaluations keep the full size."""
_JPEG_QUALITY = 82
_DENSITY = 2
"""File pixels per CSS pixel of the figures that analyses write."""


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
