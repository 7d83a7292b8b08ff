"""Where a Minari dataset keeps its episodes: one HDF5 file, or a folder of arrow or parquet files.

Both are read in the same way: an episode holds arrays by path (`observations/pose`), and what it
holds is known before anything of it is read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError, MissingExtraError, first_line, install_extra
from lwdctl.core.untrusted import read_json
from lwdctl.data.checks import check_declared_bytes, check_path, numeric_order
from lwdctl.data.files.bounds import check_growth
from lwdctl.data.files.contents import MAX_DEPTH, MAX_ENTRIES, ArrayEntry
from lwdctl.data.files.hdf5 import StoredArray, open_hdf5, read_array, read_stored, text_of

FILE_NAME = "main_data.hdf5"
ARROW_FORMATS = ("arrow", "parquet")
_PREFIX = "episode_"
_OBSERVED = ("observations", "infos", "episode_id")
"""Columns of arrow and parquet files that have a row per observation, not per step."""


class EpisodeStorage(Protocol):
    """Access to the episodes of a Minari dataset.

    Attributes:
        path: The file or folder, as error messages name it.
        names: Episodes in numeric order (`"episode_2"` before `"episode_10"`).
        metadata: What the dataset says of itself; {} where it says nothing.
    """

    path: Path
    names: list[str]
    metadata: Mapping[str, Any]

    def arrays(self, name: str) -> Mapping[str, ArrayEntry]:
        """Return an episode's arrays by their path, also those that hold no numbers."""

    def shapes(self, name: str) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of an episode's arrays of numbers by their path."""

    def read(
        self, name: str, key: str, start: int = 0, stop: int | None = None
    ) -> npt.NDArray[Any]:
        """Return the rows `start:stop` of an array as they are stored.

        Raises:
            DataError: They cannot be read.
        """

    def attributes(self, name: str) -> Mapping[str, Any]:
        """Return what an episode says of itself (`total_steps`, `seed`)."""

    def where(self, name: str, key: str = "") -> str:
        """Return file and key, as error messages name them."""

    def close(self) -> None:
        """Close what is open."""


