"""What a run has logged and made, read from its directory for a tracker.

The directory may be an artifact's, whoever made it, or that of a run in progress, which another
process writes to meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import matching, write_durably
from lwdctl.artifacts.manifest import MANIFEST_NAME, plain
from lwdctl.artifacts.run_in_progress import CHECKPOINTS
from lwdctl.artifacts.stored_files import read_stored, stored_file
from lwdctl.configs import LINEAGE
from lwdctl.core.plain_text import plain_text
from lwdctl.core.untrusted import parse_json, read_bytes, typed
from lwdctl.tracking.run import LONGEST_NAME, tidy

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
"""In the place of a manifest, for runs that make no artifact."""
MOST_LOG_BYTES = 2**30
MEDIA = {".mp4": "video", ".png": "picture"}

Row = Mapping[str, float | None]
Scalar = str | float | bool | None


@dataclass(frozen=True)
class Table:
    """The result rows of an evaluation.

    Attributes:
        columns: Names; what lies within a value stands behind a dot (`"cost.flops_per_step"`).
        rows: One row per condition and task, in the order of `columns`.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Scalar, ...], ...]


@dataclass(frozen=True)
class Medium:
    """A video (MP4) or a picture (PNG).

    Attributes:
        name: Its path in the artifact without a suffix (`"videos/lwd-sampled/episode-000"`).
            Pictures that lie beside a video of the same name begin with `stills/` instead.
        kind: `"video"` or `"picture"`.
        path: The file.
        size: Bytes.
    """

    name: str
    kind: str
    path: Path
    size: int


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to.

    Attributes:
        summary: Names to numbers and texts; what lies within a value stands behind a dot.
        results: The result rows of an evaluation; None for anything else.
        media: Videos and pictures.
    """

    summary: Mapping[str, Scalar]
    results: Table | None
    media: tuple[Medium, ...]


@dataclass(frozen=True)
class Point:
    """One row of a log.

    Attributes:
        part: Name of the model, where a run trains several one after the other, else "".
        step: Training steps so far, over all parts.
        values: Name to number, `update` among them; names begin with the part, if there is one.
    """

    part: str
    step: int
    values: Mapping[str, float]


def complete_rows(content: bytes, where: str) -> Iterator[tuple[bytes, dict[str, float | None]]]:
    """Yield the lines of a log, each with its row; a killed process may have left half a line.

    Raises:
        ArtifactError: A line holds something else than numbers by name.
    """
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
            place = f"{where}, line {number}"
            yield (
                line,
                typed(dict[str, float | None], parse_json(line, place, allow_nan=True), place),
            )


def log_files(directory: Path) -> dict[str, Path]:
    """Return the logs of a run: part to file, in the order in which the parts are trained."""
    places = [(), ("*",), (CHECKPOINTS, "*")]
    found = [path for place in places for path in matching(directory, *place, METRICS)]
    # Where a model is being trained, its log lies among the checkpoints; it is copied afterwards.
    parts = {path.parent.name if path.parent != directory else "": path for path in found}
    parts = {part: path for part, path in parts.items() if not part.startswith(".")}

    def order(part: str) -> tuple[int, int, str]:
        known = LINEAGE.index(part) if part in LINEAGE else len(LINEAGE)
        return known, parts[part].stat().st_mtime_ns, part

    return {part: parts[part] for part in sorted(parts, key=order)}


def points(directory: Path, ignored: Mapping[str, int] | None = None) -> Iterator[Point]:
    """Yield what a run has logged so far, by step.

    Args:
        directory: The run's directory.
        ignored: Paths below it, with the time of change in nanoseconds at which they are ignored.

    Raises:
        ArtifactError: A log is no log, or no regular file.
        OSError: It was moved meanwhile.
    """
    before = 0
    for part, path in log_files(directory).items():
        name = path.relative_to(directory).as_posix()
        if (ignored or {}).get(name) == path.stat().st_mtime_ns:
            return
        last = 0
        content = read_stored(directory, name, MOST_LOG_BYTES)
        for _, row in complete_rows(content, str(path)):
            update = int(row.get("update") or 0)
            if update > last:
                last = update
                yield Point(part, before + update, _named(part, row))
        before += last


def outcome_of(directory: Path) -> Outcome:
    """Return what the artifact in a directory holds, or a run in memory that has written there.

    Raises:
        ArtifactError: There is no artifact, or a damaged one.
    """
    if not (directory / MANIFEST_NAME).is_file():
        values = parse_json(read_bytes(directory / SUMMARY), SUMMARY, allow_nan=True)
        return _outcome(typed(dict[str, Any], plain(values), SUMMARY), ())
    artifact = Artifact.open(directory)
    summary = {"artifact": artifact.reference, **artifact.manifest.summary}
    names = [file.path for file in artifact.held_files()]
    return _outcome(summary, tuple(_media(directory, names)))


def write_summary(directory: Path, summary: Mapping[str, Any]) -> None:
    """Write what `outcome_of` reads of a run that makes no artifact."""
    write_durably(directory / SUMMARY, json.dumps(plain(summary)).encode())


def _outcome(summary: Mapping[str, Any], media: tuple[Medium, ...]) -> Outcome:
    numbers = {name: value for name, value in summary.items() if name not in ("results", "videos")}
    results = summary.get("results")
    table = _table(results) if isinstance(results, list) and results else None
    return Outcome(dict(_flat(tidy(numbers))), table, media)


def _table(results: Sequence[Any]) -> Table:
    rows = [dict(_flat(tidy(row))) for row in results if isinstance(row, Mapping)]
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(columns, tuple(tuple(row.get(name) for name in columns) for row in rows))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Scalar]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, list):
            yield before + key, plain_text(", ".join(map(str, value)))
        else:
            yield before + key, value


def _named(part: str, row: Row) -> dict[str, float]:
    before = f"{plain_text(part, LONGEST_NAME)}/" if part else ""
    kept = {key: value for key, value in tidy(row).items() if value is not None}
    return {before + key: int(value) if key == "update" else value for key, value in kept.items()}


def _media(directory: Path, names: Sequence[str]) -> Iterator[Medium]:
    videos = {name.removesuffix(".mp4") for name in names if name.endswith(".mp4")}
    for name in sorted(names):
        kind = MEDIA.get(PurePosixPath(name).suffix)
        if kind is None:
            continue
        path = stored_file(directory, name)
        shown = str(PurePosixPath(name).with_suffix(""))
        if kind == "picture" and shown in videos:
            shown = f"stills/{shown.removeprefix('videos/')}"
        yield Medium(plain_text(shown, 2 * LONGEST_NAME), kind, path, path.stat().st_size)
