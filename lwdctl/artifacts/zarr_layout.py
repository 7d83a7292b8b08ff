"""What a store of ours looks like on the disk, checked before zarr opens any of it.

The metadata of a zarr array choose the code that decodes it: a codec may execute what it reads. So
they are compared here, as plain JSON, with exactly what `zarr_columns` writes or once wrote, and
the files of every array with its chunks: one that is missing would be read as zeros, one that is a
link from anywhere.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lwdctl.artifacts.stored_files import read_stored, stored_files
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.untrusted import parse_json

METADATA = "zarr.json"
MAX_CHUNK_BYTES = 2**28
"""Most bytes that a chunk may decode to."""
ITEM_BYTES = {
    "int8": 1, "uint8": 1, "int32": 4, "int64": 8, "float32": 4, "float64": 8,
}  # fmt: skip
"""Element types of our arrays, and their bytes."""

_MAX_METADATA_BYTES = 2**24
_CHECKSUM_BYTES = 4
_COMPRESSIONS = (("lz4", "shuffle"), ("zstd", "bitshuffle"))
"""How chunks are compressed today, and how they were before."""
_BLOSC_HEADER = struct.Struct("<4B3I")
BLOSC_HEADER_BYTES = _BLOSC_HEADER.size
_GROUP_KEYS = {"zarr_format", "node_type", "attributes"}
_ARRAY_KEYS = {
    *_GROUP_KEYS, "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs",
    "storage_transformers", "dimension_names",
}  # fmt: skip
_AGAIN = "make the artifact again"


@dataclass(frozen=True)
class _ArrayLayout:
    """The shape of an array and of its chunks, and the bytes of an element."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    item_bytes: int

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunk) * self.item_bytes

    def chunk_names(self, most: int) -> set[str]:
        """Return the names of the files of all chunks, of which there may be at most `most`."""
        # An axis of no elements has chunks of none.
        axes = zip(self.shape, self.chunk, strict=True)
        steps = [-(-size // step) if size else 0 for size, step in axes]
        if math.prod(steps) > most:
            raise ValueError(f"declares {math.prod(steps):,} chunks and has {most:,}")
        return {"c." + ".".join(map(str, place)) for place in itertools.product(*map(range, steps))}


def check_layout(store: Path) -> None:
    """Check that a directory is a zarr store as `zarr_columns` writes them, and whole.

    Raises:
        ArtifactError: Metadata name another version, codec, element type or layout; a chunk is
            missing, or a file is none of the store's; or there are links.
    """
    folders: dict[str, set[str]] = {}
    for path in stored_files(store):
        folder, _, name = path.relative_to(store).as_posix().rpartition("/")
        folders.setdefault(folder, set()).add(name)
    for folder, names in folders.items():
        place = store / folder
        try:
            if METADATA not in names:
                raise ValueError(f"has files, but no {METADATA}")
            metadata = _read(store, f"{folder}/{METADATA}".lstrip("/"))
            _check_parents(folder, folders)
            if metadata.get("node_type") == "array":
                _check_chunks(place, _array_layout(metadata), names - {METADATA})
            else:
                _check_group(metadata, names)
        except ValueError as error:
            raise ArtifactError(
                f"{place} is no part of an lwdctl store: {error}", _AGAIN
            ) from error


def _read(store: Path, name: str) -> dict[str, Any]:
    content = read_stored(store, name, _MAX_METADATA_BYTES)
    metadata = parse_json(content, str(store / name), hint=_AGAIN)
    if not isinstance(metadata, dict):
        raise ValueError(f"its {METADATA} holds no object")
    _expect(metadata.get("zarr_format"), 3, "zarr_format")
    return metadata


def _check_parents(folder: str, folders: Mapping[str, set[str]]) -> None:
    for parent in (str(item) for item in PurePosixPath(folder).parents):
        if METADATA not in folders.get("" if parent == "." else parent, ()):
            raise ValueError("it lies in no group")


def _check_group(metadata: Mapping[str, Any], names: set[str]) -> None:
    _expect(metadata.get("node_type"), "group", "node_type")
    # Consolidated metadata would be taken for those of the arrays, which are checked here.
    _expect_keys(metadata, _GROUP_KEYS)
    if names != {METADATA}:
        raise ValueError(f"'{_shown(min(names - {METADATA}))}' does not belong to a group")


def _array_layout(metadata: Mapping[str, Any]) -> _ArrayLayout:
    _expect_keys(metadata, _ARRAY_KEYS)
    kind = metadata.get("data_type")
    if not isinstance(kind, str) or kind not in ITEM_BYTES:
        raise ValueError(f"its data_type is {_shown(kind)}, not one of {', '.join(ITEM_BYTES)}")
    grid = metadata.get("chunk_grid")
    layout = _ArrayLayout(
        _sizes(metadata.get("shape"), "shape"),
        _sizes(_member(grid, "configuration", "chunk_shape"), "chunk_shape"),
        ITEM_BYTES[kind],
    )
    _expect(_member(grid, "name"), "regular", "chunk_grid")
    encoding = {"name": "default", "configuration": {"separator": "."}}
    _expect(metadata.get("chunk_key_encoding"), encoding, "chunk_key_encoding")
    _expect(metadata.get("fill_value"), 0, "fill_value")
    _expect(metadata.get("storage_transformers", []), [], "storage_transformers")
    _check_codecs(metadata.get("codecs"), layout.item_bytes)
    if len(layout.shape) != len(layout.chunk):
        raise ValueError(f"its chunks have {len(layout.chunk)} axes, not {len(layout.shape)}")
    if any(size and not step for size, step in zip(layout.shape, layout.chunk, strict=True)):
        raise ValueError(f"its chunks are empty: {_shown(list(layout.chunk))}")
    if layout.chunk_bytes > MAX_CHUNK_BYTES:
        raise ValueError(
            f"a chunk decodes to {layout.chunk_bytes:,} bytes, more than {MAX_CHUNK_BYTES:,}"
        )
    return layout


def _check_codecs(codecs: Any, item_bytes: int) -> None:
    names = [_member(item, "name") for item in codecs] if isinstance(codecs, list) else codecs
    _expect(names, ["bytes", "blosc", "crc32c"], "codecs")
    order, compression, checksum = codecs
    if item_bytes > 1 or order.get("configuration"):
        _expect(_member(order, "configuration", "endian"), "little", "codecs: endian")
    _expect(_member(compression, "configuration", "typesize"), item_bytes, "codecs: typesize")
    found = tuple(_member(compression, "configuration", name) for name in ("cname", "shuffle"))
    if found not in _COMPRESSIONS:
        raise ValueError(f"its codecs: {_shown(found)} is not one of {_shown(_COMPRESSIONS)}")
    _expect(checksum.get("configuration") or {}, {}, "codecs: crc32c")


def _check_chunks(folder: Path, layout: _ArrayLayout, names: set[str]) -> None:
    expected = layout.chunk_names(len(names))
    if names != expected:
        odd = _shown(min(names ^ expected))
        raise ValueError(f"'{odd}' is {'no chunk of it' if odd in names else 'missing'}")
    for name in names:
        with (folder / name).open("rb") as file:
            header = file.read(BLOSC_HEADER_BYTES)
            stored = file.seek(0, 2) - _CHECKSUM_BYTES
        try:
            decoded, compressed = blosc_sizes(header)
        except ValueError as error:
            raise ValueError(f"{name} is damaged: {error}") from None
        if (decoded, compressed) != (layout.chunk_bytes, stored):
            raise ValueError(
                f"{name} is damaged: its header says {compressed} bytes that decode to {decoded},"
                f" not {stored} to {layout.chunk_bytes}"
            )


def blosc_sizes(chunk: bytes | memoryview) -> tuple[int, int]:
    """Return to how many bytes a chunk of Blosc decodes, and how many it has, as its header says.

    The C library believes these sizes: where they are damaged, or the file was cut off, it reads
    beyond the chunk, which ends the process.

    Raises:
        ValueError: The chunk is shorter than a header.
    """
    if len(chunk) < BLOSC_HEADER_BYTES:
        raise ValueError(f"it has {len(chunk)} bytes, less than a header")
    decoded, _, compressed = _BLOSC_HEADER.unpack_from(chunk)[4:]
    return decoded, compressed


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError(f"its {what} is {_shown(value)}, not a list of sizes")
    return tuple(value)


def _member(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _expect(found: Any, expected: Any, what: str) -> None:
    if found != expected or isinstance(found, bool):
        raise ValueError(f"its {what} is {_shown(found)}, not {_shown(expected)}")


def _expect_keys(metadata: Mapping[str, Any], known: set[str]) -> None:
    # Keys without a value say nothing; zarr-python writes some.
    odd = [key for key, value in metadata.items() if key not in known and value is not None]
    if odd:
        raise ValueError(f"its {METADATA} has the unknown key '{_shown(odd[0])}'")


def _shown(value: Any) -> str:
    return plain_text(value if isinstance(value, str) else repr(value), 200)
