"""Where episodes end in files that hold them end to end, with one flag per row.

Flags are recorded by many programs and mean many things: a run of them may mark every step near
a goal, they may lie a row beside the step that ended, or mark rows after which the episode goes
on. The functions here split rows at flags and compare flags with the observations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError
from lwdctl.core.records import Finding, FloatArray

T = TypeVar("T")
Flags = npt.NDArray[np.bool_]

MAX_PLACES = 50
"""Ends that are looked at, evenly spaced over the file."""
_BLOCKS, _BLOCK_ROWS, _FEWEST_STEPS = 10, 500, 50
# A jump is this many times larger than all but one in a hundred of the ordinary steps.
_JUMP = 1.5
_MOST, _FEW, _FEWEST_ENDS = 0.9, 0.1, 3


class Rows(NamedTuple):
    """The rows `start:stop` of an episode."""

    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the episode (`"rows 0:1000"`)."""
        return f"rows {self.start}:{self.stop}"


def flags_of(values: npt.NDArray[Any], rows: int, where: str) -> Flags:
    """Return flags (rows,) stored as (rows,) or (rows, 1), as bool or number.

    Args:
        values: As they are stored.
        rows: Number of rows of the steps.
        where: File and key, for messages.

    Raises:
        DataError: Not one flag (0 or 1) per row.
    """
    if values.shape not in ((rows,), (rows, 1)):
        raise DataError(f"{where}: has shape {values.shape}, not one flag a row")
    values = values.reshape(-1)
    odd = np.flatnonzero((values != 0) & (values != 1))
    if odd.size:
        raise DataError(f"{where}, row {odd[0]}: {values[odd[0]]} is not a flag (0 or 1)")
    return values.astype(bool)


def split_at_flags(
    terminals: Flags, timeouts: Flags | None, mode: str, limit: int
) -> tuple[list[Rows], list[Rows]]:
    """Split rows into episodes.

    Args:
        terminals: (rows,) whether the episode ended at a row.
        timeouts: (rows,) whether it was cut off there, or None.
        mode: `"first"`: of a run of terminal flags the first ends the episode, and the rest of
            the run belongs to none. `"each"`: every flag ends one. `"ignore"`: none does.
        limit: Largest number of steps of an episode; longer ones are cut. 0 for no limit.

    Returns:
        The episodes, and the rests of runs that belong to none.
    """
    rows = len(terminals)
    cut_off = np.zeros(rows, dtype=bool) if timeouts is None else timeouts
    rest = np.zeros(rows, dtype=bool)
    ended = cut_off.copy()
    if mode == "first":
        rest[1:] = terminals[1:] & terminals[:-1] & ~cut_off[:-1]
    if mode != "ignore":
        ended |= terminals & ~rest
    edges = np.flatnonzero(np.diff(rest.astype(np.int8))) + 1
    bounds = sorted({0, rows, *(np.flatnonzero(ended) + 1).tolist(), *edges.tolist()})
    episodes: list[Rows] = []
    left_out: list[Rows] = []
    for start, stop in pairwise(bounds):
        if rest[start]:
            left_out.append(Rows(start, stop))
            continue
        step = limit or stop - start
        episodes += [Rows(row, min(row + step, stop)) for row in range(start, stop, step)]
    return episodes, left_out


def runs_left_out(rests: Sequence[Rows], where: str, hint: str) -> list[Finding]:
    """Return the finding about the rests of runs of flags, none where there are no such rows."""
    if not rests:
        return []
    count = sum(stop - start for start, stop in rests)
    message = (
        f"{count} rows in {len(rests)} runs of terminal flags: a run ends an episode at its first"
        f" flag, the rest is left out (first: rows {rests[0].start}:{rests[0].stop})"
    )
    values = {"rows": count, "runs": len(rests)}
    return [Finding("left-out", "warning", message, where, hint, values)]


