"""Reading zarr stores of unknown origin safely, as directories or zip files.

The store is not trusted: zarr creates what it does not find and fills missing chunks with the
fill value, and metadata can name a pickle codec, which runs code. All three are decided here.
Only the arrays that are asked for are opened, so that one with a codec that is not installed
does no harm.
"""

from __future__ import annotations

import itertools
import shlex
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, ZipStore

from lwdctl.artifacts.stored_files import stored_files
from lwdctl.core.errors import ArtifactError, DataError, first_line
from lwdctl.core.records import Finding
from lwdctl.data.checks import NUMBER_KINDS, NonFiniteError, check_declared_bytes
from lwdctl.data.files.bounds import MAX_CHUNK_BYTES, check_growth
from lwdctl.data.files.checked_codecs import with_checked_codecs
from lwdctl.data.files.contents import zarr_arrays
from lwdctl.data.files.zarr_metadata import codec_names, read_zarr_metadata

SAFE_CODECS = frozenset({
    "blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "crc32", "crc32c",
    "bytes", "transpose", "sharding_indexed", "vlen-utf8",
})  # fmt: skip
MAX_CHUNKS = 2**21
"""Most chunks that an array may declare: every one is looked for."""


class ZarrFile:
    """A zarr store, opened for reading without creating anything.

    Args:
        path: A directory, or a zip file; the store may lie in folders of the zip file.
        max_bytes: Largest total uncompressed size of the arrays that are opened.

    Attributes:
        path: The directory or zip file.
        arrays: Every array of the store as its metadata declare it, by its path.
        findings: What `open` found about missing chunks.

    Raises:
        DataError: No such path, or no zarr group.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.findings: list[Finding] = []
        self._root, self._documents = read_zarr_metadata(path)
        self.arrays = zarr_arrays(self._documents)
        self._max_bytes = max_bytes
        self._declared = self._stored = 0
        self._started = False
        self._opened: dict[str, zarr.Array[Any]] = {}
        self._lost: dict[str, _Missing] = {}
        directory = path.is_dir()
        self._members: dict[str, int] = {}
        if not directory:
            with zipfile.ZipFile(path) as archive:
                self._members = {item.filename: item.file_size for item in archive.infolist()}
        self._store: Store = (
            LocalStore(path, read_only=True) if directory else ZipStore(path, mode="r")
        )

    def open(self, steps: Sequence[str], others: Sequence[str] = ()) -> None:
        """Open arrays after checking codecs, sizes and which chunks exist.

        Args:
            steps: Arrays of observations and actions, with one row per step.
            others: Arrays of other kinds (rewards, labels).

        Raises:
            DataError: One is missing, holds Python objects, or cannot be read safely.
        """
        missing: dict[str, _Missing] = {}
        for key in dict.fromkeys((*steps, *others)):
            if key not in self._opened:
                array = self._opened[key] = self._checked(key)
                files = self._chunk_files(key, _stored_limit(array))
                self._stored += sum(files.values())
                check_growth(
                    self._stored, self._declared, f"{self.path}: {key}: has shape {array.shape}",
                    "write the arrays again without compression if they are right",
                )  # fmt: skip
                found = _Missing.of(array, files)
                if found.count:
                    missing[key] = found
        self._decide(missing, steps)

    def _decide(self, missing: Mapping[str, _Missing], steps: Sequence[str]) -> None:
        """Decide which missing chunks hold the fill value and which were never written.

        Version 3 stores leave out chunks of the fill value, so one that a single array misses
        holds it. Where every array misses the same rows, the recorder more likely died. What
        wrote version 2 stores (zarr-python 2) wrote every chunk, so that one missing is lost.
        """
        everywhere = _common([missing[key] for key in steps if key in missing], len(steps))
        filled: dict[str, int] = {}
        for key, found in missing.items():
            if self._opened[key].metadata.zarr_format == 2:
                self._lost[key] = found
                continue
            rows = found.without(everywhere)
            if rows:
                filled[key] = rows
            if everywhere:
                self._lost[key] = found.within(everywhere)
        if filled:
            names = ", ".join(f"{key} ({rows} rows)" for key, rows in filled.items())
            fills = {key: self._opened[key].fill_value for key in filled}
            self.findings.append(
                Finding(
                    "missing-chunks",
                    "warning",
                    f"chunks without a file are read as the fill value: {names}; a lost chunk"
                    " looks the same",
                    where=str(self.path),
                    hint="compare these rows with the original recording",
                    values={
                        "rows": filled,
                        "fill_value": {key: str(value) for key, value in fills.items()},
                    },
                )
            )

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return the rows `start:stop` of an opened array as they are stored.

        Raises:
            NonFiniteError: Chunks of these rows were never written or are lost.
            DataError: A chunk cannot be decoded.
        """
        array = self._opened[key]
        last = stop if stop is not None else (array.shape or (1,))[0]
        lost = self._lost.get(key)
        row = lost.first_in(start, last) if lost else None
        if lost and row is not None:
            raise NonFiniteError(
                f"{self.path}: {key}: {lost.count} of {lost.total} chunks are missing, here from"
                f" row {row}: never written, or lost",
                f"--on-nan drop leaves such episodes out{self._fill_command(key)}",
            )
        try:
            return np.asarray(array[start:last] if array.shape else array[()]).reshape(
                -1, *array.shape[1:]
            )
        except Exception as error:  # noqa: BLE001 - each codec raises its own type
            reason = first_line(error)
            raise DataError(f"{self.path}: {key}, row {start}: cannot be read ({reason})") from None

    def attributes(self, group: str) -> Mapping[str, Any]:
        """Return the attributes of a group."""
        found = self._documents.get(group.rstrip("/"), {}).get("attributes", {})
        return found if isinstance(found, dict) else {}

    def close(self) -> None:
        """Close the store; zarr opens one with its first array."""
        if self._started:
            self._store.close()

    def _fill_command(self, key: str) -> str:
        """Return the command that writes the missing chunks of an array, for a hint."""
        if self.path.is_file():
            return ""
        code = (
            f"import zarr; a = zarr.open_group({str(self.path)!r}, mode='a')[{key!r}]"
            ".with_config({'write_empty_chunks': True}); a[:] = a[:]"
        )
        return f"; if missing chunks mean the fill value, write them: python -c {shlex.quote(code)}"

    def _checked(self, key: str) -> zarr.Array[Any]:
        if key not in self.arrays:
            raise DataError(f"{self.path}: {key}: is missing")
        entry = self.arrays[key]
        if entry.dtype == "object" and "vlen-utf8" not in self._codecs(key):
            raise DataError(f"{self.path}: {key}: holds Python objects, which are not read")
        for codec in self._codecs(key):
            if codec not in SAFE_CODECS:
                raise DataError(f"{self.path}: {key}: is encoded with '{codec}', which is not read")
        self._started = True
        try:
            array = zarr.open_array(self._store, path=f"{self._root}{key}", mode="r")
        except Exception as error:  # noqa: BLE001 - zarr raises a dozen unrelated types
            raise DataError(f"{self.path}: {key}: cannot be opened ({first_line(error)})") from None
        self._declared += prod(array.shape) * array.dtype.itemsize
        where = f"{self.path}: {key}: has shape {array.shape}"
        check_declared_bytes(self._declared, self._max_bytes, where)
        chunk = _stored_chunk(array)
        largest = prod(chunk) * array.dtype.itemsize
        if largest > MAX_CHUNK_BYTES or not prod(chunk) or prod(_grid(array)) > MAX_CHUNKS:
            raise DataError(
                f"{self.path}: {key}: declares chunks of shape {chunk} for {array.shape}"
            )
        return with_checked_codecs(array, _stored_limit(array))

    def _codecs(self, key: str) -> list[str]:
        """Return the names of the codecs that an array's metadata name."""
        return list(codec_names(self._documents[key]))

    def _chunk_files(self, key: str, limit: int) -> dict[str, int]:
        """Return the sizes of the files of an array, by their paths relative to it.

        Args:
            key: The array.
            limit: Most bytes that one of them may have.

        Raises:
            DataError: One is larger, or there are links.
        """
        folder = f"{self._root}{key}/"
        if isinstance(self._store, LocalStore):
            base = self.path / folder
            files = self._own_files(base, key)
            sizes = {path.relative_to(base).as_posix(): path.stat().st_size for path in files}
        else:
            sizes = {
                name.removeprefix(folder): size
                for name, size in self._members.items()
                if name.startswith(folder)
            }
        for name, size in sizes.items():
            if size > limit:
                raise DataError(
                    f"{self.path}: {key}/{name}: has {size:,} bytes, expected at most {limit:,}"
                )
        return sizes

    def _own_files(self, folder: Path, key: str) -> Iterator[Path]:
        """Yield the files below a folder.

        Raises:
            DataError: A link, which would lead out of the store, or a pipe or device.
        """
        for place in (folder, *folder.parents):
            if place == self.path:
                break
            if place.is_symlink():
                raise DataError(f"{self.path}: {key}: {place} is a link, which is not followed")
        try:
            yield from stored_files(folder)
        except ArtifactError as error:
            raise DataError(
                f"{self.path}: {key}: {error.message}", "copy what it links to into the store"
            ) from None


