"""Reading zarr stores of unknown origin safely, as directories or zip files.

The store is not trusted: zarr creates what it does not find and fills missing chunks with the
fill value, and metadata can name a pickle codec, which runs code. All three are decided here.
Only the arrays that are asked for are opened, so that one with a codec that is not installed
does no harm.

Chunks are decoded without trust in the sizes that they declare or decode to: a few bytes may stand
for more than the memory there is, and Blosc's C library believes the sizes in a chunk's header.
"""

from __future__ import annotations

import bz2
import copy
import itertools
import lzma
import shlex
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from numcodecs.abc import Codec
from numcodecs.compat import ndarray_copy
from zarr.abc.store import Store
from zarr.codecs import ShardingCodec
from zarr.storage import LocalStore, ZipStore

from lwdctl.artifacts.stored_files import stored_files
from lwdctl.artifacts.zarr_layout import blosc_sizes
from lwdctl.core.errors import ArtifactError, DataError, first_line
from lwdctl.core.records import Finding
from lwdctl.data.checks import NUMBER_KINDS, NonFiniteError, check_declared_bytes
from lwdctl.data.files.bounds import MAX_CHUNK_BYTES, check_growth
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


_PIECE = 2**20
_ZSTD_BLOCK = 2**17
_ZSTD_SKIPPABLE = 0x184D2A5
_LZMA_MEMORY = 2**28


def with_checked_codecs(array: zarr.Array[Any], limit: int) -> zarr.Array[Any]:
    """Return an array whose chunks are checked before they are decoded.

    Args:
        array: The array.
        limit: Most bytes that a codec may decode a chunk to.
    """
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        filters = metadata.filters and tuple(_checked(item, limit) for item in metadata.filters)
        compressor = _checked(metadata.compressor, limit)
        metadata = replace(metadata, compressor=compressor, filters=filters)
    else:
        metadata = replace(metadata, codecs=tuple(_checked(c, limit) for c in metadata.codecs))
    inner = array._async_array  # noqa: SLF001 - zarr has no other way to change a codec
    return zarr.Array(type(inner)(metadata, inner.store_path, inner.config))


def _checked(codec: Any, limit: int) -> Any:
    """Return a codec that checks chunks, where it is one that compresses."""
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(_checked(item, limit) for item in codec.codecs))
    is_version_2 = isinstance(codec, Codec)
    name = codec.codec_id if is_version_2 else codec and codec.to_dict().get("name", "")
    check = _CHECKS.get(str(name).removeprefix("numcodecs."))
    if check is None:
        return codec
    kind = type(codec)
    own = {"decode": _decode} if is_version_2 else {
        key: value
        for key, value in (("_decode_single", _decode_single), ("_decode_sync", _decode_sync))
        if hasattr(kind, key)
    }  # fmt: skip
    settings = codec if is_version_2 else getattr(codec, "_codec", codec)
    changed = copy.copy(codec)
    # The codec stays what it is, with its settings; only how it decodes is another class's.
    object.__setattr__(changed, "__class__", type(kind.__name__, (kind,), {**own, "plain": kind}))
    object.__setattr__(changed, "bounded", lambda chunk: check(chunk, limit, settings))
    return changed


def _decode(codec: Any, buf: Any, out: Any = None) -> Any:
    found = codec.bounded(memoryview(buf).cast("B"))
    return codec.plain.decode(codec, buf, out) if found is None else ndarray_copy(found, out)


async def _decode_single(codec: Any, chunk: Any, spec: Any) -> Any:
    found = codec.bounded(memoryview(chunk.as_numpy_array()).cast("B"))
    if found is None:
        return await codec.plain._decode_single(codec, chunk, spec)  # noqa: SLF001
    return spec.prototype.buffer.from_bytes(found)


def _decode_sync(codec: Any, chunk: Any, spec: Any) -> Any:
    found = codec.bounded(memoryview(chunk.as_numpy_array()).cast("B"))
    if found is None:
        return codec.plain._decode_sync(codec, chunk, spec)  # noqa: SLF001
    return spec.prototype.buffer.from_bytes(found)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"the chunk decodes to {size:,} bytes or more, expected at most {limit:,}")


def _check_blosc(chunk: memoryview, limit: int, _: Any) -> None:
    size, stored = blosc_sizes(chunk)
    if stored != len(chunk):
        raise ValueError(f"the chunk has {len(chunk)} bytes, but declares {stored}")
    _check_size(size, limit)


def _check_lz4(chunk: memoryview, limit: int, _: Any) -> None:
    _check_size(int.from_bytes(chunk[:4], "little"), limit)


def _check_zstd(chunk: memoryview, limit: int, _: Any) -> None:
    """Check the size that a single frame declares (RFC 8878), else what all blocks hold at most.

    numcodecs decodes every frame of a chunk; of several it does not enforce the declared sizes.
    """
    place = size = 0
    while place < len(chunk):
        if len(chunk) < place + 8:
            raise ValueError("the chunk is cut off")
        if int.from_bytes(chunk[place : place + 4], "little") >> 4 == _ZSTD_SKIPPABLE:
            place += 8 + int.from_bytes(chunk[place + 4 : place + 8], "little")
            continue
        descriptor, is_first = chunk[place + 4], not place
        is_single = descriptor >> 5 & 1
        place += 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
        width = (is_single, 2, 4, 8)[descriptor >> 6]
        declared = int.from_bytes(chunk[place : place + width], "little")
        place, held = _zstd_blocks(chunk, place + width)
        place += 4 * (descriptor >> 2 & 1)  # a checksum
        if width and is_first and place >= len(chunk):
            held = declared + (256 if width == 2 else 0)
        size += held
        _check_size(size, limit)


def _zstd_blocks(chunk: memoryview, place: int) -> tuple[int, int]:
    """Return where the blocks of a frame end, and the most bytes that they decode to."""
    size, last = 0, False
    while not last and place + 3 <= len(chunk):
        head = int.from_bytes(chunk[place : place + 3], "little")
        last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        size += _ZSTD_BLOCK if kind == 2 else length
        place += 3 + (1 if kind == 1 else length)
    return place if last else len(chunk), size


def _inflated(make: Callable[[Any], Any]) -> Callable[[memoryview, int, Any], bytes]:
    """Return a function that decodes with a decompressor of Python, a piece at a time."""

    def decode(chunk: memoryview, limit: int, settings: Any) -> bytes:
        found, rest = bytearray(), bytes(chunk)
        while rest:
            source, fed = make(settings), rest
            while not source.eof:
                piece = source.decompress(fed, _PIECE)
                fed = getattr(source, "unconsumed_tail", b"")
                if not piece and not fed:
                    raise ValueError("the chunk is cut off")
                found += piece
                _check_size(len(found), limit)
            rest = source.unused_data
        return bytes(found)

    return decode


_CHECKS: dict[str, Callable[[memoryview, int, Any], bytes | None]] = {
    "blosc": _check_blosc,
    "lz4": _check_lz4,
    "zstd": _check_zstd,
    "gzip": _inflated(lambda _: zlib.decompressobj(31)),
    "zlib": _inflated(lambda _: zlib.decompressobj()),
    "bz2": _inflated(lambda _: bz2.BZ2Decompressor()),
    "lzma": _inflated(
        lambda codec: lzma.LZMADecompressor(
            codec.format, None if codec.format == lzma.FORMAT_RAW else _LZMA_MEMORY, codec.filters
        )
    ),
}
