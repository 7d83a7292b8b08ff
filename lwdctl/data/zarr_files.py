"""Opening zarr stores of unknown origin safely, as directories or zip files.

The store is not trusted: zarr creates what it does not find and fills missing chunks with zeros,
and version 2 metadata can name a pickle codec, which runs code. All three are rejected here.
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
from lwdctl.data.checks import check_declared_bytes, closed_on_error, first_line

SAFE_CODECS = frozenset({"blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "crc32", "crc32c"})
# A chunk is decoded as a whole; no chunk of a replay buffer is larger than this.
MAX_CHUNK_BYTES = 2**30


def open_zarr(path: Path, max_bytes: int) -> tuple[zarr.Group, Store]:
    """Return a zarr group, opened for reading without creating anything, and its store.

    Raises:
        DataError: No such path, no zarr group, or a declared size beyond `max_bytes`.
    """
    group, store = open_store(path)
    with closed_on_error(store):
        try:
            members = list(group.members(max_depth=None))
        except Exception as error:  # noqa: BLE001 - zarr raises a dozen unrelated types
            raise DataError(f"{path}: is not a zarr group ({first_line(error)})") from None
        total = 0
        for name, item in members:
            if isinstance(item, zarr.Array):
                total += prod(item.shape) * item.dtype.itemsize
                check_declared_bytes(total, max_bytes, f"{path}: {name}: has shape {item.shape}")
    return group, store


def open_store(path: Path) -> tuple[zarr.Group, Store]:
    """Return the root group of a zarr store, opened for reading, and the store.

    Raises:
        DataError: No such path, or no zarr group.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is neither a zarr directory nor an intact zip file of one")
    store: Store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
    with closed_on_error(store):
        try:
            return zarr.open_group(store, mode="r"), store
        except Exception as error:  # noqa: BLE001 - zarr raises a dozen unrelated types
            raise DataError(f"{path}: is not a zarr group ({first_line(error)})") from None


def zarr_array_at(group: zarr.Group, key: str, path: Path) -> zarr.Array[Any]:
    """Return the array `key` after checking codecs, chunk size and that no chunk is missing.

    Raises:
        DataError: It is missing, holds Python objects, or cannot be read safely and in full.
    """
    item = group.get(key)
    if not isinstance(item, zarr.Array):
        raise DataError(f"{path}: {key}: is missing")
    if item.dtype.kind == "O":
        raise DataError(f"{path}: {key}: holds Python objects, which are not read")
    for codec in (*item.filters, *item.compressors):
        name = str(getattr(codec, "codec_id", "") or codec.to_dict()["name"]).rpartition(".")[2]
        if name not in SAFE_CODECS:
            raise DataError(f"{path}: {key}: is encoded with '{name}', which is not read")
    if prod(item.chunks) * item.dtype.itemsize > MAX_CHUNK_BYTES:
        raise DataError(f"{path}: {key}: declares chunks of shape {item.chunks}")
    if item.nchunks_initialized < item.nchunks:
        missing = item.nchunks - item.nchunks_initialized
        raise DataError(f"{path}: {key}: {missing} of {item.nchunks} chunks are missing")
    return item


def read_zarr_rows(array: zarr.Array[Any], start: int, stop: int, where: str) -> npt.NDArray[Any]:
    """Return the rows `start:stop` as they are stored.

    Raises:
        DataError: A chunk cannot be decoded; the message begins with `where`.
    """
    try:
        return np.asarray(array[start:stop])
    except Exception as error:  # noqa: BLE001 - each codec raises its own type
        reason = first_line(error)
        raise DataError(f"{where}, row {start}: cannot be read ({reason})") from None
