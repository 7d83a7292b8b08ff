"""Recorded episodes of evaluations: grids of stills, and videos as far as they fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lwdctl.analysis.report.pictures import data_uri, embed_stills
from lwdctl.analysis.report.records import Clip, Picture
from lwdctl.artifacts.artifact import Artifact

FOLDER = "videos"
VIDEO_BYTES = 4_000_000
"""Most bytes of videos that go into one report."""
MOST_CLIPS = 24
"""Most episodes that a report shows; the files of all stay where they are."""


def recorded_episodes(evaluations: Sequence[Artifact]) -> tuple[Clip, ...]:
    """Show the first episode of every policy, then the second, and so on."""
    recordings = sorted(
        (item for artifact in evaluations for item in _recordings(artifact)),
        key=lambda item: item[1].stem,  # stable: policies stay in their order
    )
    left = VIDEO_BYTES
    clips = []
    for artifact, inside in recordings[:MOST_CLIPS]:
        clip, used = _clip(artifact, inside, left)
        left -= used
        clips.append(clip)
    return tuple(clips)


def left_out(evaluations: Sequence[Artifact]) -> str:
    """Say how many recorded episodes are not shown, or ""."""
    total = sum(1 for artifact in evaluations for _ in _recordings(artifact))
    if total <= MOST_CLIPS:
        return ""
    return f"{MOST_CLIPS} of {total} recorded episodes are shown; all stand beside the evaluation"


def _recordings(artifact: Artifact) -> Iterator[tuple[Artifact, PurePosixPath]]:
    for file in artifact.manifest.files:
        path = PurePosixPath(file.path)
        if path.parts[0] == FOLDER and path.suffix == ".mp4":
            yield artifact, path


def _clip(artifact: Artifact, inside: PurePosixPath, left: int) -> tuple[Clip, int]:
    title = f"{inside.parent.name}, {_told(artifact, inside)}"
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
    return Clip(title, stills, video, "; ".join(notes)), len(content)


def _stills(path: Path, caption: str, notes: list[str]) -> Picture | None:
    try:
        return embed_stills(path, caption)
    except OSError:
        notes.append(f"no stills: {path.name} is missing or no picture")
        return None


def _told(artifact: Artifact, inside: PurePosixPath) -> str:
    """Name an episode with its task and outcome, where the records say them."""
    number = inside.stem.rpartition("-")[2]
    record = _episode(artifact.path / "episodes" / f"{inside.parent.name}.json", number)
    words = [f"episode {int(number) if number.isdigit() else number}"]
    words += [str(record[key]) for key in ("task", "label") if record.get(key)]
    if "success" in record:
        words.append("solved" if record["success"] else "not solved")
    return ", ".join(words)


def _episode(path: Path, number: str) -> dict[str, Any]:
    try:
        episodes = json.loads(path.read_text(encoding="utf-8"))["episodes"]
        found = [item for item in episodes if str(item["index"]) == str(int(number))]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found[0] if found else {}
