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
from itertools import zip_longest
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from lwdctl.core.errors import LwdctlError
from lwdctl.envs.simulator import Simulator
from lwdctl.evaluation.frames import STILLS, Caption, Pixels, draw_frame, still_grid
from lwdctl.policies.policy import EpisodePlan

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
        """Return why an episode has no video: its name to the reason."""
        return {path.stem: path.read_text().strip() for path in self.folder.glob("episode-*.txt")}

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
        num_plans: How often the policy has re-planned; 0 for one that never does.
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
            self._write(draw_frame(self._simulator.render(), self._caption(moment)))
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
            still_grid(self._stills()).save(self._target.with_suffix(".png"), optimize=True)
            self._unfinished.replace(self._target)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)

    def discard(self) -> None:
        """Drop the video of an episode that was lost."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        self._unfinished.unlink(missing_ok=True)

    def _caption(self, moment: Moment) -> Caption:
        return Caption(
            title=self._title,
            progress=f"step {moment.step}/{moment.limit}",
            num_plans=moment.num_plans,
            perturbations=moment.perturbations,
            reading=moment.reading,
            solved=moment.solved,
            replanned=moment.num_plans > max(1, self._drawn.num_plans),
            perturbed=moment.perturbations > self._drawn.perturbations,
        )

    def _write(self, frame: Pixels) -> None:
        if self._writer is None:
            self._size = (frame.shape[1], frame.shape[0])
            self._prepare()
            self._writer = Mp4Writer(self._unfinished, *self._size, self._rate)
        self._writer.write(frame)
        self._count += 1

    def _prepare(self) -> None:
        folder = self._target.parent
        folder.mkdir(parents=True, exist_ok=True)
        # An earlier attempt's encoder may still hold its file, which is unlinked here.
        for path in (self._unfinished, *folder.glob(f"{self._target.stem}.*")):
            path.unlink(missing_ok=True)

    def _stills(self) -> list[Pixels]:
        """Read frames at even distances from the first to the last."""
        positions = np.linspace(0, self._count - 1, min(STILLS, self._count)).round()
        return read_frames(self._unfinished, positions.astype(int).tolist(), *self._size)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        hint = f" ({error.hint})" if isinstance(error, LwdctlError) and error.hint else ""
        reason = f"{type(error).__name__}: {error}{hint}".splitlines()[0]
        # A full disk may be what went wrong.
        with suppress(OSError):
            self.discard()
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._target.with_suffix(".txt").write_text(reason + "\n")


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
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError:
            raise OSError(self._failure()) from None

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

    def _failure(self) -> str:
        assert self._process.stderr is not None
        return _reason(self._process.stderr.read())


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
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", "error"]


def _reason(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return f"ffmpeg failed: {lines[-1] if lines else 'without a message'}"
