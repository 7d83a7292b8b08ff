"""Recorded episodes of evaluations: grids of stills, and videos as far as they fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lwdctl.analysis.report.content import Picture, data_uri, embed_stills
from lwdctl.artifacts.artifact import Artifact

FOLDER = "videos"
VIDEO_BYTES = 4_000_000
"""Most bytes of videos that go into one report."""
MOST_EPISODES = 24
"""Most episodes that a report shows; the evaluation keeps the files of all."""


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode: its stills, and its video as a data URI, or "" where it was left out."""

    title: str
    stills: Picture | None
    video: str
    note: str


def recorded_episodes(evaluations: Sequence[Artifact]) -> tuple[RecordedEpisode, ...]:
    """Show the first episode of every policy, then the second, and so on."""
    recordings = sorted(
        _recordings(evaluations),
        key=lambda item: item[1].stem,  # stable: policies stay in their order
    )
    left = VIDEO_BYTES
    episodes = []
    for artifact, inside in recordings[:MOST_EPISODES]:
        episode, used = _episode(artifact, inside, left)
        left -= used
        episodes.append(episode)
    return tuple(episodes)


def left_out(evaluations: Sequence[Artifact]) -> str:
    """Return a note on how many recorded episodes are not shown, or ""."""
    total = sum(1 for _ in _recordings(evaluations))
    if total <= MOST_EPISODES:
        return ""
    return f"{MOST_EPISODES} of {total} recorded episodes are shown; the evaluation holds all"


def _recordings(evaluations: Sequence[Artifact]) -> Iterator[tuple[Artifact, PurePosixPath]]:
    for artifact in evaluations:
        for file in artifact.manifest.files:
            path = PurePosixPath(file.path)
            if path.parts[0] == FOLDER and path.suffix == ".mp4":
                yield artifact, path


def _episode(artifact: Artifact, inside: PurePosixPath, left: int) -> tuple[RecordedEpisode, int]:
    title = f"{inside.parent.name}, {_outcome(artifact, inside)}"
    path = artifact.path / inside
    notes: list[str] = []
    stills = _stills(path.with_suffix(".png"), f"Stills of {title}", notes)
    content = b""
    try:
        size = path.stat().st_size
        if size <= left:
            content = path.read_bytes()
        else:
            notes.append(
                f"video left out for its size ({size / 1e6:.1f} MB): {artifact.reference}, {inside}"
            )
    except OSError as error:
        notes.append(f"no video: {error}")
    video = data_uri(content, "video/mp4") if content else ""
    return RecordedEpisode(title, stills, video, "; ".join(notes)), len(content)


def _stills(path: Path, caption: str, notes: list[str]) -> Picture | None:
    try:
        return embed_stills(path, caption)
    except OSError:
        notes.append(f"no stills: {path.name} is missing or no picture")
        return None


def _outcome(artifact: Artifact, inside: PurePosixPath) -> str:
    """Return an episode's number, task and outcome, as far as they are recorded."""
    number = inside.stem.rpartition("-")[2]
    record = _record(artifact.path / "episodes" / f"{inside.parent.name}.json", number)
    parts = [f"episode {int(number) if number.isdigit() else number}"]
    parts += [str(record[key]) for key in ("task", "label") if record.get(key)]
    if "success" in record:
        parts.append("solved" if record["success"] else "not solved")
    return ", ".join(parts)


def _record(path: Path, number: str) -> dict[str, Any]:
    try:
        episodes = json.loads(path.read_text(encoding="utf-8"))["episodes"]
        found = [item for item in episodes if str(item["index"]) == str(int(number))]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found[0] if found else {}
