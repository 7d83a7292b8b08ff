"""Opening and reading HDF5 files of unknown origin safely.

An HDF5 file can refer to other files (external links, virtual datasets, raw external storage)
and can declare arrays far larger than itself. `open_hdf5` walks the structure and rejects all of
that before anything is read.
"""

from __future__ import annotations

import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5a, h5d, h5g, h5l, h5o, h5t

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError, first_line
from lwdctl.core.plain_text import encodable
from lwdctl.core.records import FloatArray
from lwdctl.core.untrusted import parse_json
from lwdctl.data.checks import (
    NUMBER_KINDS,
    NonFiniteError,
    ReportsFindings,
    artifact_hint,
    check_declared_bytes,
    check_path,
    check_rows,
    closed_on_error,
    finite_rows,
)
from lwdctl.data.files.bounds import (
    MAX_CHUNK_BYTES,
    MOST_VALUE_BYTES,
    SUSPICIOUS_BYTES,
    check_growth,
    memory_limit,
)
from lwdctl.data.files.hdf5_heaps import check_heaps

# Cache per open array: flat files are read in random order, with many episodes in a chunk.
CACHE_BYTES = 2**24
CACHE_SLOTS = 10007

MOST_TYPE_LEVELS = 8
"""Types within types that an element may be declared with; recordings have two at most."""

_PLAIN = tuple(
    (getattr(h5t, f"{name}LE"), np.dtype(f"<{code}"))
    for name, code in (
        ("IEEE_F64", "f8"), ("IEEE_F32", "f4"), ("STD_I64", "i8"), ("STD_I32", "i4"),
        ("STD_U8", "u1"),
    )
)  # fmt: skip
"""Types whose bytes NumPy reads as they are stored, the most frequent first."""
_LARGEST_READ = 2**30
_UNCOMPRESSED = "write the file again without compression if it is right"
_COMPLETE: WeakSet[h5d.DatasetID] = WeakSet()
"""Open arrays all of whose chunks exist; HDF5 counts them one by one."""


class Structure(NamedTuple):
    """What a file holds.

    Attributes:
        arrays: Its arrays, by their paths from the root.
        others: Paths of its groups, and of arrays that have no shape.
        complete: Whether these are all paths: no link gives anything a second one.
    """

    arrays: dict[str, StoredArray]
    others: set[str]
    complete: bool


