"""The arrays of an HDF5 file by their paths, as `data.files` opens zarr stores and npz files.

`StackedArrays` shows arrays (episode, time, ...) of any of these files as arrays (time, ...).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError, first_line
from lwdctl.core.records import Finding
from lwdctl.data.checks import closed_on_error
from lwdctl.data.files.array_kinds import leaf
from lwdctl.data.files.contents import ArrayEntry
from lwdctl.data.files.hdf5 import dataset_at, open_hdf5, read_array, read_stored
from lwdctl.data.readers.array_reader import ArrayFile
from lwdctl.data.readers.states import INITIAL_STATE

# A handle keeps the chunk cache of its array, which flat files need; grouped ones have thousands.
_MAX_HANDLES = 64
FEWEST_STACKED_STEPS = 8
"""Length from which the second of three axes is taken for time; a shorter one may be robot arms."""
_STACKED_AXES = 3


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


class Stack(NamedTuple):
    """The first two axes of arrays that hold one episode per row.

    Attributes:
        episodes: Number of episodes.
        steps: Number of steps that are stored of each.
    """

    episodes: int
    steps: int


def stack_of(
    arrays: Mapping[str, ArrayEntry], observations: Sequence[str], action: str
) -> Stack | None:
    """Return the first two axes of actions (episode, time, action), None where steps are rows.

    Args:
        arrays: All arrays of a file.
        observations: Those of the observations, which have to have the same first two axes.
        action: That of the actions.
    """
    shapes = [arrays[key].shape for key in (action, *observations) if key in arrays]
    if action not in arrays or len(shapes[0]) != _STACKED_AXES:
        return None
    stack = Stack(*shapes[0][:2])
    alike = all(shape[:2] == stack for shape in shapes)
    return stack if alike and stack.steps >= FEWEST_STACKED_STEPS else None


def stacked(arrays: Mapping[str, ArrayEntry], stack: Stack) -> dict[str, ArrayEntry]:
    """Return arrays as `StackedArrays` shows them; initial states, one per episode, stay."""
    rows = stack.episodes * stack.steps
    return {
        key: ArrayEntry((rows, *item.shape[2:]), item.dtype)
        if item.shape[:2] == stack and leaf(key) != INITIAL_STATE
        else item
        for key, item in arrays.items()
    }


class StackedArrays:
    """A file whose arrays (episode, time, ...) are shown as (time, ...); an `ArrayFile`.

    Their rows are counted through all episodes. Other arrays stay as they are.

    Args:
        file: The file.
        stack: The first two axes of the arrays that are shown otherwise.
    """

    def __init__(self, file: ArrayFile, stack: Stack) -> None:
        self.path = file.path
        self.arrays = stacked(file.arrays, stack)
        self._file, self._stack = file, stack

    @property
    def findings(self) -> Sequence[Finding]:
        """What `open` found."""
        return self._file.findings

    def open(self, steps: Sequence[str], others: Sequence[str] = ()) -> None:
        """Open arrays, as the file does.

        Raises:
            DataError: One is missing or cannot be read safely.
        """
        self._file.open(steps, others)

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return the rows `start:stop` as they are stored.

        Raises:
            DataError: The bytes cannot be read.
        """
        if self.arrays[key] == self._file.arrays[key]:
            return self._file.rows(key, start, stop)
        stop = self.arrays[key].shape[0] if stop is None else stop
        steps = self._stack.steps
        first = start // steps
        episodes = self._file.rows(key, first, -(-stop // steps))
        values = episodes.reshape(len(episodes) * steps, *episodes.shape[2:])
        return values[start - first * steps : stop - first * steps]

    def attributes(self, group: str) -> Mapping[str, Any]:
        """Return the attributes of a group."""
        return self._file.attributes(group)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
