"""What a LeRobot dataset's `meta` folder says, versions 2.0 to 3.x; all of it may be wrong.

`meta/info.json` describes the dataset. Tasks are in `meta/tasks.parquet` or `meta/tasks.jsonl`,
episodes in `meta/episodes/*/*.parquet` or `meta/episodes.jsonl`. Of the statistics only the ranges
of columns are read.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError
from lwdctl.core.untrusted import parse_json, read_bytes, read_json
from lwdctl.data.checks import check_declared_bytes, check_path, numeric_order

INFO = "meta/info.json"
STATISTICS = "meta/stats.json"
Numbers = npt.NDArray[np.float64]
DEFAULT_PATHS = {
    2: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    3: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
_PATH_FIELDS = {"episode_chunk", "episode_index", "chunk_index", "file_index"}
# Columns of the episodes' metadata that describe files and statistics.
_NOT_FACTS = ("stats/", "meta/", "videos/")


@dataclass(frozen=True)
class EpisodeFacts:
    """What the metadata says of an episode.

    Attributes:
        length: Number of steps, or None.
        tasks: Task texts.
        file: Chunk and file index of its data (version 3), or None.
        rows: First row and one past the last row in the whole dataset (version 3), or None.
        values: All columns, by name.
    """

    length: int | None
    tasks: tuple[str, ...]
    file: tuple[int, int] | None
    rows: tuple[int, int] | None
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Feature:
    """What `info.json` says of a feature.

    Attributes:
        dtype: LeRobot's name of its type (`"float32"`, `"video"`).
        shape: Its shape per step.
        names: Names of its components, or ().
    """

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]


@dataclass
class Info:
    """What `meta/info.json` says.

    Attributes:
        version: `codebase_version` (`"v3.0"`), or "".
        fps: Steps per second, 0 when unknown.
        features: By name.
        totals: `total_episodes` and `total_frames`, those that are numbers.
        splits: First and one past the last episode of every split.
        data_path: Template of the data files' paths.
    """

    version: str = ""
    fps: float = 0.0
    features: dict[str, Feature] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    data_path: str = ""


class Folder:
    """The directory of a dataset; no file outside it is opened, and sizes are added up.

    Args:
        root: The directory.
        max_bytes: Largest number of bytes that may be read from it.

    Raises:
        DataError: No such directory.
    """

    def __init__(self, root: Path, max_bytes: int = 2**40) -> None:
        check_path(root)
        if not root.is_dir():
            raise DataError(f"{root}: is a file", "give the directory that holds meta and data")
        self.root, self._max_bytes, self._bytes = root, max_bytes, 0
        self._resolved = root.resolve()

    def file(self, name: str) -> Path:
        """Return a file's path after checking that it is a file inside the directory.

        Raises:
            DataError: It is missing, no file, or a link that leads out.
        """
        path = self.root / name
        target = path.resolve()
        if not target.is_relative_to(self._resolved):
            copy = shlex.quote(f"{self.root}-copy")
            raise DataError(
                f"{path}: is a link to {target}, outside the dataset",
                f"cp -rL {shlex.quote(str(self.root))} {copy}, and read {copy}",
            )
        if not target.is_file():
            raise DataError(f"{path}: {'is no file' if target.exists() else 'is missing'}")
        return path

    def has(self, name: str) -> bool:
        """Return whether there is something of that name."""
        return os.path.lexists(self.root / name)

    def count(self, size: int, where: str) -> None:
        """Add to the bytes that are read from the directory.

        Raises:
            DataError: They are more than the limit.
        """
        self._bytes += size
        check_declared_bytes(self._bytes, self._max_bytes, where)

    def parquet_files(self, place: str) -> list[str]:
        """Return the parquet files below a folder, numbers in numeric order.

        Raises:
            DataError: A link that leads out.
        """
        found: list[str] = []
        for folder, folders, names in os.walk(self.root / place):
            here = Path(folder).relative_to(self.root)
            for name in folders:
                if (self.root / here / name).is_symlink():
                    self.file(str(here / name))
            found += [str(here / name) for name in names if name.endswith(".parquet")]
        return sorted(found, key=_path_order)

    def json_lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the JSON object in every line of a file.

        Raises:
            DataError: A line holds something else.
        """
        path = self.file(name)
        content = read_bytes(path, DataError)
        self.count(len(content), f"{path}: has {len(content):,} bytes")
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                where = f"{path}: line {number}"
                value = parse_json(line, where, DataError, allow_nan=True)
                if not isinstance(value, dict):
                    raise DataError(f"{where} is no JSON object")
                yield value