def open_storage(path: Path, max_bytes: int) -> EpisodeStorage:
    """Open a dataset's directory, its `data` directory, or its HDF5 file.

    Raises:
        DataError: There is no dataset, it is damaged, or it declares more than `max_bytes`.
        MissingExtraError: It is made of arrow or parquet files, and pyarrow is not installed.
    """
    check_path(path)
    folder = path.parent
    if path.is_dir():
        folder = path if (path / "metadata.json").is_file() else path / "data"
    metadata: dict[str, Any] = {}
    if path.is_dir() or path.name == FILE_NAME:
        metadata = _read_json(folder / "metadata.json")
    stored = str(metadata.get("data_format", "hdf5"))
    if stored in ARROW_FORMATS:
        return ArrowStorage(folder, stored, metadata, max_bytes)
    if stored != "hdf5":
        raise DataError(
            f"{folder / 'metadata.json'}: data_format: is '{stored}', expected hdf5, arrow or"
            " parquet"
        )
    found = path if path.is_file() else folder / FILE_NAME
    if not found.is_file():
        raise DataError(f"{found}: no such file; a Minari dataset has data/{FILE_NAME}")
    return Hdf5Storage(found, metadata, max_bytes)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, {} where there is no file."""
    value = read_json(path, DataError, allow_nan=True) if path.is_file() else {}
    if not isinstance(value, dict):
        raise DataError(f"{path}: is not a JSON object")
    return value


class Hdf5Storage:
    """The groups `episode_N` of an HDF5 file; an `EpisodeStorage`."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], max_bytes: int) -> None:
        self.path = path
        self._file, structure = open_hdf5(path, max_bytes)
        # Before 0.5 Minari kept the metadata in the file itself.
        self.metadata = metadata or {
            name: text_of(self._file.attrs[name])
            for name in ("dataset_id", "env_spec", "action_space", "observation_space")
            if name in self._file.attrs
        }
        self.names = sorted(
            (name for name in self._file if name.startswith(_PREFIX)), key=numeric_order
        )
        self._stored: dict[str, dict[str, StoredArray]] = defaultdict(dict)
        for key, array in structure.arrays.items() if structure.complete else ():
            name, _, rest = key.partition("/")
            self._stored[name][rest] = array
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}

    def arrays(self, name: str) -> Mapping[str, ArrayEntry]:
        """Return an episode's arrays by their path, also those that hold no numbers."""
        found = {
            key: ArrayEntry(item.shape, str(item.dtype)) for key, item in self._arrays(name).items()
        }
        return dict(sorted(found.items()))

    def _arrays(self, name: str) -> Mapping[str, StoredArray]:
        if name in self._stored:
            return self._stored[name]
        # Links give some of its arrays several paths.
        found: dict[str, StoredArray] = {}
        stack: list[tuple[str, Any]] = [("", self._group(name))]
        while stack and len(found) < MAX_ENTRIES:
            prefix, group = stack.pop()
            for child, item in group.items():
                if isinstance(item, h5py.Group):
                    if prefix.count("/") < MAX_DEPTH:  # groups may contain each other
                        stack.append((f"{prefix}{child}/", item))
                elif isinstance(item, h5py.Dataset) and item.shape is not None:
                    found[prefix + child] = StoredArray(tuple(item.shape), item.dtype, None)
        self._stored[name] = found
        return found

    def shapes(self, name: str) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of an episode's arrays of numbers by their path."""
        if name not in self._shapes:
            arrays = self._arrays(name)
            self._shapes[name] = {k: item.shape for k, item in arrays.items() if item.is_numeric}
        return self._shapes[name]

    def _group(self, name: str) -> h5py.Group:
        group = self._file[name]
        if not isinstance(group, h5py.Group):
            raise DataError(f"{self.path}: {name}: is not a group")
        return group

    def read(
        self, name: str, key: str, start: int = 0, stop: int | None = None
    ) -> npt.NDArray[Any]:
        """Return the rows `start:stop` of an array as they are stored."""
        path = f"{name}/{key}"
        values = read_stored(self._file, self._arrays(name).get(key), path, start, stop)
        if values is not None:
            return values
        array = self._file[path]
        return np.asarray(array[()])[None] if array.shape == () else read_array(array, start, stop)

    def attributes(self, name: str) -> Mapping[str, Any]:
        """Return what an episode says of itself."""
        return dict(self._group(name).attrs)

    def where(self, name: str, key: str = "") -> str:
        """Return file and key, as error messages name them."""
        return f"{self.path}: {name}/{key}".rstrip("/")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ArrowStorage:
    """A folder per episode with arrow or parquet files; an `EpisodeStorage`.

    Rows of an episode are its observations; what belongs to steps has a row of padding at the end,
    which is not shown here.
    """

    def __init__(
        self, folder: Path, data_format: str, metadata: Mapping[str, Any], max_bytes: int
    ) -> None:
        self.path, self.metadata, self._format = folder, metadata, data_format
        self._module = _pyarrow(folder)
        numbers = [item.name for item in folder.iterdir() if item.name.isdecimal()]
        self.names = [f"{_PREFIX}{number}" for number in sorted(numbers, key=int)]
        self._datasets: dict[str, Any] = {}
        self._entries: dict[str, dict[str, ArrayEntry]] = {}
        self._attributes: dict[str, dict[str, Any]] = {}
        total = stored = 0
        for name in self.names:
            self._look_into(name)
            total += sum(_size(item) for item in self._entries[name].values())
            check_declared_bytes(total, max_bytes, f"{self.where(name)}: declares its arrays")
            stored += sum(Path(file).stat().st_size for file in self._datasets[name].files)
            hint = "write the dataset again without compression if it is right"
            check_growth(stored, total, f"{self.where(name)}: its arrays", hint)

    def _look_into(self, name: str) -> None:
        folder = self._folder(name)
        files = sorted(
            str(item) for item in folder.iterdir()
            if item.is_file() and item.suffix == f".{self._format}"
            and not item.name.startswith((".", "_"))
        )  # fmt: skip
        if not files:
            raise DataError(f"{folder}: holds no .{self._format} file")
        self._attributes[name] = _read_json(folder / "metadata.json")
        with _damaged(folder):
            dataset = self._module.dataset.dataset(files, format=self._format)
            rows = int(dataset.count_rows())
            columns = [(field.name, field.type) for field in dataset.schema]
        self._datasets[name] = dataset
        steps = self._attributes[name].get("total_steps")
        if not (isinstance(steps, int) and steps in (rows - 1, rows)):
            steps = max(rows - 1, 0)
        entries: dict[str, ArrayEntry] = {}
        with _damaged(folder):
            for key, kind in columns:
                _list_arrays(key, kind, rows if key in _OBSERVED else steps, entries)
        entries.pop("episode_id", None)
        self._entries[name] = entries

    def _folder(self, name: str) -> Path:
        return self.path / name.removeprefix(_PREFIX)

    def arrays(self, name: str) -> Mapping[str, ArrayEntry]:
        """Return an episode's arrays by their path, also those that hold no numbers."""
        return self._entries[name]

    def shapes(self, name: str) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of an episode's arrays of numbers by their path."""
        return {key: item.shape for key, item in self._entries[name].items() if item.is_numeric}

    def read(
        self, name: str, key: str, start: int = 0, stop: int | None = None
    ) -> npt.NDArray[Any]:
        """Return the rows `start:stop` of an array as they are stored."""
        outer, *inner = key.split("/")
        entry = self._entries[name][key]
        with _damaged(self._folder(name)):
            # The whole column, so that nothing is computed before it is checked: Arrow ends the
            # process where offsets lead out of their buffers.
            table = self._datasets[name].to_table(columns=[outer])
            table.validate(full=True)
            column = table.column(0).combine_chunks()
            if inner:
                column = self._module.compute.struct_field(column, inner)
            column = column[: entry.shape[0]]
            if column.null_count:
                raise DataError(f"{self.where(name, key)}: has {column.null_count} empty rows")
            if not entry.is_numeric:
                return np.asarray(column.to_pylist()[start:stop], dtype=object)
            while self._module.types.is_fixed_size_list(column.type):
                column = column.flatten()
            values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
            return values.reshape(entry.shape)[start:stop]

    def attributes(self, name: str) -> Mapping[str, Any]:
        """Return what an episode says of itself."""
        return self._attributes[name]

    def where(self, name: str, key: str = "") -> str:
        """Return folder and key, as error messages name them."""
        return f"{self._folder(name)}: {key}".rstrip(": ")

    def close(self) -> None:
        """Forget the files, which are open only while they are read."""
        self._datasets.clear()


def _list_arrays(key: str, kind: Any, rows: int, entries: dict[str, ArrayEntry]) -> None:
    """Enter the arrays of a column, or of the fields of a struct."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        for field in kind:
            _list_arrays(f"{key}/{field.name}", field.type, rows, entries)
        return
    shape = [rows]
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    dtype = str(np.dtype(kind.to_pandas_dtype())) if is_number else str(kind)
    entries[key] = ArrayEntry(tuple(shape), dtype)


def _size(entry: ArrayEntry) -> int:
    return math.prod(entry.shape) * (np.dtype(entry.dtype).itemsize if entry.is_numeric else 1)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.dataset
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading arrow and parquet files needs the package 'pyarrow', which is not"
            " installed",
            install_extra("parquet"),
        ) from error
    return pa


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Raise pyarrow's errors as a `DataError` that names the folder.

    NotImplementedError is for types and encodings that it cannot read, as damaged bytes declare.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DataError(f"{path}: is damaged ({first_line(error)})") from None
