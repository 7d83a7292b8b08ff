"""Zarr v3 arrays that grow along their first axis, written and read in whole chunks.

`zarr_chunks` compresses and writes the chunks; each carries a crc32c that zarr checks whenever it
reads the chunk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from lwdctl.artifacts.origin import check_pulled_whole
from lwdctl.artifacts.zarr_chunks import CODECS, SEPARATOR, ChunkMemory, ChunkWriter
from lwdctl.artifacts.zarr_layout import MAX_CHUNK_BYTES, METADATA, check_layout
from lwdctl.core.errors import ArtifactError, first_line

STEP_CHUNK = 8192
"""Fewest rows of a chunk that holds steps."""
EPISODE_CHUNK = 1024
_STEP_CHUNK_BYTES = 2**19
SURELY_FREE = 2**26
"""Bytes that are read without a look at the free memory."""


class Column:
    """One array being written; holds one chunk in memory.

    Args:
        group: Where it goes.
        name: Path of the array inside the group.
        shape: Shape of one row.
        dtype: Element type.
        chunk: Rows per chunk; fewer where a chunk would be larger than any that is read, and where
            there are fewer rows in all.
        chunks: Writes the chunks of several columns of the group; close it after them. None
            for one of its own, which is closed with the column.

    Attributes:
        rows: Rows appended so far.
    """

    def __init__(
        self,
        group: zarr.Group,
        name: str,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        chunk: int = STEP_CHUNK,
        chunks: ChunkWriter | None = None,
    ) -> None:
        self._group, self._name = group, name
        self._chunks = chunks or ChunkWriter(group)
        self._closes = chunks is None
        self._dtype = np.dtype(dtype).newbyteorder("<")
        row_bytes = max(math.prod(shape) * self._dtype.itemsize, 1)
        self._shape = max(min(chunk, MAX_CHUNK_BYTES // row_bytes), 1), *shape
        self._buffer = np.empty(self._shape, self._dtype)
        self.rows = self._filled = self._written = 0

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self._shape[1:]

    def append(self, rows: npt.ArrayLike) -> None:
        """Append rows (row, ...)."""
        rest = np.asarray(rows)
        self.rows += len(rest)
        while len(rest):
            taken = min(len(rest), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
            if self._filled == len(self._buffer):
                self._flush()
                self._buffer = np.empty(self._shape, self._dtype)

    def close(self) -> None:
        """Write what is left in memory, and the description of the array."""
        if self._filled:
            if self._written:
                self._buffer[self._filled :] = 0  # zarr's chunks are whole
            else:
                self._buffer = self._buffer[: self._filled]
                self._shape = self._buffer.shape
            self._flush()
        if self._closes:
            self._chunks.close()
        self._group.create_array(
            self._name,
            shape=(self.rows, *self.row_shape),
            chunks=self._shape,
            # One directory for all chunks: another per chunk would double what must be synced.
            chunk_key_encoding={"name": "default", "separator": SEPARATOR},
            dtype=self._dtype,
            compressors=CODECS,
        )

    def _flush(self) -> None:
        self._chunks.write(self._name, self._written, self._buffer)
        self._written, self._filled = self._written + 1, 0


def step_chunk(row_bytes: int) -> int:
    """Return how many steps a chunk holds: more in narrow arrays, so that they have few files.

    Fewer in very wide ones, whose chunks would be larger than those that are read.
    """
    narrow = 1 << max(1, _STEP_CHUNK_BYTES // max(row_bytes, 1)).bit_length() - 1
    return min(max(STEP_CHUNK, narrow), max(1, MAX_CHUNK_BYTES // max(row_bytes, 1)))


def create_group(path: Path | None) -> zarr.Group:
    """Create an empty zarr group at `path`, or in memory for None.

    Raises:
        ArtifactError: There is something at `path` already.
    """
    if path is None:
        return zarr.create_group(ChunkMemory(), zarr_format=3)
    if path.exists():
        raise ArtifactError(f"{path} exists already", "stores are written once, into a new path")
    return zarr.create_group(path, zarr_format=3)


def seal_group(group: zarr.Group, attributes: Mapping[str, Any]) -> None:
    """Mark a group as complete; `open_group` refuses one that is not."""
    group.attrs.update({**attributes, "complete": True})


def open_group(path: Path, store_format: str, version: int) -> zarr.Group:
    """Open a sealed group for reading; never creates one.

    Nothing is opened before `check_layout` has found that it is a store that we write.

    Args:
        path: Directory of the store.
        store_format: Value that its attribute `format` must have.
        version: Value that its attribute `format_version` must have.

    Raises:
        ArtifactError: It is missing, damaged, unfinished, of another format or layout, or holds
            links.
    """
    check_pulled_whole(path)
    if not (path / METADATA).is_file():
        raise ArtifactError(f"there is no {store_format} store at {path}")
    group = _open(path)
    attributes = dict(group.attrs)
    if not attributes.get("complete"):
        raise ArtifactError(f"{path} was not written to its end", "make it again")
    if attributes.get("format") != store_format or attributes.get("format_version") != version:
        raise ArtifactError(
            f"{path} is a store of format {attributes.get('format')} version "
            f"{attributes.get('format_version')}, not {store_format} version {version}"
        )
    return group


def _open(path: Path) -> zarr.Group:
    check_layout(path)
    try:
        return zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
    except Exception as error:
        raise ArtifactError(f"{path / METADATA} is damaged: {first_line(error)}") from error


def array_of(
    group: zarr.Group, name: str, shape: tuple[int | None, ...], dtype: npt.DTypeLike
) -> zarr.Array[Any]:
    """Return the array called `name`.

    Args:
        group: Where it is.
        name: Path of the array inside the group.
        shape: The shape that it must have; None stands for any length of an axis.
        dtype: The element type that it must have.

    Raises:
        ArtifactError: The group has none of that name, it has another shape or type, or it cannot
            be opened.
    """
    try:
        found = group.get(name)
    except Exception as error:
        raise ArtifactError(
            f"{group.store_path}: the array '{name}' cannot be opened: {first_line(error)}"
        ) from error
    if not isinstance(found, zarr.Array):
        raise ArtifactError(f"{group.store_path} has no array '{name}'")
    same = len(found.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(found.shape, shape, strict=True)
    )
    if not same or found.dtype != np.dtype(dtype):
        lengths = ", ".join("any" if size is None else str(size) for size in shape)
        raise ArtifactError(
            f"{found.store_path} has shape {found.shape} and type {found.dtype}, expected"
            f" ({lengths}) and {np.dtype(dtype)}",
            "make the artifact again",
        )
    return found


def read_rows(array: zarr.Array[Any], start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
    """Read the rows `start` to `stop`.

    Raises:
        ArtifactError: A chunk is damaged (its crc32c differs), the rows do not exist, or they would
            take most of the free memory.
    """
    stop = array.shape[0] if stop is None else stop
    if not 0 <= start <= stop <= array.shape[0]:
        raise ArtifactError(f"{array.store_path} has {array.shape[0]} rows, not {start} to {stop}")
    size = (stop - start) * math.prod(array.shape[1:]) * array.dtype.itemsize
    check_memory(size, f"{array.store_path}: {stop - start:,} rows")
    try:
        return np.asarray(array[start:stop])
    except Exception as error:
        raise ArtifactError(
            f"{array.store_path}: rows {start} to {stop} are damaged: {first_line(error)}",
            "make the artifact again; `lwdctl verify` checks all of it",
        ) from error


def check_memory(size: int, what: str) -> None:
    """Check that data fit into memory: a store of a few kilobytes may declare any amount of them.

    Args:
        size: Bytes that they take.
        what: The store and what of it takes them, for the message.

    Raises:
        ArtifactError: They would take more than half of the free memory.
    """
    if size <= SURELY_FREE:
        return
    import psutil  # here, so that small stores do not wait for it

    free = psutil.virtual_memory().available
    if size > free / 2:
        raise ArtifactError(
            f"{what} take {size / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free",
            "use a machine with more memory; if somebody else made the artifact, distrust it",
        )


def read_every_chunk(path: Path) -> int:
    """Read every chunk of every array below `path`, so that each crc32c is checked.

    Returns:
        Bytes read, uncompressed.

    Raises:
        ArtifactError: A chunk is damaged, or the store is none that we write.
    """
    total = 0
    group = _open(path)
    for _, item in group.members(max_depth=None):
        if isinstance(item, zarr.Array):
            sides = zip(item.shape, item.chunks, strict=True)
            for corner in itertools.product(*(range(0, size, step or 1) for size, step in sides)):
                total += _read_chunk(item, corner)
    return total


def _read_chunk(array: zarr.Array[Any], corner: tuple[int, ...]) -> int:
    block = tuple(slice(low, low + step) for low, step in zip(corner, array.chunks, strict=True))
    try:
        return int(np.asarray(array[block]).nbytes)
    except Exception as error:
        raise ArtifactError(
            f"{array.store_path}: the chunk at {corner} is damaged: {first_line(error)}",
            "make the artifact again",
        ) from error
