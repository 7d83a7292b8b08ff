"""Opening and reading HDF5 files of unknown origin safely.

An HDF5 file can refer to other files (external links, virtual datasets, raw external storage)
and can declare arrays far larger than itself. `open_hdf5` walks the structure and rejects all of
that before anything is read.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import FloatArray
from lwdctl.data.checks import (
    NUMBER_KINDS,
    check_declared_bytes,
    check_rows,
    finite_rows,
)
from lwdctl.data.reader import closed_on_error

# Cache per open array: flat files are read in random order, with many episodes in a chunk.
CACHE_BYTES = 2**24
CACHE_SLOTS = 10007


def open_hdf5(path: Path, max_bytes: int) -> h5py.File:
    """Open `path` for reading after checking its whole structure.

    Args:
        path: The file.
        max_bytes: Largest total uncompressed size that its datasets may declare.

    Raises:
        DataError: No such file, not HDF5, truncated, a link that leaves the file or dangles,
            a virtual dataset, raw external storage, or a declared size beyond `max_bytes`.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: is not a file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty")
    try:
        file = h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES, rdcc_nslots=CACHE_SLOTS)
    except OSError as error:
        problem = f"cannot be opened ({error})"
        if "truncated" in str(error):
            problem = "is truncated; download it again"
        elif "signature not found" in str(error):
            problem = "is not an HDF5 file"
        raise DataError(f"{path}: {problem}") from None
    with closed_on_error(file):
        try:
            _check_structure(file, path, max_bytes)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: is damaged ({error})") from None
    return file


class Hdf5Reader(ABC):
    """Base of the readers of HDF5 files: open, check and scan the file, close it on errors.

    Args:
        path: The file.
        config: What the user requests.

    Raises:
        DataError: The structure is not the format's; the message names file and key.
    """

    def __init__(self, path: Path, config: IngestConfig) -> None:
        self.path = path
        self._file = open_hdf5(path, config.max_bytes)
        with closed_on_error(self._file):
            self._scan(config)

    @abstractmethod
    def _scan(self, config: IngestConfig) -> None:
        """Check the structure and set `spec` and `episodes`."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _check_structure(file: h5py.File, path: Path, max_bytes: int) -> None:
    total = 0
    for key, dataset in _walk(file, path):
        if dataset.is_virtual:
            raise DataError(f"{path}: {key}: is a virtual dataset, which may read other files")
        if dataset.external:
            raise DataError(f"{path}: {key}: keeps its data in another file")
        if dataset.shape is None:
            continue
        total += dataset.size * dataset.dtype.itemsize
        check_declared_bytes(total, max_bytes, f"{path}: {key}: declares shape {dataset.shape}")


def _walk(file: h5py.File, path: Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield every dataset once, even where groups contain each other."""
    stack: list[tuple[str, h5py.Group]] = [("", file["/"])]
    visited: set[int] = set()
    while stack:
        prefix, group = stack.pop()
        for name in group:
            key = f"{prefix}{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise DataError(f"{path}: {key}: is an external link to {link.filename}")
            if isinstance(link, h5py.SoftLink):
                if group.get(name) is None:
                    raise DataError(f"{path}: {key}: is a link to {link.path}, which is missing")
                continue  # its target lies in this file and is visited there
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in visited:
                continue
            visited.add(address)
            if isinstance(item, h5py.Group):
                stack.append((f"{key}/", item))
            elif isinstance(item, h5py.Dataset):
                yield key, item


def location(item: h5py.Group | h5py.Dataset, key: str = "") -> str:
    """Return `FILE: KEY` of an array or attribute below `item`, as error messages name it."""
    name = f"{item.name.rstrip('/')}/{key}".strip("/")
    return f"{item.file.filename}: {name}"


def array_at(
    group: h5py.Group,
    key: str,
    *,
    ranks: tuple[int, ...] = (2,),
    rows: int | None = None,
    reference: str = "actions",
) -> h5py.Dataset:
    """Return the numeric array `key` of `group` after checking its shape.

    Args:
        group: The group or file.
        key: Path of the array below it.
        ranks: Accepted numbers of axes.
        rows: Number of rows that the array `reference` has, or None to accept any.
        reference: Name of that array.

    Raises:
        DataError: The array is missing, is not numeric, or has another shape.
    """
    dataset = dataset_at(group, key)
    if dataset.shape is None or dataset.dtype.kind not in NUMBER_KINDS:
        raise DataError(f"{location(dataset)}: holds {dataset.dtype}, not numbers")
    if len(dataset.shape) not in ranks:
        wanted = " or ".join(str(rank) for rank in ranks)
        raise DataError(f"{location(dataset)}: has shape {dataset.shape}, expected {wanted} axes")
    if rows is not None:
        check_rows(dataset.shape[0], rows, location(group, key), reference)
    return dataset


def dataset_at(group: h5py.Group, key: str) -> h5py.Dataset:
    """Return the dataset `key` of `group`.

    Raises:
        DataError: It is missing or is a group.
    """
    item = group.get(key)
    if item is None:
        raise DataError(f"{location(group, key)}: is missing")
    if not isinstance(item, h5py.Dataset):
        raise DataError(f"{location(group, key)}: is a group, not an array")
    return item


def read_array(dataset: h5py.Dataset, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
    """Return the rows `start:stop` as they are stored.

    Raises:
        DataError: The bytes cannot be read (damaged chunk, unknown filter).
    """
    try:
        return np.asarray(dataset[start:stop])
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{location(dataset)}, row {start}: cannot be read ({error})") from None


def read_rows(dataset: h5py.Dataset, start: int = 0, stop: int | None = None) -> FloatArray:
    """Return the rows `start:stop` as finite float32.

    Raises:
        DataError: Damaged bytes, NaN or infinity.
    """
    return finite_rows(read_array(dataset, start, stop), location(dataset), start)


def text_of(value: Any) -> str:
    """Return an HDF5 string (str, bytes or a zero-dimensional array of them) as text."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def number_of(name: str) -> tuple[str, int, str]:
    """Return a sort key that puts `demo_2` before `demo_10`."""
    match = re.fullmatch(r"(.*?)(\d+)", name)
    return (match[1], int(match[2]), name) if match else (name, -1, name)
