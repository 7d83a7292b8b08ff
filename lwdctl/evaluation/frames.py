"""Video frames: the scene with a caption, and highlights of re-planning and perturbations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Color = tuple[int, int, int]

REPLAN_COLOR: Color = (40, 120, 255)
PERTURBATION_COLOR: Color = (255, 120, 20)
SOLVED_COLOR: Color = (90, 220, 110)
TEXT_COLOR: Color = (235, 235, 235)
DIM_COLOR: Color = (150, 150, 155)
STRIP_COLOR: Color = (24, 24, 28)

STILL_WIDTH = 360
STILL_COLUMNS = 4
STILLS = 12


@dataclass(frozen=True)
class Caption:
    """What is written on a frame.

    Attributes:
        title: Policy, latent and task.
        progress: Position in the episode (`"step 40/300"`).
        num_plans: How often the policy has re-planned; 0 for one that never does.
        perturbations: Perturbations so far.
        reading: A number of the simulator (`"overlap 0.53"`), or "".
        solved: Whether the task was solved by now.
        replanned: Whether the policy has re-planned since the last frame.
        perturbed: Whether there was a perturbation since the last frame.
    """

    title: str
    progress: str
    num_plans: int = 0
    perturbations: int = 0
    reading: str = ""
    solved: bool = False
    replanned: bool = False
    perturbed: bool = False


def draw_frame(image: Pixels, caption: Caption) -> Pixels:
    """Return the image with its highlights, above a strip of two lines of text.

    Re-planning is a blue border, a perturbation an orange tag in the upper left corner.

    Args:
        image: (height, width, 3).
        caption: What to write.

    Returns:
        (height, width, 3), both even, as H.264 wants them.
    """
    height, width = image.shape[:2]
    size = _text_size(width)
    line = size + size // 2
    width, total = width + width % 2, height + 2 * line + size // 2
    canvas = Image.new("RGB", (width, total + total % 2), STRIP_COLOR)
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    if caption.replanned:
        draw.rectangle((0, 0, width - 1, height - 1), outline=REPLAN_COLOR, width=border(width))
    if caption.perturbed:
        inset = 2 * border(width)
        _write(
            draw, (inset, inset), "perturbed", size + 2, fill=STRIP_COLOR, box=PERTURBATION_COLOR
        )
    _write_caption(draw, caption, width, height + size // 3, line)
    return np.asarray(canvas)


def border(width: int) -> int:
    """Return how many pixels wide the border of a frame of `width` is."""
    return max(3, width // 60)


def still_grid(frames: Sequence[Pixels]) -> Image.Image:
    """Return frames (height, width, 3) of one size as rows of four, scaled down."""
    height, width = frames[0].shape[:2]
    scale = min(1.0, STILL_WIDTH / width)
    tile_size = (round(width * scale), round(height * scale))
    columns = min(STILL_COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    gap = 4
    grid = Image.new(
        "RGB", (columns * (tile_size[0] + gap) + gap, rows * (tile_size[1] + gap) + gap)
    )
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        tile = Image.fromarray(frame).resize(tile_size, Image.Resampling.LANCZOS)
        grid.paste(tile, (gap + column * (tile_size[0] + gap), gap + row * (tile_size[1] + gap)))
    return grid


def _write_caption(
    draw: ImageDraw.ImageDraw, caption: Caption, width: int, top: int, line: int
) -> None:
    size = _text_size(width)
    right = width - size // 2
    _write(draw, (size // 2, top), caption.title, size)
    _write(draw, (right, top), caption.progress, size, anchor="ra")
    top += line
    state, color = ("solved", SOLVED_COLOR) if caption.solved else ("not solved", DIM_COLOR)
    _write(draw, (right, top), state, size, fill=color, anchor="ra")
    left = size // 2
    for text, box in _items(caption):
        fill = STRIP_COLOR if box else TEXT_COLOR
        left = _write(draw, (left, top), text, size, fill=fill, box=box) + size


def _items(caption: Caption) -> list[tuple[str, Color | None]]:
    """Return the texts of the second line, each with the color of its box if it has one."""
    items: list[tuple[str, Color | None]] = []
    if caption.num_plans:
        items.append((f"plan {caption.num_plans}", REPLAN_COLOR if caption.replanned else None))
    if caption.perturbations:
        items.append(
            (
                f"perturbations {caption.perturbations}",
                PERTURBATION_COLOR if caption.perturbed else None,
            )
        )
    if caption.reading:
        items.append((caption.reading, None))
    return items


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    *,
    fill: Color = TEXT_COLOR,
    box: Color | None = None,
    anchor: str = "la",
) -> int:
    """Write one line, on a filled box where a color is given; return where it ends."""
    font = _font(size)
    left, top, right, bottom = draw.textbbox(place, text, font=font, anchor=anchor)
    if box is not None:
        edge = size // 4
        draw.rectangle((left - edge, top - edge, right + edge, bottom + edge), fill=box)
    draw.text(place, text, fill=fill, font=font, anchor=anchor)
    return int(right)


def _text_size(width: int) -> int:
    return max(10, width // 26)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
