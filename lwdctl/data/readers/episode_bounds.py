"""Where the episodes of a file begin and end whose steps lie end to end.

A file says it in one of three ways: one past the last row of each episode, the length of each
episode, or a flag per row. Where the first axis counts episodes, each has rows of its own.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError
from lwdctl.core.records import Finding
from lwdctl.data.checks import check_rows
from lwdctl.data.readers.flags import Rows, flags_of, runs_left_out, split_at_flags

Bounds = list[Rows]
"""First row and one past the last row of each episode."""


@dataclass(frozen=True)
class Piece:
    """Where an episode lies.

    Attributes:
        prefix: Path of its group with a slash at its end, or "" in a flat file.
        start: Its first row.
        stop: One past its last row.
        place: Its position among all episodes that the file declares, also those left out.
    """

    prefix: str
    start: int
    stop: int
    place: int


def bounds_of_ends(values: npt.NDArray[Any], rows: int, where: str) -> tuple[Bounds, list[Finding]]:
    """Return the episodes that end before the rows `values` (episode,).

    Rows after the last end are left out: recorders allocate more rows than they fill.

    Args:
        values: One past the last row of each episode.
        rows: Number of rows of the steps.
        where: File and key, for messages.

    Raises:
        DataError: No ends, ends that do not increase, or an end beyond the rows.
    """
    ends = _whole_numbers(values, where, "row numbers")
    for row, (previous, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if end <= previous:
            raise DataError(f"{where}, row {row}: episode ends at {end}, not after {previous}")
    _check_last(ends[-1], rows, where, len(ends) - 1)
    bounds = [Rows(*pair) for pair in zip([0, *ends[:-1]], ends, strict=True)]
    return bounds, _rest(ends[-1], rows, where)


def bounds_of_lengths(
    values: npt.NDArray[Any], rows: int, where: str
) -> tuple[Bounds, list[Finding]]:
    """Return the episodes of the lengths `values` (episode,), also those of no steps.

    Raises:
        DataError: No lengths, a negative one, or more steps than there are rows.
    """
    lengths = _whole_numbers(values, where, "lengths")
    negative = next((row for row, length in enumerate(lengths) if length < 0), None)
    if negative is not None:
        raise DataError(f"{where}, row {negative}: an episode of {lengths[negative]} steps")
    ends = np.cumsum(lengths, dtype=object).tolist()
    _check_last(ends[-1], rows, where, len(ends) - 1)
    bounds = [Rows(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return bounds, [*_rest(ends[-1], rows, where), *_empty(lengths, where)]


def bounds_of_stack(
    values: npt.NDArray[Any], steps: int, where: str
) -> tuple[Bounds, list[Finding]]:
    """Return the episodes of the lengths `values` (episode,), each stored as `steps` rows.

    Raises:
        DataError: No lengths, a negative one, or one of more than `steps`.
    """
    lengths = _whole_numbers(values, where, "lengths")
    for row, length in enumerate(lengths):
        if not 0 <= length <= steps:
            raise DataError(
                f"{where}, row {row}: an episode of {length} steps, but {steps} are stored of each"
            )
    starts = [row * steps for row in range(len(lengths))]
    bounds = [Rows(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return bounds, _empty(lengths, where)


def other_option(option: str, key: str, values: npt.NDArray[Any], rows: int) -> str:
    """Return the hint for lengths that were given as ends, or ends as lengths; "" for others.

    Args:
        option: The field of `IngestConfig` that names the array.
        key: The array.
        values: What it holds.
        rows: Number of rows of the steps.
    """
    if option == "episode_ends":
        parse, other, like = bounds_of_lengths, "--lengths-key", "lengths that add up to"
    else:
        parse, other, like = bounds_of_ends, "--episode-ends", "ends of episodes, the last one"
    try:
        found = parse(values, rows, key)[0][-1].stop == rows
    except DataError:
        return ""
    return f"{other} {shlex.quote(key)}: it looks like {like} {rows}" if found else ""


def bounds_of_flags(
    values: npt.NDArray[Any],
    rows: int,
    where: str,
    terminals: Literal["first", "each", "ignore"],
) -> tuple[Bounds, list[Finding]]:
    """Return the episodes that the flags `values` (time,) or (time, 1) end.

    Rows after the last flag are kept as an episode of their own.

    Args:
        values: One flag per row.
        rows: Number of rows of the steps.
        where: File and key, for messages.
        terminals: `"first"`: a run of flags ends one episode, at its first flag, and the other
            rows of the run are left out. `"each"`: every flag ends one. `"ignore"`: none does, so
            that the file is one episode.

    Raises:
        DataError: Not one flag (0 or 1) per row.
    """
    check_rows(int(values.shape[0]) if values.ndim else 0, rows, where, "the actions")
    raised = flags_of(values, rows, where)
    bounds, rests = split_at_flags(raised, None, terminals, 0)
    findings: list[Finding] = []
    start, stop = bounds[-1]
    if terminals != "ignore" and not raised[stop - 1]:
        findings.append(
            Finding(
                "adjusted", "note",
                f"no flag ends the last {stop - start} rows: they are kept as an episode",
                where, values={"rows": stop - start},
            )
        )  # fmt: skip
    return bounds, [*findings, *runs_left_out(rests, where, "--terminals each")]


def _whole_numbers(values: npt.NDArray[Any], where: str, what: str) -> list[int]:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(f"{where}: is not a list of {what}")
    if not values.size:
        raise DataError(f"{where}: holds no episodes")
    return [int(value) for value in values]


def _empty(lengths: list[int], where: str) -> list[Finding]:
    """Return the finding of episodes without steps; without any other it is an error."""
    empty = lengths.count(0)
    if empty == len(lengths):
        raise DataError(f"{where}: holds no episodes with steps")
    if not empty:
        return []
    places = [row for row, length in enumerate(lengths) if not length][:3]
    message = f"{empty} episodes have no steps (the first: {places})"
    return [Finding("left-out", "note", message, where, values={"episodes": empty})]


def _check_last(end: int, rows: int, where: str, row: int) -> None:
    if end > rows:
        raise DataError(
            f"{where}, row {row}: last episode ends at {end}, but there are only {rows} rows of"
            " steps"
        )


def _rest(end: int, rows: int, where: str) -> list[Finding]:
    """Return the finding of rows after the last episode."""
    if end == rows:
        return []
    rest = rows - end
    message = f"rows {end}:{rows} belong to no episode: the last one ends at {end}"
    if rest == 1:
        message += ". If the ends are the last rows themselves, every episode is shifted by one"
    severity: Literal["note", "warning"] = "warning" if rest == 1 else "note"
    return [Finding("left-out", severity, message, where, values={"rows": rest})]