class StoredArray(NamedTuple):
    """What a file declares of one array.

    Attributes:
        shape: Its shape.
        dtype: Its element type, as h5py gives it.
        offset: Byte of the file at which its elements begin, one after the other, as NumPy reads
            them; None where only h5py can read them (chunks, compression, other types), and where
            they do not exist yet.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None

    @property
    def is_numeric(self) -> bool:
        """Whether its elements are numbers or booleans."""
        return self.dtype.kind in NUMBER_KINDS


def open_hdf5(path: Path, max_bytes: int) -> tuple[h5py.File, Structure]:
    """Open `path` for reading after checking its whole structure.

    Args:
        path: The file.
        max_bytes: Largest total uncompressed size that its datasets may declare.

    Raises:
        DataError: No such file, not HDF5, truncated, a link that leaves the file or dangles,
            a virtual dataset, raw external storage, or a declared size beyond `max_bytes`.

    Returns:
        The open file, and what it holds.
    """
    check_path(path)
    if not path.is_file():
        raise DataError(f"{path}: is not a file", artifact_hint(path))
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty")
    try:
        check_heaps(path)
        file = open_shared(path, rdcc_nbytes=CACHE_BYTES, rdcc_nslots=CACHE_SLOTS)
    except OSError as error:
        problem = f"cannot be opened ({error})"
        if "truncated" in str(error):
            problem = "is truncated; download it again"
        elif "signature not found" in str(error):
            problem = "is not an HDF5 file"
        raise DataError(f"{path}: {problem}") from None
    with closed_on_error(file):
        try:
            structure = _check_structure(file, path, max_bytes)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: is damaged ({error})") from None
    return file, structure


def open_shared(path: Path, **settings: Any) -> h5py.File:
    """Open a file for reading, also where it cannot be locked.

    A recorder may hold the lock, and network drives may have none. The lock is tried first,
    because HDF5 opens a file twice in one process only with the same choice.

    Raises:
        OSError: HDF5 cannot open it.
    """
    try:
        return h5py.File(path, "r", **settings)
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(path, "r", locking=False, **settings)


class Hdf5Reader(ReportsFindings, ABC):
    """Base of the readers of HDF5 files: open, check and scan the file, close it on errors.

    Args:
        path: The file.
        config: What the user requests.

    Raises:
        DataError: The structure is not the format's; the message names file and key.
    """

    def __init__(self, path: Path, config: IngestConfig) -> None:
        self.path = path
        self.findings = []
        self._file, self._structure = open_hdf5(path, config.max_bytes)
        self._stored = self._structure.arrays
        with closed_on_error(self._file):
            self._scan(config)

    def _holds(self, key: str) -> bool:
        """Return whether the file has something at this path from its root."""
        if key in self._stored or key in self._structure.others:
            return True
        return not self._structure.complete and key in self._file

    def _shape_of(self, key: str) -> tuple[int, ...]:
        """Return the shape of an array of numbers with one to three axes, by its path.

        Raises:
            DataError: As `array_at`.
        """
        shape = self._numbers_at(key)
        if 1 <= len(shape) <= 3:
            return shape
        return tuple(array_at(self._file, key, ranks=(1, 2, 3)).shape)  # says what is wrong

    def _numbers_at(self, key: str) -> tuple[int, ...]:
        """Return the shape of the array of numbers at a path from the root, () for none."""
        item: Any = self._stored.get(key)
        if item is None and not self._structure.complete:
            item = self._file.get(key)
        shape = getattr(item, "shape", None)
        return tuple(shape) if shape and item.dtype.kind in NUMBER_KINDS else ()

    def _read_rows(self, key: str, start: int = 0, stop: int | None = None) -> FloatArray:
        """Return the rows `start:stop` of the array at a path from the root as finite float32.

        Raises:
            DataError: Damaged bytes, NaN or infinity.
        """
        values = self._read_values(key, start, stop)
        return finite_rows(values, f"{self.path}: {key}", start, self.findings)

    def _read_values(self, key: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return the rows `start:stop` of the array at a path from the root as they are stored.

        Raises:
            DataError: The bytes cannot be read.
        """
        values = read_stored(self._file, self._stored.get(key), key, start, stop)
        return read_array(dataset_at(self._file, key), start, stop) if values is None else values

    @abstractmethod
    def _scan(self, config: IngestConfig) -> None:
        """Check the structure and set `spec` and `episodes`."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _check_structure(file: h5py.File, path: Path, max_bytes: int) -> Structure:
    total, complete = 0, True
    arrays: dict[str, StoredArray] = {}
    others: set[str] = set()
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # equal shapes are kept once
    user_block = file.userblock_size
    looks_at_attributes = path.stat().st_size > 2 * MOST_VALUE_BYTES  # they lie in the file
    if looks_at_attributes:
        _check_attributes(file.id, str(path))
    for key, dataset in _walk(file, path):
        complete = complete and dataset is not None
        if looks_at_attributes and dataset is not None:
            _check_attributes(dataset, f"{path}: {key}")
        if not isinstance(dataset, h5d.DatasetID):
            others.add(key)
            continue
        offset = dataset.get_offset()
        if offset is not None and offset < user_block:  # never written; HDF5 adds the block
            offset = None
        if offset is None:  # otherwise the elements lie in this file
            creation = dataset.get_create_plist()
            if creation.get_layout() == h5d.VIRTUAL:
                raise DataError(f"{path}: {key}: is a virtual dataset, which may read other files")
            if creation.get_external_count():
                raise DataError(f"{path}: {key}: keeps its data in another file")
        shape = dataset.shape
        if shape is None:
            others.add(key)
            continue
        element = dataset.get_type()
        if problem := element_problem(element):
            raise DataError(f"{path}: {key}: {problem}")
        plain = next((dtype for kind, dtype in _PLAIN if element.equal(kind)), None)
        dtype = plain or element.dtype
        arrays[key] = StoredArray(
            shapes.setdefault(shape, shape), dtype, None if plain is None else offset
        )
        total += math.prod(shape) * dtype.itemsize
        if total > max_bytes:
            check_declared_bytes(total, max_bytes, f"{path}: {key}: declares shape {shape}")
    check_growth(path.stat().st_size, total, f"{path}: its {len(arrays)} arrays", _UNCOMPRESSED)
    return Structure(arrays, others, complete)


def _walk(file: h5py.File, path: Path) -> Iterator[tuple[str, h5d.DatasetID | h5g.GroupID | None]]:
    """Yield every path once: its dataset or group, None where another path leads there too.

    h5py's objects of the low level: a file of many demonstrations holds hundreds of thousands of
    datasets, and Python objects for each of them take longer than reading those that are used.
    """
    stack: list[tuple[str, h5g.GroupID]] = [("", h5g.open(file.id, b"/"))]
    soft: list[tuple[str, h5g.GroupID, bytes]] = []
    visited: set[int] = set()
    while stack:
        prefix, group = stack.pop()
        links: list[tuple[bytes, int, Any]] = []
        below: list[tuple[str, h5g.GroupID]] = []
        group.links.iterate(
            lambda name, link, links=links: links.append((name, link.type, link.u)),
            info=True,
        )
        for name, kind, target in links:
            key = prefix + name.decode("utf-8", "surrogateescape")
            if kind == h5l.TYPE_EXTERNAL:
                outside = os.fsdecode(group.links.get_val(name)[0])
                raise DataError(f"{path}: {key}: is an external link to {outside}")
            if kind == h5l.TYPE_SOFT:
                soft.append((key, group, name))
                continue
            if target in visited:
                yield key, None
                continue
            visited.add(target)
            item = h5o.open(group, name)
            if isinstance(item, h5g.GroupID):
                below.append((f"{key}/", item))
            if isinstance(item, h5g.GroupID | h5d.DatasetID):
                yield key, item
        stack += reversed(below)
    # Only now: a soft link can lead through an external one, which opens the other file.
    for key, group, name in soft:
        if file.get(key) is None:
            inside = os.fsdecode(group.links.get_val(name))
            raise DataError(f"{path}: {key}: is a link to {inside}, which is missing")
        yield key, None  # its target lies in this file and was visited there


def _check_attributes(item: Any, where: str) -> None:
    """Check that the attributes of a group or array can be listed: HDF5 reads them for that.

    Raises:
        DataError: One takes too much memory, or is damaged.
    """
    if not h5a.get_num_attrs(item):
        return
    try:
        with memory_limit(4 * MOST_VALUE_BYTES):
            h5a.iterate(item, lambda _: None)
    except (RuntimeError, MemoryError) as error:
        raise DataError(f"{where}: its attributes cannot be read ({first_line(error)})") from None


def element_problem(element: h5t.TypeID, levels: int = MOST_TYPE_LEVELS) -> str:
    """Return why an element type takes too much memory, "" where it does not.

    Args:
        element: The type.
        levels: How deeply types may be nested: h5py and HDF5 copy each level with those in it.
    """
    if element.get_size() > MOST_VALUE_BYTES:
        size, most = element.get_size(), MOST_VALUE_BYTES
        return f"declares elements of {size:,} bytes, expected at most {most:,}"
    inner: list[h5t.TypeID] = []
    if isinstance(element, h5t.TypeVlenID | h5t.TypeArrayID):
        inner = [element.get_super()]
    elif isinstance(element, h5t.TypeCompoundID):
        inner = [element.get_member_type(index) for index in range(element.get_nmembers())]
    if inner and not levels:
        return f"declares elements of more than {MOST_TYPE_LEVELS} nested types"
    found = (element_problem(item, levels - 1) for item in inner)
    return next(filter(None, found), "")


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
    if rows is not None and dataset.shape[0] != rows:
        check_rows(dataset.shape[0], rows, location(group, key), reference)
    return dataset


def dataset_at(group: h5py.Group, key: str) -> h5py.Dataset:
    """Return the dataset `key` of `group`.

    Raises:
        DataError: It is missing or is a group.
    """
    try:
        item = h5o.open(group.id, key.encode())
    except KeyError:
        raise DataError(f"{location(group, key)}: is missing") from None
    if not isinstance(item, h5d.DatasetID):
        raise DataError(f"{location(group, key)}: is a group, not an array")
    return h5py.Dataset(item)


def read_array(dataset: h5py.Dataset, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
    """Return the rows `start:stop` as they are stored.

    Raises:
        DataError: The bytes cannot be read (damaged chunk, unknown filter).
    """
    _check_written(dataset, start, stop)
    try:
        with _bounded(dataset, start, stop):
            return np.asarray(dataset[start:stop])
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        problem = first_line(error) or "it needs more memory than it may take"
        raise DataError(f"{location(dataset)}, row {start}: cannot be read ({problem})") from None


@contextmanager
def _bounded(dataset: h5py.Dataset, start: int, stop: int | None) -> Iterator[None]:
    """Bound the memory that reading the rows `start:stop` takes.

    Raises:
        DataError: A chunk is too large, or the rows are compressed as no recording is.
    """
    texts = dataset.dtype.kind == "O"  # of any length
    if dataset.chunks is None and not texts:
        yield
        return
    where = f"{location(dataset)}: has shape {dataset.shape}"
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if chunk > MAX_CHUNK_BYTES:
        raise DataError(
            f"{where} in chunks of {chunk:,} bytes, expected at most {MAX_CHUNK_BYTES:,}"
        )
    rows = len(range(*slice(start, stop).indices(dataset.shape[0])))
    size = rows * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    if size > SUSPICIOUS_BYTES:
        check_growth(
            dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize, where,
            "write the array again without compression if it is right",
        )  # fmt: skip
    # A filter needs the chunk before and after it, and space that it doubles.
    filtered = max(3 * chunk, 4 * MOST_VALUE_BYTES)
    with memory_limit(size + filtered + 2 * MOST_VALUE_BYTES):
        yield


def read_stored(
    file: h5py.File, stored: StoredArray | None, key: str, start: int, stop: int | None
) -> npt.NDArray[Any] | None:
    """Return the rows `start:stop` of an array without h5py, None where only h5py can read them.

    h5py takes longer to open a small array than the system takes to read it.

    Args:
        file: The open file.
        stored: What it declares of the array, or None.
        key: Path of the array from the root, for messages.
        start: First row.
        stop: One past the last row.

    Raises:
        DataError: The bytes cannot be read.
    """
    if stored is None or stored.offset is None or not stored.shape:
        return None
    first, last, _ = slice(start, stop).indices(stored.shape[0])
    values = np.empty((max(last - first, 0), *stored.shape[1:]), stored.dtype)
    if values.nbytes > _LARGEST_READ:
        return None
    width = math.prod(stored.shape[1:]) * stored.dtype.itemsize
    problem = "the file ends"
    try:
        place = stored.offset + first * width
        if os.preadv(file.id.get_vfd_handle(), [values.data], place) == values.nbytes:
            return values
    except OSError as error:
        problem = str(error)
    raise DataError(f"{file.filename}: {key}, row {start}: cannot be read ({problem})")


def _check_written(dataset: h5py.Dataset, start: int, stop: int | None) -> None:
    """Check that rows were written; HDF5 reads those that never were as its fill value, zeros.

    A recorder that dies leaves arrays that are declared and have no bytes, or lack some chunks.

    Raises:
        NonFiniteError: Rows were never written; the message names the first one.
    """
    shape, chunks = dataset.shape, dataset.chunks
    first, last, _ = slice(start, stop).indices(shape[0]) if shape else (0, 0, 1)
    if not shape or 0 in shape or last <= first:
        return
    missing: int | None = None
    if chunks is None:
        missing = first if dataset.id.get_storage_size() == 0 else None
    elif dataset.id not in _COMPLETE:
        sides = [range(0, size, step) for size, step in zip(shape, chunks, strict=True)]
        if dataset.id.get_num_chunks() == math.prod(map(len, sides)):
            _COMPLETE.add(dataset.id)
        else:
            rows = sides[0][first // chunks[0] : (last - 1) // chunks[0] + 1]
            corners = itertools.product(rows, *sides[1:])
            found = (
                max(corner[0], first)
                for corner in corners
                if dataset.id.get_chunk_info_by_coord(corner).byte_offset is None
            )
            missing = next(found, None)
    if missing is not None:
        raise NonFiniteError(f"{location(dataset)}, row {missing}: was never written")


def read_rows(dataset: h5py.Dataset, start: int = 0, stop: int | None = None) -> FloatArray:
    """Return the rows `start:stop` as finite float32.

    Raises:
        DataError: Damaged bytes, NaN or infinity.
    """
    return finite_rows(read_array(dataset, start, stop), lambda: location(dataset), start)


def attribute_of(item: h5py.Group, *names: str) -> Any:
    """Return the first of some attributes that an item has, or None."""
    for name in names:
        if h5a.exists(item.id, name.encode()):  # h5py takes long to find that there is none
            return item.attrs[name]
    return None


def text_attribute(item: h5py.Group, *names: str) -> str:
    """Return the first of some attributes that an item has as text, "" for none."""
    value = attribute_of(item, *names)
    return "" if value is None else text_of(value)


def json_of(value: Any) -> tuple[Any, str]:
    """Return what a text holds as JSON, and "", or else None and why it cannot be read."""
    try:
        text = text_of(value).encode("utf-8", "surrogateescape")
        return parse_json(text, "", DataError, allow_nan=True), ""
    except DataError as error:
        problem = error.message.removeprefix(": ").removeprefix("not valid JSON: ")
        return None, f"is not JSON ({problem})"


def text_of(value: Any) -> str:
    """Return an HDF5 string (str, bytes or an array of a single one) as text."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else encodable(str(value))
