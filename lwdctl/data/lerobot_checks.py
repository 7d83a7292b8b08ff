"""Findings about a LeRobot dataset: where its metadata contradict its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lwdctl.core.records import Finding, FloatArray
from lwdctl.data.lerobot_meta import INFO, STATISTICS, EpisodeFacts, Info, Numbers
from lwdctl.data.lerobot_rows import Recording, RowIndex

SHOWN = 5
RATE_TOLERANCE = 0.02
RANGE_TOLERANCE = 1e-3


def check_frames(
    path: Path,
    recordings: Mapping[int, Sequence[Recording]],
    repeated: Mapping[int, int],
    unnumbered: Sequence[int],
) -> Iterator[Finding]:
    """Yield what is odd about the numbers of frames.

    Args:
        path: The dataset.
        recordings: Recordings by `episode_index`.
        repeated: Number of rows that were left out because their frame was there already.
        unnumbered: Episodes whose frames have no numbers.
    """
    if unnumbered:
        yield Finding(
            "adjusted",
            "warning",
            f"no frame_index numbers the rows of {named('episode', unnumbered)}: they are taken in"
            " the order of the files",
            str(path),
            values={"episodes": unnumbered[:SHOWN], "count": len(unnumbered)},
        )
    several = [episode for episode, items in recordings.items() if len(items) > 1]
    if several:
        yield Finding(
            "metadata", "warning",
            f"{named('episode_index', several)} numbers more than one recording, as in datasets"
            " that were merged without renumbering: each is an episode of its own",
            str(path), values={"episodes": several[:SHOWN], "count": len(several)},
        )  # fmt: skip
    missing = {
        episode: gap
        for episode, items in recordings.items()
        if (gap := sum(item.missing for item in items))
    }
    if missing:
        yield Finding(
            "metadata", "warning",
            f"{sum(missing.values())} frames are missing inside {named('episode', missing)}: the"
            " steps around a gap are neighbors",
            str(path), values={"episodes": dict(_first(missing)), "count": len(missing)},
        )  # fmt: skip
    late = [episode for episode, items in recordings.items() if items[0].runs[0].frame != 0]
    if late:
        yield Finding(
            "metadata", "warning", f"frame_index does not begin at 0 in {named('episode', late)}",
            str(path), values={"episodes": late[:SHOWN], "count": len(late)},
        )  # fmt: skip
    if repeated:
        yield Finding(
            "adjusted", "warning",
            f"{sum(repeated.values())} rows repeat a frame_index of their episode and are left"
            f" out, in {named('episode', repeated)}",
            str(path), values={"episodes": dict(_first(repeated)), "count": len(repeated)},
        )  # fmt: skip
    shuffled = [
        episode
        for episode, items in recordings.items()
        if any(_places_of(item) != sorted(_places_of(item)) for item in items)
    ]
    if shuffled:
        yield Finding(
            "adjusted", "note",
            f"rows of {named('episode', shuffled)} were not in the order of frame_index, and were"
            " sorted",
            str(path), values={"episodes": shuffled[:SHOWN], "count": len(shuffled)},
        )  # fmt: skip


def _places_of(recording: Recording) -> list[tuple[int, int, int]]:
    return [(run.file, run.group, run.row) for run in recording.runs]


def check_range(
    path: Path, declared: tuple[Numbers, Numbers], actions: FloatArray, episode: str
) -> Finding | None:
    """Return a finding where actions leave the range that the dataset's statistics give.

    Args:
        path: The dataset.
        declared: Smallest and largest value per component.
        actions: (time, action) actions of an episode.
        episode: Its name.
    """
    low, high = declared
    slack = RANGE_TOLERANCE * np.maximum(high - low, np.maximum(np.abs(low), np.abs(high)))
    outside = (actions < low - slack) | (actions > high + slack)
    columns = np.flatnonzero(outside.any(axis=0))
    if not columns.size:
        return None
    column, values = int(columns[0]), actions[:, int(columns[0])]
    return Finding(
        "metadata", "warning",
        f"actions leave the range of {STATISTICS}, which may be statistics of relative actions or"
        f" of other rows: in {episode}, component {column} has {values.min():g} to"
        f" {values.max():g}, the statistics {low[column]:g} to {high[column]:g}; they are not used",
        str(path), values={"episode": episode, "components": columns.tolist()},
    )  # fmt: skip


def check_metadata(
    path: Path,
    info: Info,
    facts: Mapping[int, EpisodeFacts],
    recordings: Mapping[int, Sequence[Recording]],
    index: RowIndex,
    file_of: Callable[[int], tuple[int, int] | None],
) -> Iterator[Finding]:
    """Yield where the metadata contradict the rows, which are trusted.

    Args:
        path: The dataset.
        info: What `meta/info.json` says.
        facts: What the metadata say of the episodes.
        recordings: Recordings by `episode_index`.
        index: What was seen of the rows.
        file_of: Returns chunk and file index in the path of a data file, or None.
    """
    found = {
        "total_episodes": sum(map(len, recordings.values())),
        "total_frames": sum(item.length for items in recordings.values() for item in items),
    }
    wrong = {
        name: (info.totals[name], number)
        for name, number in found.items()
        if info.totals.get(name, number) != number
    }
    if wrong:
        text = ", ".join(f"{name} {said} (rows: {true})" for name, (said, true) in wrong.items())
        yield _contradiction(path, f"{INFO} says {text}", wrong)
    if index.steps and info.fps:
        rate = index.steps / index.seconds if index.seconds > 0 else 0.0
        if abs(rate - info.fps) > RATE_TOLERANCE * info.fps:
            yield Finding(
                "metadata", "warning",
                f"{INFO} says {info.fps:g} steps per second, the timestamps {rate:.4g}; the former"
                " is taken as the control rate",
                str(path), values={"fps": info.fps, "timestamps": rate},
            )  # fmt: skip
    if not info.fps:
        yield Finding(
            "metadata", "warning", f"{INFO} gives no fps: the control rate is unknown", str(path)
        )
    if not facts:
        return
    lengths = {
        episode: (facts[episode].length, items[0].length)
        for episode, items in recordings.items()
        if episode in facts
        and len(items) == 1
        and facts[episode].length not in (None, items[0].length)
    }
    if lengths:
        episode, (said, true) = next(iter(lengths.items()))
        yield _contradiction(
            path,
            f"the metadata have other lengths for {named('episode', lengths)} ({said} for episode"
            f" {episode}, rows: {true})",
            dict(_first(lengths)),
        )
    unknown = sorted(set(recordings) - set(facts))
    if unknown:
        yield _contradiction(path, f"the metadata do not have {named('episode', unknown)}", {})
    absent = sorted(set(facts) - set(recordings))
    if absent:
        yield _contradiction(
            path, f"no row belongs to {named('episode', absent)} of the metadata", {}
        )
    yield from _check_positions(path, facts, recordings, file_of)


def _check_positions(
    path: Path,
    facts: Mapping[int, EpisodeFacts],
    recordings: Mapping[int, Sequence[Recording]],
    file_of: Callable[[int], tuple[int, int] | None],
) -> Iterator[Finding]:
    """Yield stale file indices and row numbers of version 3."""
    stale = {
        episode: (said, true)
        for episode, items in recordings.items()
        if episode in facts
        and (said := facts[episode].file) is not None
        and (true := file_of(items[0].runs[0].file)) is not None
        and said != true
    }
    if stale:
        episode, (said, true) = next(iter(stale.items()))
        yield _contradiction(
            path,
            f"the metadata name other files for {named('episode', stale)} (chunk and file {said}"
            f" for episode {episode}, rows: {true})",
            dict(_first(stale)),
        )
    row, moved = 0, []
    for episode in sorted(recordings):
        length = recordings[episode][0].length
        rows = facts[episode].rows if episode in facts else None
        if rows is not None and rows != (row, row + length):
            moved.append(episode)
        row += sum(item.length for item in recordings[episode])
    if moved:
        yield _contradiction(
            path,
            f"dataset_from_index and dataset_to_index are wrong for {named('episode', moved)}",
            {"episodes": moved[:SHOWN], "count": len(moved)},
        )


def _contradiction(path: Path, text: str, values: Mapping[str, Any]) -> Finding:
    return Finding("metadata", "warning", f"{text}; the rows are trusted", str(path), values=values)


def named(noun: str, episodes: Sequence[int] | Mapping[int, Any]) -> str:
    """Return the first episodes and how many there are (`"episode 3, 5 (2 in all)"`)."""
    first = ", ".join(str(episode) for episode in list(episodes)[:SHOWN])
    more = f", ... ({len(episodes)} in all)" if len(episodes) > SHOWN else ""
    return f"{noun} {first}{more}"


def _first(episodes: Mapping[int, Any]) -> list[tuple[str, Any]]:
    return [(str(episode), value) for episode, value in list(episodes.items())[:SHOWN]]