def _path_order(name: str) -> list[tuple[str, int, str]]:
    return [numeric_order(part.removesuffix(".parquet")) for part in PurePosixPath(name).parts]


def read_info(folder: Folder) -> Info:
    """Read `meta/info.json`.

    Raises:
        DataError: It is missing, or no JSON object with features.
    """
    path = folder.file(INFO)
    value = read_json(path, DataError, allow_nan=True)
    features = value.get("features") if isinstance(value, dict) else None
    if not isinstance(features, dict):
        raise DataError(f"{path}: features: is missing; it describes the columns")
    version = value.get("codebase_version")
    version = version if isinstance(version, str) else ""
    fps, template = value.get("fps"), value.get("data_path")
    known = isinstance(fps, int | float) and not isinstance(fps, bool) and math.isfinite(fps)
    info = Info(
        version=version,
        fps=float(fps) if known and isinstance(fps, int | float) and fps > 0 else 0.0,
        features={name: _feature(item) for name, item in features.items()},
        totals={
            key: number
            for key in ("total_episodes", "total_frames")
            if (number := whole(value.get(key))) is not None
        },
        data_path=template if isinstance(template, str) else DEFAULT_PATHS[major(version)],
    )
    splits = value.get("splits")
    for name, span in splits.items() if isinstance(splits, dict) else ():
        match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", span) if isinstance(span, str) else None
        if match:
            info.splits[name] = int(match[1]), int(match[2])
    return info


def major(version: str) -> int:
    """Return 2 for a version 2, else 3."""
    return 2 if version.removeprefix("v").startswith("2") else 3


