"""The arrays of an HDF5 file by their paths, as `data.files` opens zarr stores and npz files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError, first_line
from lwdctl.core.records import Finding
from lwdctl.data.checks import closed_on_error
from lwdctl.data.files.contents import ArrayEntry
from lwdctl.data.files.hdf5 import dataset_at, open_hdf5, read_array, read_stored

# A handle keeps the chunk cache of its array, which flat files need; grouped ones have thousands.
_MAX_HANDLES = 64


class Hdf5Arrays:
    """An HDF5 file of any layout; an `ArrayFile`.

    Args:
        path: The file.
        max_bytes: Largest total uncompressed size that its datasets may declare.

    Raises:
        DataError: As `open_hdf5`.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.findings: list[Finding] = []
        self._file, structure = open_hdf5(path, max_bytes)
        self._stored = structure.arrays
        self._handles: dict[str, h5py.Dataset] = {}
        self.arrays = {
            key: ArrayEntry(item.shape, str(item.dtype)) for key, item in self._stored.items()
        }
        with closed_on_error(self._file):
            try:
                if not structure.complete:
                    self.arrays = dict(_datasets(self._file))
            except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
                raise DataError(f"{path}: is damaged ({first_line(error)})") from None

    def open(self, steps: Sequence[str], others: Sequence[str] = ()) -> None:
        """Check that the arrays exist.

        Raises:
            DataError: One does not.
        """
        for key in (*steps, *others):
            if key not in self.arrays:
                raise DataError(f"{self.path}: {key}: is missing")

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return the rows `start:stop` as they are stored; a single value is one row.

        Raises:
            DataError: The bytes cannot be read.
        """
        values = read_stored(self._file, self._stored.get(key), key, start, stop)
        if values is not None:
            return values
        if key not in self._handles:
            if len(self._handles) >= _MAX_HANDLES:
                self._handles.clear()
            self._handles[key] = dataset_at(self._file, key)
        dataset = self._handles[key]
        if dataset.shape == ():
            return np.asarray(dataset[()]).reshape(1)
        return read_array(dataset, start, stop)

    def attributes(self, group: str) -> Mapping[str, Any]:
        """Return the attributes of a group."""
        return dict(self._file[group].attrs)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _datasets(file: h5py.File) -> Iterator[tuple[str, ArrayEntry]]:
    """Yield every array under all of its names; groups that contain each other are walked once."""
    stack: list[tuple[str, h5py.Group]] = [("", file)]
    visited = {file["/"].id}
    while stack:
        prefix, group = stack.pop()
        below: list[tuple[str, h5py.Group]] = []
        for name in group:
            if not isinstance(name, str):  # bytes that are no text, which no option can name
                continue
            item = group[name]
            if isinstance(item, h5py.Dataset):
                if item.shape is not None:
                    shape = tuple(map(int, item.shape))
                    yield f"{prefix}{name}", ArrayEntry(shape, str(item.dtype))
            elif isinstance(item, h5py.Group) and item.id not in visited:
                visited.add(item.id)
                below.append((f"{prefix}{name}/", item))
        stack += reversed(below)
