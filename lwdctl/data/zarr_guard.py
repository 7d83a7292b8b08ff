"""Opens zarr stores of unknown origin without trusting them.

zarr creates what it does not find, fills chunks that are missing with zeros, and version 2
metadata can name a pickle codec, which runs code. All three are refused here.
"""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, ZipStore

from lwdctl.core.errors import DataError

SAFE_CODECS = frozenset({"blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "crc32", "crc32c"})
# A chunk is decoded whole; more than this is no chunk of a replay buffer.
MAX_CHUNK_BYTES = 2**30


def open_zarr(path: Path, max_bytes: int) -> tuple[zarr.Group, Store]:
    """Open a zarr group for reading; nothing is created.

    Args:
        path: A zarr directory or a zip file of one.
        max_bytes: Largest total size, uncompressed, that its arrays may declare.

    Returns:
        The group, and the store to close after use.

    Raises:
        DataError: No such path, no zarr group, or a declared size beyond `max_bytes`.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is neither a zarr directory nor an intact zip file of one")
    store: Store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
    try:
        group = zarr.open_group(store, mode="r")
        declared = [(name, item) for name, item in group.members(max_depth=None)]
    except Exception as error:  # noqa: BLE001 - see below
        # zarr and its stores raise a dozen unrelated types for damaged metadata.
        store.close()
        raise DataError(f"{path}: is not a zarr group ({_first_line(error)})") from None
    total = 0
    for name, item in declared:
        if isinstance(item, zarr.Array):
            total += prod(item.shape) * item.dtype.itemsize
        if total > max_bytes:
            store.close()
            raise DataError(
                f"{path}: {name}: brings the declared size to {total:,} bytes, more than "
                f"{max_bytes:,}",
                "raise --max-bytes if the size is right",
            )
    return group, store


def require_array(group: zarr.Group, key: str, path: Path) -> zarr.Array[Any]:
    """Return the array `key` after checking codecs, chunk size and that no chunk is missing.

    Raises:
        DataError: One of these is wrong; the message names file and key.
    """
    item = group.get(key)
    if not isinstance(item, zarr.Array):
        raise DataError(f"{path}: {key}: is missing")
    if item.dtype.kind == "O":
        raise DataError(f"{path}: {key}: holds Python objects, which are not read")
    for codec in _codec_names(item):
        if codec not in SAFE_CODECS:
            raise DataError(f"{path}: {key}: is encoded with '{codec}', which is not read")
    if prod(item.chunks) * item.dtype.itemsize > MAX_CHUNK_BYTES:
        raise DataError(f"{path}: {key}: declares chunks of shape {item.chunks}")
    if item.nchunks_initialized < item.nchunks:
        missing = item.nchunks - item.nchunks_initialized
        raise DataError(f"{path}: {key}: {missing} of {item.nchunks} chunks are missing")
    return item


def read_zarr(
    array: zarr.Array[Any], key: str, path: Path, start: int, stop: int
) -> npt.NDArray[Any]:
    """Return the rows `start:stop` as they are stored.

    Raises:
        DataError: A chunk is damaged.
    """
    try:
        return np.asarray(array[start:stop])
    except Exception as error:  # noqa: BLE001 - see below
        # Each codec raises a type of its own for damaged bytes.
        reason = _first_line(error)
        raise DataError(f"{path}: {key}, row {start}: cannot be read ({reason})") from None


def _codec_names(array: zarr.Array[Any]) -> list[str]:
    """Return the names of all codecs but the one that lays out bytes."""
    codecs = [*array.filters, *array.compressors]
    names = [getattr(codec, "codec_id", "") or codec.to_dict()["name"] for codec in codecs]
    return [str(name).rpartition(".")[2] for name in names]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
