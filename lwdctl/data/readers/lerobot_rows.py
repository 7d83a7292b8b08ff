"""Which rows of a LeRobot dataset's data files belong to which episode, in which order.

The rows themselves decide: `episode_index` says where a row belongs and `frame_index` in which
order. Metadata, file names and the order of rows are not trusted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError

if TYPE_CHECKING:
    from lwdctl.data.files.parquet_files import Batch, ParquetTable

EPISODE, FRAME, TASK, TIME = "episode_index", "frame_index", "task_index", "timestamp"
REWARD, DONE, SUCCESS = "next.reward", "next.done", "next.success"
MAX_RECORDINGS = 100
"""Recordings that one `episode_index` is searched for."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighboring rows of one row group and one episode whose `frame_index` counts up by one.

    Attributes:
        file: Number of the data file.
        group: Row group.
        row: First row within the row group.
        frame: `frame_index` of the first row.
        length: Number of rows.
        task: `task_index` of the first row, -1 for none.
        one_task: Whether all rows have that `task_index`.
        success: Whether a row has a true `next.success`.
        done: Whether a row has a true `next.done`.
        values: Values of further columns in the first row.
    """

    file: int
    group: int
    row: int
    frame: int
    length: int
    task: int = -1
    one_task: bool = True
    success: bool = False
    done: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """One past the last `frame_index`."""
        return self.frame + self.length


@dataclass
class RowIndex:
    """The runs of every episode, and what was seen on the way.

    Attributes:
        runs: Per `episode_index`, its runs in the order of files and rows.
        columns: Which of the columns with a fixed meaning every file has.
        has_frames: Whether every file has a `frame_index`.
        bad_rewards: Rows whose reward is missing, NaN or infinite.
        seconds: Sum of the time steps between neighboring rows.
        steps: Number of those time steps.
    """

    runs: dict[int, list[Run]] = field(default_factory=dict)
    columns: set[str] = field(default_factory=lambda: {TASK, TIME, REWARD, DONE, SUCCESS})
    has_frames: bool = True
    bad_rewards: int = 0
    seconds: float = 0.0
    steps: int = 0

    def wanted(self, table: ParquetTable, extra: Sequence[str]) -> list[str]:
        """Return the columns of a file that `scan` reads.

        Raises:
            DataError: It has no `episode_index`.
        """
        if EPISODE not in table.types:
            raise DataError(f"{table.path}: {EPISODE}: is missing; it says where a row belongs")
        known = (EPISODE, FRAME, TASK, TIME, REWARD, DONE, SUCCESS)
        return list(dict.fromkeys([*(name for name in known if name in table.types), *extra]))

    def scan(self, table: ParquetTable, file: int, extra: Sequence[str]) -> None:
        """Add the rows of one data file.

        Args:
            table: The file, opened.
            file: Its number.
            extra: Further columns whose values at the first rows of runs are wanted.

        Raises:
            DataError: No `episode_index`, an index that is no whole number, or damaged bytes.
        """
        wanted = self.wanted(table, extra)
        self.has_frames = self.has_frames and FRAME in wanted
        self.columns &= set(wanted)
        for group in range(len(table.group_rows)):
            row = 0
            for batch in table.batches(group, wanted):
                self._add_batch(batch, (file, group, row), extra)
                row += batch.count

    def _add_batch(self, batch: Batch, place: tuple[int, int, int], extra: Sequence[str]) -> None:
        file, group, first = place
        has_frames, step = FRAME in batch.columns, np.ones(batch.count - 1, np.int64)
        episode, frame = batch.whole(EPISODE), np.zeros(batch.count, np.int64)
        if has_frames:
            frame = batch.whole(FRAME)
            step = np.diff(frame)
        starts = np.flatnonzero(np.r_[True, (np.diff(episode) != 0) | (step != 1)])
        ends = np.r_[starts[1:], batch.count]
        task = batch.whole(TASK) if TASK in batch.columns else np.full(batch.count, -1)
        success, done = batch.flags(SUCCESS), batch.flags(DONE)
        self._check_numbers(batch, starts)
        values = {name: batch.values(name, starts) for name in extra}
        for at, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            run = Run(
                file,
                group,
                first + start,
                int(frame[start]),
                end - start,
                int(task[start]),
                bool((task[start:end] == task[start]).all()),
                bool(success[start:end].any()),
                bool(done[start:end].any()),
                {name: found[at] for name, found in values.items()},
            )
            self._append(int(episode[start]), run, counts=has_frames)

    def _append(self, episode: int, run: Run, *, counts: bool) -> None:
        """Add a run; one that goes on where the last one ended is joined to it."""
        runs = self.runs.setdefault(episode, [])
        last = runs[-1] if runs else None
        if not counts and last is not None:  # frames are numbered in the order of rows
            run = replace(run, frame=last.end)
        neighbors = (
            last is not None
            and (last.file, last.group, last.row + last.length) == (run.file, run.group, run.row)
            and last.end == run.frame
        )
        if last is None or not neighbors:
            runs.append(run)
            return
        runs[-1] = replace(
            last,
            length=last.length + run.length,
            one_task=last.one_task and run.one_task and last.task == run.task,
            success=last.success or run.success,
            done=last.done or run.done,
        )

    def _check_numbers(self, batch: Batch, starts: npt.NDArray[np.int64]) -> None:
        if REWARD in batch.columns:
            self.bad_rewards += int((~np.isfinite(batch.scalars(REWARD))).sum())
        if TIME in batch.columns:
            steps = np.diff(batch.scalars(TIME).astype(np.float64))
            steps = np.delete(steps, starts[1:] - 1)
            steps = steps[np.isfinite(steps)]
            self.seconds += float(steps.sum())
            self.steps += len(steps)


class Recording:
    """The runs of one recorded episode in the order of their frames, none of them overlapping."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    @property
    def length(self) -> int:
        """Number of steps."""
        return sum(run.length for run in self.runs)

    @property
    def missing(self) -> int:
        """Number of frames that are missing between the first and the last one."""
        return self.runs[-1].end - self.runs[0].frame - self.length

    def add(self, run: Run) -> bool:
        """Add a run unless one of its frames is there already; return whether it was added."""
        at = bisect_left(self.runs, run.frame, key=lambda item: item.frame)
        if at and self.runs[at - 1].end > run.frame:
            return False
        if at < len(self.runs) and self.runs[at].frame < run.end:
            return False
        self.runs.insert(at, run)
        return True