def whole(value: Any) -> int | None:
    """Return a JSON value that is a whole number, else None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _feature(item: Any) -> Feature:
    item = item if isinstance(item, dict) else {}
    shape = item.get("shape")
    sizes = [whole(size) for size in shape] if isinstance(shape, list) else []
    return Feature(
        str(item.get("dtype", "")),
        tuple(size for size in sizes if size is not None),
        tuple(_component_names(item.get("names"))),
    )


def _component_names(names: Any) -> Iterator[str]:
    """Yield the names of components: a list, or lists in a mapping (`{"motors": [...]}`)."""
    if isinstance(names, Mapping):
        for inner in names.values():
            if isinstance(inner, list):
                yield from _component_names(inner)
    elif isinstance(names, list):
        yield from (item for item in names if isinstance(item, str))


def data_files(folder: Folder, template: str) -> tuple[list[str], list[str]]:
    """Return the data files that have a path of the template, and other ones beside them.

    Where no path fits the template, all files are data files.

    Raises:
        DataError: The template leads out of the directory, or there is no file.
    """
    where = f"{folder.root / INFO}: data_path"
    pattern, fixed = "", ""
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        raise DataError(f"{where}: is '{template}', no path with fields in braces") from None
    for number, (text, name, _, _) in enumerate(parts):
        fixed = text if number == 0 else fixed
        pattern += re.escape(text) + (r"\d+" if name is not None else "")
        if name is not None and name not in _PATH_FIELDS:
            raise DataError(f"{where}: has the field '{name}', expected one of a LeRobot dataset")
    path = PurePosixPath(template)
    if path.is_absolute() or ".." in path.parts or "\\" in template:
        raise DataError(f"{where}: '{template}' leads out of the dataset")
    place = fixed.rpartition("/")[0] or "data"
    found = folder.parquet_files(place)
    if not found:
        raise DataError(f"{folder.root / place}: holds no parquet files; data_path is '{template}'")
    fitting = [name for name in found if re.fullmatch(pattern, name)]
    return (fitting, [name for name in found if name not in fitting]) if fitting else (found, [])


def read_range(folder: Folder, key: str, size: int) -> tuple[Numbers, Numbers] | None:
    """Return the smallest and largest values of a column that `meta/stats.json` gives.

    Args:
        folder: The dataset.
        key: The column.
        size: Its number of components.

    Returns:
        Two arrays (component,); None where the file or usable numbers are missing.
    """
    if not folder.has(STATISTICS):
        return None
    try:
        value = read_json(folder.file(STATISTICS), DataError, allow_nan=True)
        low, high = (
            np.asarray(value[key][name], np.float64).reshape(-1) for name in ("min", "max")
        )
    except (DataError, KeyError, TypeError, ValueError):
        return None  # the statistics are not needed
    return (low, high) if low.size == high.size == size else None


def read_texts(folder: Folder, noun: str) -> dict[int, str]:
    """Return the texts of `meta/<noun>s.parquet` or `.jsonl` by their `<noun>_index`, {} for none.

    Raises:
        DataError: The table is damaged.
    """
    index, lines = f"{noun}_index", f"meta/{noun}s.jsonl"
    if folder.has(f"meta/{noun}s.parquet"):
        rows = _parquet_rows(folder, f"meta/{noun}s.parquet")
    elif folder.has(lines):
        rows = folder.json_lines(lines)
    else:
        return {}
    texts: dict[int, str] = {}
    for row in rows:
        named = row.get(noun)
        text = named if isinstance(named, str) else next(_strings(row), None)
        number = whole(row.get(index))
        if number is not None and text is not None:
            texts[number] = text
    return texts


def _strings(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts in a row: pandas calls an index without a name `__index_level_0__`."""
    return (value for value in row.values() if isinstance(value, str))


def read_episodes(folder: Folder) -> dict[int, EpisodeFacts]:
    """Return what the metadata says of every episode; {} where it says nothing.

    Raises:
        DataError: A file is damaged.
    """
    facts: dict[int, EpisodeFacts] = {}
    files = folder.parquet_files("meta/episodes")
    rows = (row for name in files for row in _parquet_rows(folder, name))
    lines = "meta/episodes.jsonl"
    for row in folder.json_lines(lines) if not files and folder.has(lines) else rows:
        episode = whole(row.get("episode_index"))
        if episode is not None:
            facts[episode] = _facts(row)
    return facts


def _facts(row: Mapping[str, Any]) -> EpisodeFacts:
    tasks = row.get("tasks")
    return EpisodeFacts(
        whole(row.get("length")),
        tuple(item for item in tasks if isinstance(item, str)) if isinstance(tasks, list) else (),
        _pair(row, "data/chunk_index", "data/file_index"),
        _pair(row, "dataset_from_index", "dataset_to_index"),
        row,
    )


def _pair(row: Mapping[str, Any], *names: str) -> tuple[int, int] | None:
    """Return two whole numbers of a row, None where one is missing."""
    first, second = (whole(row.get(name)) for name in names)
    return None if first is None or second is None else (first, second)


def _parquet_rows(folder: Folder, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a metadata file, without statistics and what is neither text nor number."""
    from lwdctl.data.files.parquet_files import ParquetTable, is_text, rank_of

    table = ParquetTable(folder.file(name))
    try:
        names = [
            name
            for name, kind in table.types.items()
            if not name.startswith(_NOT_FACTS) and (is_text(kind) or rank_of(kind) in (0, 1))
        ]
        size = table.declared_bytes(names)
        folder.count(size, f"{table.path}: declares {size:,} bytes")
        for group in range(len(table.group_rows)):
            for batch in table.batches(group, names):
                columns = [batch.values(name) for name in names]
                for values in zip(*columns, strict=True):
                    yield dict(zip(names, values, strict=True))
    finally:
        table.close()
