"""Videos of single episodes, written by the process that holds the simulator.

A recorder never harms its episode: what goes wrong while rendering or encoding ends the video,
and a text file beside where it would have been says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from lwdctl.core.errors import LwdctlError
from lwdctl.envs.simulator import Simulator
from lwdctl.evaluation.encoder import Mp4Writer, read_frames
from lwdctl.evaluation.frames import STILLS, Caption, Pixels, draw_frame, still_grid
from lwdctl.policies.policy import EpisodePlan

MOST_FRAMES_PER_SECOND = 25
USUAL_CONTROL_RATE = 25.0
"""Steps per second where the simulator does not say."""


@dataclass(frozen=True)
class Recording:
    """What to record of a run.

    Attributes:
        folder: Where `episode-000.mp4` and `episode-000.png` go.
        title: What acts, in words.
        episodes: Indices of the plans to record.
        every: Steps from frame to frame; 0 chooses at most 25 frames per second.
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
        """Remove what lost processes left unfinished."""
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
        every: Steps per frame wished for, 0 for the fewest that keep to 25 frames per second.
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
        plan: Which plan the policy follows, counted from 1; 0 for none.
        shoves: Disturbances so far.
        reading: A number of the simulator in words, or "".
        solved: Whether the task was solved by now.
        over: Whether the episode has ended.
    """

    step: int
    limit: int
    plan: int = 0
    shoves: int = 0
    reading: str = ""
    solved: bool = False
    over: bool = False


class EpisodeRecorder:
    """Writes one episode; a file appears under its name once it is whole.

    Args:
        recording: What to record, and where to.
        plan: The episode.
        simulator: What to look at.
    """

    def __init__(self, recording: Recording, plan: EpisodePlan, simulator: Simulator) -> None:
        self._target = recording.folder / f"episode-{plan.index:03d}.mp4"
        # Hidden until it is whole: the encoder of a killed process may still be writing to it.
        self._unfinished = self._target.with_name(f".{self._target.name}")
        self._title = f"{recording.title} · {plan.task}"
        self._simulator = simulator
        self._stride, self._rate = pace(simulator.action.control_rate, recording.every)
        self._writer: Mp4Writer | None = None
        self._size = (0, 0)
        self._drawn = Moment(0, 0)
        self._count = 0
        self._failed = False

    def see(self, moment: Moment) -> None:
        """Draw the scene when a frame is due.

        Marks compare with the frame drawn before, so none is lost between two frames.
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
        """Complete the video and its stills, up to the last frame seen."""
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
        """Drop the video: its episode counts for nothing."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        self._unfinished.unlink(missing_ok=True)

    def _caption(self, moment: Moment) -> Caption:
        return Caption(
            title=self._title,
            clock=f"step {moment.step}/{moment.limit}",
            plan=moment.plan,
            shoves=moment.shoves,
            reading=moment.reading,
            solved=moment.solved,
            replanned=moment.plan > max(1, self._drawn.plan),
            shoved=moment.shoves > self._drawn.shoves,
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
        # An earlier attempt's encoder may still hold its file; let it write into nowhere.
        for path in (self._unfinished, *folder.glob(f"{self._target.stem}.*")):
            path.unlink(missing_ok=True)

    def _stills(self) -> list[Pixels]:
        """Read frames evenly spread from the first to the last."""
        spread = np.linspace(0, self._count - 1, min(STILLS, self._count)).round()
        return read_frames(self._unfinished, spread.astype(int).tolist(), *self._size)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        hint = f" ({error.hint})" if isinstance(error, LwdctlError) and error.hint else ""
        reason = f"{type(error).__name__}: {error}{hint}".splitlines()[0]
        # A full disk may be what went wrong.
        with suppress(OSError):
            self.discard()
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._target.with_suffix(".txt").write_text(reason + "\n")