def recordings_of(runs: Sequence[Run]) -> tuple[list[Recording], int, bool]:
    """Arrange the runs of one `episode_index`.

    Frames that begin anew are another recording: datasets that were merged without renumbering
    have such. Rows that repeat a part of a recording are left out. Where no frame follows another
    one, `frame_index` does not number the frames: they are one recording in the order of rows.

    Returns:
        The recordings, the number of rows that repeat a frame, and whether frames are numbered.
    """
    found: list[Recording] = []
    for run in runs:
        if len(found) == MAX_RECORDINGS:
            break
        if not any(recording.add(run) for recording in reversed(found)):
            found.append(Recording())
            found[-1].add(run)
    rows = sum(run.length for run in runs)
    if len(found) > 1 and all(item.length == 1 for item in found):
        ordered = Recording()
        for number, row in enumerate(_single_rows(runs)):
            ordered.runs.append(replace(row, frame=number))
        return [ordered], 0, False
    start = found[0].runs[0].frame
    whole = [item for item in found if item.runs[0].frame <= start]
    for fragment in (item for item in found if item.runs[0].frame > start):
        for row in _single_rows(fragment.runs):
            whole[0].add(row)
    return whole, rows - sum(item.length for item in whole), True


def _single_rows(runs: Sequence[Run]) -> Iterator[Run]:
    for run in runs:
        for offset in range(run.length):
            yield replace(run, row=run.row + offset, frame=run.frame + offset, length=1)
