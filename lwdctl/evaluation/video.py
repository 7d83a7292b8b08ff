"""Videos of single episodes, written by the process that holds the simulator.

A recorder never harms its episode: an error while rendering or encoding ends the video, and a text
file in its place states the reason. Files are MP4, written through the ffmpeg program that comes
with the package imageio-ffmpeg.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import LwdctlError
from lwdctl.envs.simulator import Simulator
from lwdctl.policies.policy import EpisodePlan

if TYPE_CHECKING:
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

FFMPEG_FAILED = "ffmpeg failed"
"""How the message of an error of the encoder begins."""

MOST_FRAMES_PER_SECOND = 25
USUAL_CONTROL_RATE = 25.0
"""Steps per second where the simulator does not state them."""


@dataclass(frozen=True)
class Recording:
    """What to record of a run.

    Attributes:
        folder: Where `episode-000.mp4` and `episode-000.png` go.
        title: Name of the policy, as the caption shows it.
        episodes: Indices of the plans to record.
        every: Steps from frame to frame; 0 gives at most 25 frames per second in real time.
    """

    folder: Path
    title: str
    episodes: frozenset[int]
    every: int = 0

    def videos(self) -> list[Path]:
        """Return the finished videos in the order of their episodes."""
        return sorted(self.folder.glob("episode-*.mp4"))

    def failures(self) -> dict[str, str]:
        """Return why an episode has no video: its name to the reason, with the hint if any."""
        return {
            name: f"{reason} ({hint})" if hint else reason
            for name, (reason, hint) in self.causes().items()
        }

    def causes(self) -> dict[str, tuple[str, str]]:
        """Return why an episode has no video: its name to the reason and the hint, or ""."""
        found = {}
        for path in self.folder.glob("episode-*.txt"):
            reason, _, hint = path.read_text().partition("\n")
            found[path.stem] = (reason, hint.strip())
        return found

    def sweep(self) -> None:
        """Remove the unfinished files of lost processes."""
        for path in self.folder.glob(".episode-*"):
            path.unlink()


def first_episodes(plans: Sequence[EpisodePlan], count: int) -> frozenset[int]:
    """Choose `count` plans: the first of every task, then the second, and so on."""
    by_task: dict[str, list[int]] = {}
    for plan in plans:
        by_task.setdefault(plan.task, []).append(plan.index)
    order = [index for turn in zip_longest(*by_task.values()) for index in turn]
    return frozenset([index for index in order if index is not None][:count])


def pace(control_rate: float, every: int) -> tuple[int, float]:
    """Return steps per frame, and frames per second that play in real time.

    Args:
        control_rate: Steps per second, 0 when unknown.
        every: Steps per frame, or 0 for the fewest that give at most 25 frames per second.
    """
    rate = control_rate or USUAL_CONTROL_RATE
    stride = every or math.ceil(rate / MOST_FRAMES_PER_SECOND)
    return stride, max(1.0, rate / stride)


@dataclass(frozen=True)
class Moment:
    """Where an episode is.

    Attributes:
        step: Steps taken.
        limit: Steps the episode may take.
        num_plans: Plans that the policy has followed, the first included; 0 for one that does not
            plan ahead.
        perturbations: Perturbations so far.
        reading: A number of the simulator as text (`"overlap 0.53"`), or "".
        solved: Whether the task was solved by now.
        over: Whether the episode has ended.
    """

    step: int
    limit: int
    num_plans: int = 0
    perturbations: int = 0
    reading: str = ""
    solved: bool = False
    over: bool = False


def draw_frame(image: Pixels, title: str, moment: Moment, before: Moment) -> Pixels:
    """Return an image (height, width, 3) with highlights, above a strip of two lines of text.

    A blue border marks a re-plan since the frame before, an orange tag a perturbation. The
    returned height and width are even, as H.264 requires.
    """
    from PIL import Image, ImageDraw

    height, width = image.shape[:2]
    size, edge = max(10, width // 26), max(3, width // 60)
    line = size + size // 2
    width, total = width + width % 2, height + 2 * line + size // 2
    canvas = Image.new("RGB", (width, total + total % 2), STRIP_COLOR)
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    # The first plan is none that replaces another.
    replanned = moment.num_plans > max(1, before.num_plans)
    perturbed = moment.perturbations > before.perturbations
    plan_box = REPLAN_COLOR if replanned else None
    perturbation_box = PERTURBATION_COLOR if perturbed else None
    if replanned:
        draw.rectangle((0, 0, width - 1, height - 1), outline=REPLAN_COLOR, width=edge)
    if perturbed:
        _write(draw, (2 * edge, 2 * edge), "perturbed", size + 2, box=perturbation_box)
    left, right, top = size // 2, width - size // 2, height + size // 3
    _write(draw, (left, top), title, size)
    _write(draw, (right, top), f"step {moment.step}/{moment.limit}", size, anchor="ra")
    top += line
    state, color = ("solved", SOLVED_COLOR) if moment.solved else ("not solved", DIM_COLOR)
    _write(draw, (right, top), state, size, fill=color, anchor="ra")
    items: list[tuple[str, Color | None]] = [
        (f"plan {moment.num_plans}" if moment.num_plans else "", plan_box),
        (f"perturbations {moment.perturbations}" if moment.perturbations else "", perturbation_box),
        (moment.reading, None),
    ]
    for text, box in items:
        if text:
            left = _write(draw, (left, top), text, size, box=box) + size
    return np.asarray(canvas)


def still_grid(frames: Sequence[Pixels]) -> Image.Image:
    """Return frames (height, width, 3) of one size as rows of four, scaled down."""
    from PIL import Image

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
    fill = STRIP_COLOR if box else fill
    left, top, right, bottom = draw.textbbox(place, text, font=font, anchor=anchor)
    if box is not None:
        edge = size // 4
        draw.rectangle((left - edge, top - edge, right + edge, bottom + edge), fill=box)
    draw.text(place, text, fill=fill, font=font, anchor=anchor)
    return int(right)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


class EpisodeRecorder:
    """Writes one episode; a file appears under its name once it is complete.

    Args:
        recording: What to record, and where.
        plan: The episode.
        simulator: Renders the frames.
    """

    def __init__(self, recording: Recording, plan: EpisodePlan, simulator: Simulator) -> None:
        self._target = recording.folder / f"episode-{plan.index:03d}.mp4"
        # Hidden until it is complete: the encoder of a killed process may still be writing to it.
        self._unfinished = self._target.with_name(f".{self._target.name}")
        self._title = f"{recording.title} · {plan.task}"
        self._simulator = simulator
        self._stride, self._rate = pace(simulator.action.control_rate, recording.every)
        self._writer: Mp4Writer | None = None
        self._size = (0, 0)
        self._drawn = Moment(0, 0)
        self._count = 0
        self._failed = False

    def record(self, moment: Moment) -> None:
        """Draw the scene when a frame is due.

        Highlights compare with the frame before, so none is lost between two frames.
        """
        if self._failed or (moment.step % self._stride and not moment.over):
            return
        try:
            image = self._simulator.render()
            self._write(draw_frame(image, self._title, moment, self._drawn))
        except Exception as error:  # noqa: BLE001
            # Renderers and encoders fail in ways of their own; none is the episode's fault.
            self._fail(error)
        self._drawn = moment

    def finish(self) -> None:
        """Complete the video and its stills, up to the last frame drawn."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
            # Stills are frames at even distances from the first to the last.
            positions = np.linspace(0, self._count - 1, min(STILLS, self._count)).round()
            stills = read_frames(self._unfinished, positions.astype(int).tolist(), *self._size)
            still_grid(stills).save(self._target.with_suffix(".png"), optimize=True)
            self._unfinished.replace(self._target)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)

    def discard(self) -> None:
        """Drop the video of an episode that was lost."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        self._unfinished.unlink(missing_ok=True)

    def _write(self, frame: Pixels) -> None:
        if self._writer is None:
            self._size = (frame.shape[1], frame.shape[0])
            folder = self._target.parent
            folder.mkdir(parents=True, exist_ok=True)
            # An earlier attempt's encoder may still hold its file, which is unlinked here.
            for path in (self._unfinished, *folder.glob(f"{self._target.stem}.*")):
                path.unlink(missing_ok=True)
            self._writer = Mp4Writer(self._unfinished, *self._size, self._rate)
        self._writer.write(frame)
        self._count += 1

    def _fail(self, error: Exception) -> None:
        self._failed = True
        lines = f"{type(error).__name__}: {error}".splitlines()[:1]
        if isinstance(error, LwdctlError) and error.hint:
            lines.append(error.hint)
        # A full disk may be what went wrong.
        with suppress(OSError):
            self.discard()
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._target.with_suffix(".txt").write_text("\n".join(lines) + "\n")


class Mp4Writer:
    """Encodes frames as H.264 in the pixel format that every player shows.

    Args:
        path: File to write; it is complete only after `close`.
        width: Pixels, even.
        height: Pixels, even.
        rate: Frames per second.
    """

    def __init__(self, path: Path, width: int, height: int, rate: float) -> None:
        frames_per_second = str(Fraction(rate).limit_denominator(1000))
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        # One thread each: many episodes may be encoded side by side.
        coded = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-threads", "1"]
        self._process = subprocess.Popen(  # noqa: S603 - the arguments are ours
            [
                *_ffmpeg(), "-y", *raw, "-r", frames_per_second, "-i", "-",
                "-an", *coded, "-pix_fmt", "yuv420p", "-f", "mp4", str(path),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # an interrupt is for the parent to deal with
        )  # fmt: skip

    def write(self, frame: Pixels) -> None:
        """Add a frame (height, width, 3).

        Raises:
            OSError: ffmpeg has stopped.
        """
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError:
            raise OSError(_reason(self._process.stderr.read())) from None

    def close(self) -> None:
        """Complete the file.

        Raises:
            OSError: ffmpeg failed.
        """
        _, errors = self._process.communicate()
        if self._process.returncode:
            raise OSError(_reason(errors))

    def abandon(self) -> None:
        """Stop at once; the file is of no use."""
        self._process.kill()
        self._process.communicate()


def read_frames(path: Path, positions: Sequence[int], width: int, height: int) -> list[Pixels]:
    """Decode the frames (height, width, 3) at these positions, counted from 0.

    Raises:
        OSError: The file cannot be decoded.
    """
    selected = "+".join(f"eq(n,{position})" for position in positions)
    select = ["-vf", f"select='{selected}'", "-fps_mode", "passthrough"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(  # noqa: S603 - as above
        [*_ffmpeg(), "-i", str(path), *select, *raw],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise OSError(_reason(done.stderr))
    return list(np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3))


def _ffmpeg() -> list[str]:
    import imageio_ffmpeg

    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", "error"]


def _reason(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return f"{FFMPEG_FAILED}: {lines[-1] if lines else 'without a message'}"