class _Missing:
    """The chunks of an array that have no file.

    Attributes:
        rows: Per row, whether part of it is in such a chunk.
        count: Number of such chunks.
        total: Number of chunks.
    """

    def __init__(self, rows: npt.NDArray[np.bool_], count: int, total: int) -> None:
        self.rows, self.count, self.total = rows, count, total

    @classmethod
    def of(cls, array: zarr.Array[Any], names: Collection[str]) -> _Missing:
        """Find the missing chunks of an array whose files have these names."""
        chunk = _stored_chunk(array)
        grid = _grid(array)
        # A chunk that a shard does not hold was left out on purpose: shards are written whole.
        absent = [
            place
            for place in itertools.product(*map(range, grid))
            if array.metadata.encode_chunk_key(place) not in names
        ]
        rows = np.zeros(array.shape[0] if array.shape else 0, bool)
        for place in absent:
            rows[place[0] * chunk[0] : (place[0] + 1) * chunk[0]] = True
        return cls(rows, len(absent), prod(grid))

    def first_in(self, start: int, stop: int) -> int | None:
        """Return the first row of `start:stop` that is missing."""
        found = np.flatnonzero(self.rows[start:stop])
        return start + int(found[0]) if found.size else None

    def without(self, other: _Missing | None) -> int:
        """Return the number of missing rows that `other` does not miss."""
        if other is None:
            return int(self.rows.sum())
        size = min(len(self.rows), len(other.rows))
        return int(self.rows.sum() - (self.rows[:size] & other.rows[:size]).sum())

    def within(self, other: _Missing) -> _Missing:
        """Return this with only the rows that `other` misses as well."""
        size = min(len(self.rows), len(other.rows))
        return _Missing(self.rows[:size] & other.rows[:size], self.count, self.total)


def _common(missing: Sequence[_Missing], arrays: int) -> _Missing | None:
    """Return the rows that each of so many arrays misses, None where there are none."""
    if not missing or len(missing) < arrays:
        return None
    size = min(len(item.rows) for item in missing)
    rows = np.logical_and.reduce([item.rows[:size] for item in missing])
    return _Missing(rows, 0, 0) if rows.any() else None


def _stored_limit(array: zarr.Array[Any]) -> int:
    """Return the most bytes that a file of an array may have and a codec may decode it to.

    A shard has an index beside its chunks, and encoding may lengthen what does not compress; texts
    have any length.
    """
    size = prod(_stored_chunk(array)) * array.dtype.itemsize
    needed = 2**24 + 8 * size if array.dtype.kind in NUMBER_KINDS else 2 * MAX_CHUNK_BYTES
    return min(needed, 2 * MAX_CHUNK_BYTES)


def _grid(array: zarr.Array[Any]) -> list[int]:
    """Return how many files an array has along each axis."""
    return [-(-size // step) for size, step in zip(array.shape, _stored_chunk(array), strict=True)]


def _stored_chunk(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return the shape of what a file of the array holds: a shard or a chunk."""
    return tuple(array.shards or array.chunks)