@dataclass(frozen=True)
class Continuity:
    """Finds where one row does not follow from the one before: where an episode was reset.

    A file's own `next_observations` say it exactly. Otherwise a step counts as a jump if one of
    its components changes much more than in nearly all ordinary steps.

    Attributes:
        read: Returns the observations (time, obs) of the rows `start:stop`.
        read_next: Returns the recorded next observations of the rows, or None.
        scale: (obs,) usual change of a component in one step.
        threshold: Change, in units of `scale`, from which a step is a jump; infinity where too
            few steps are known.
    """

    read: Callable[[int, int], FloatArray]
    read_next: Callable[[int, int], FloatArray] | None
    scale: FloatArray
    threshold: float

    @classmethod
    def measure(
        cls,
        read: Callable[[int, int], FloatArray],
        read_next: Callable[[int, int], FloatArray] | None,
        flagged: Flags,
    ) -> Continuity:
        """Measure the ordinary steps: those that are not beside a flag."""
        rows = len(flagged)
        near = flagged.copy()
        near[:-1] |= flagged[1:]
        near[1:] |= flagged[:-1]
        changes: list[FloatArray] = []
        last = max(rows - _BLOCK_ROWS, 0)
        for start in sorted({round(x) for x in np.linspace(0, last, _BLOCKS)}):
            values = read(start, min(start + _BLOCK_ROWS, rows))
            changes.append(_changes(values)[~near[start : start + len(values) - 1]])
        steps = np.concatenate(changes)
        steps = steps[np.isfinite(steps).all(axis=1)]
        if len(steps) < _FEWEST_STEPS:
            return cls(read, read_next, np.ones(steps.shape[1], np.float32), np.inf)
        usual = np.quantile(steps, 0.9, axis=0)
        scale = np.where(usual > 0, usual, steps.mean(axis=0)).astype(np.float32)
        scale = np.maximum(scale, np.float32(1e-6))
        largest = (steps / scale).max(axis=1)
        return cls(read, read_next, scale, _JUMP * max(float(np.quantile(largest, 0.99)), 1.0))

    @property
    def is_known(self) -> bool:
        """Whether resets can be found."""
        return self.read_next is not None or bool(np.isfinite(self.threshold))

    def jumps(self, row: int) -> Flags:
        """Return (3,) whether `row`, `row + 1` and `row + 2` do not follow from the row before."""
        values = self.read(row - 1, row + 3)
        if self.read_next is not None:
            following = self.read_next(row - 1, row + 2)
            return np.asarray(~np.isclose(following, values[1:], rtol=1e-5, atol=1e-6).all(axis=1))
        large: Flags = (_changes(values) / self.scale).max(axis=1) > self.threshold
        return large

    def resets_at(self, flags: Sequence[Flags]) -> bool:
        """Return whether nearly all of these flags lie at resets."""
        rows = evenly([row for item in flags for row in _single_flags(item)])
        return bool(rows) and float(np.mean([self.jumps(row)[1] for row in rows])) >= _MOST


def _single_flags(flags: Flags) -> list[int]:
    """Return the rows of flags that belong to no run, with a row before and two rows after them."""
    beside = np.zeros_like(flags)
    beside[1:] = flags[:-1]
    beside[:-1] |= flags[1:]
    return [row for row in np.flatnonzero(flags & ~beside).tolist() if 1 <= row <= len(flags) - 3]


def _changes(values: FloatArray) -> FloatArray:
    """Return by how much each component changes from row to row."""
    with np.errstate(invalid="ignore"):  # infinity is named where the episode is read
        return np.abs(np.diff(values, axis=0))


def align_flags(
    key: str, flags: Flags, continuity: Continuity, where: str, others: Sequence[Flags] = ()
) -> tuple[Flags, list[Finding]]:
    """Compare flags with the observations, and move them where all lie a row beside the reset.

    Args:
        key: Name of the flags.
        flags: (rows,) flags; those of a run are not looked at.
        continuity: Finds the resets.
        where: File and key.
        others: Other flags of the same rows. Where these lie at resets, a single flag after which
            the episode goes on is doubtful; else it takes several.

    Returns:
        The flags, moved by a row where they were late or early, and what was found.
    """
    ends = _single_flags(flags)
    enough = len(ends) >= _FEWEST_ENDS
    if not ends or not continuity.is_known or not (enough or continuity.resets_at(others)):
        return flags, []
    looked_at = evenly(ends)
    jumps = np.stack([continuity.jumps(row) for row in looked_at])
    before, at, after = jumps.mean(axis=0)
    going_on = np.asarray(looked_at)[~jumps.any(axis=1)]
    values = {"ends": len(ends), "looked_at": len(looked_at), "going_on": len(going_on)}
    moved = np.zeros_like(flags)
    if enough and before >= _MOST and at <= _FEW:
        moved[:-1] = flags[1:]
        moved[-2:] = False, flags[-1]  # after the last row no episode follows
        problem = "a row late: each lies on the first step of the next episode"
    elif enough and after >= _MOST and at <= _FEW:
        moved[1:] = flags[:-1]
        problem = "a row early: the episode goes on for one more step"
    elif len(going_on) >= (1 if continuity.read_next else _MOST * len(looked_at)):
        judge = "next_observations" if continuity.read_next else "the observations"
        message = (
            f"after {len(going_on)} of {len(looked_at)} {key} the episode goes on, as {judge} show "
            f"(first in row {going_on[0]}); its parts are read as episodes of their own"
        )
        hint = "--terminals ignore" if key == "terminals" else ""
        return flags, [Finding("flags", "warning", message, where, hint, values)]
    else:
        return flags, []
    message = f"{key} come {problem}; all were moved ({len(looked_at)} of {len(ends)} looked at)"
    return moved, [Finding("adjusted", "warning", message, where, values=values)]


def evenly(places: Sequence[T]) -> list[T]:
    """Return at most `MAX_PLACES` of the places, evenly spaced."""
    if len(places) <= MAX_PLACES:
        return list(places)
    return [places[round(x)] for x in np.linspace(0, len(places) - 1, MAX_PLACES)]


def rows_without_zero_tail(read: Callable[[int, int], FloatArray], rows: int) -> int:
    """Return how many rows come before a tail of rows that are all zero: memory never filled.

    Args:
        read: Returns the numbers (time, size) of the rows `start:stop`.
        rows: Number of rows.

    Returns:
        `rows` where there is no such tail, or nothing but zeros.
    """
    stop = rows
    while stop:
        start = max(stop - 4096, 0)
        used = np.flatnonzero(read(start, stop).any(axis=1))
        if used.size:
            return start + int(used[-1]) + 1
        stop = start
    return rows
