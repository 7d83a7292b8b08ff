"""Findings about a LeRobot dataset: where its metadata contradict its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lwdctl.core.plain_text import listed
from lwdctl.core.records import Finding, FloatArray, Severity
from lwdctl.data.readers.lerobot_meta import INFO, STATISTICS, EpisodeFacts, Info, Numbers
from lwdctl.data.readers.lerobot_rows import Recording, RowIndex

SHOWN = 5
RATE_TOLERANCE = 0.02
RANGE_TOLERANCE = 1e-3

Recordings = Mapping[int, Sequence[Recording]]
"""The recordings of a dataset by `episode_index`."""
Episodes = Sequence[int] | Mapping[int, Any]
"""Values of `episode_index`, or something about each."""


def check_frames(
    path: Path, recordings: Recordings, repeated: Mapping[int, int], unnumbered: Sequence[int]
) -> Iterator[Finding]:
    """Yield what is odd about the numbers of frames.

    Args:
        path: The dataset.
        recordings: Its recordings.
        repeated: Number of rows that were left out because their frame was there already.
        unnumbered: Episodes whose frames have no numbers.
    """
    several = [episode for episode, items in recordings.items() if len(items) > 1]
    gaps = {episode: sum(r.missing for r in items) for episode, items in recordings.items()}
    missing = {episode: gap for episode, gap in gaps.items() if gap}
    late = [episode for episode, items in recordings.items() if items[0].runs[0].frame != 0]
    shuffled = [
        episode for episode, items in recordings.items() if not all(map(_is_in_order, items))
    ]
    found: tuple[tuple[str, Severity, Episodes, str], ...] = (
        ("adjusted", "warning", unnumbered, (
            "no frame_index numbers the rows of episode {}: they are taken in the order of the"
            " files"
        )),
        ("metadata", "warning", several, (
            "episode_index {} numbers more than one recording, as in datasets that were merged"
            " without renumbering: each is an episode of its own"
        )),
        ("metadata", "warning", missing, (
            f"{sum(missing.values())} frames are missing inside episode {{}}: the steps around a"
            " gap are neighbors"
        )),
        ("metadata", "warning", late, "frame_index does not begin at 0 in episode {}"),
        ("adjusted", "warning", repeated, (
            f"{sum(repeated.values())} rows repeat a frame_index of their episode and are left"
            " out, in episode {}"
        )),
        ("adjusted", "note", shuffled, (
            "rows of episode {} were not in the order of frame_index, and were sorted"
        )),
    )  # fmt: skip
    for check, severity, episodes, text in found:
        if episodes:
            message = text.format(names_of(episodes))
            yield Finding(check, severity, message, str(path), values=_values(episodes))


def _is_in_order(recording: Recording) -> bool:
    places = [(run.file, run.group, run.row) for run in recording.runs]
    return places == sorted(places)


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
    recordings: Recordings,
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
    yield from _check_rate(path, info.fps, index)
    if facts:
        for text, episodes in _contradictions(facts, recordings, file_of):
            if episodes:
                message = text.format(names_of(episodes))
                yield _contradiction(path, message, _values(episodes))


def _check_rate(path: Path, fps: float, index: RowIndex) -> Iterator[Finding]:
    message, values = f"{INFO} gives no fps: the control rate is unknown", {}
    if fps:
        rate = index.steps / index.seconds if index.seconds > 0 else 0.0
        if not index.steps or abs(rate - fps) <= RATE_TOLERANCE * fps:
            return
        values = {"fps": fps, "timestamps": rate}
        message = (
            f"{INFO} says {fps:g} steps per second, the timestamps {rate:.4g}; the former is taken"
            " as the control rate"
        )
    yield Finding("metadata", "warning", message, str(path), values=values)


def _contradictions(
    facts: Mapping[int, EpisodeFacts],
    recordings: Recordings,
    file_of: Callable[[int], tuple[int, int] | None],
) -> Iterator[tuple[str, Episodes]]:
    """Yield what the metadata say of episodes in contradiction to the rows, and of which ones."""
    lengths = {
        episode: (length, items[0].length)
        for episode, items in recordings.items()
        if len(items) == 1
        and episode in facts
        and (length := facts[episode].length) not in (None, items[0].length)
    }
    yield f"the metadata have other lengths for episode {{}} ({_first(lengths)})", lengths
    unknown = sorted(set(recordings) - set(facts))
    yield "the metadata do not have episode {}", unknown
    absent = sorted(set(facts) - set(recordings))
    yield "no row belongs to episode {} of the metadata", absent
    stale = {
        episode: (said, true)
        for episode, items in recordings.items()
        if episode in facts
        and (said := facts[episode].file) is not None
        and (true := file_of(items[0].runs[0].file)) is not None
        and said != true
    }
    yield (
        f"the metadata name other files for episode {{}} (chunk and file {_first(stale)})",
        stale,
    )
    row, moved = 0, []
    for episode in sorted(recordings):
        length = recordings[episode][0].length
        rows = facts[episode].rows if episode in facts else None
        if rows is not None and rows != (row, row + length):
            moved.append(episode)
        row += sum(item.length for item in recordings[episode])
    yield "dataset_from_index and dataset_to_index are wrong for episode {}", moved


def _first(pairs: Mapping[int, tuple[Any, Any]]) -> str:
    """Return what the metadata and the rows say of the first of some episodes."""
    return "".join(
        f"{said} for episode {episode}, rows: {true}"
        for episode, (said, true) in list(pairs.items())[:1]
    )


def _contradiction(path: Path, text: str, values: Mapping[str, Any]) -> Finding:
    return Finding("metadata", "warning", f"{text}; the rows are trusted", str(path), values=values)


def names_of(episodes: Episodes) -> str:
    """Return the first of some episodes, and how many there are (`"3, 5 and 9 more"`)."""
    return listed(map(str, episodes), SHOWN)


def _values(episodes: Episodes) -> dict[str, Any]:
    """Return the first of some episodes and their number, JSON-ready."""
    first: Any = list(episodes)[:SHOWN]
    if isinstance(episodes, Mapping):
        first = {str(episode): episodes[episode] for episode in first}
    return {"episodes": first, "count": len(episodes)}
