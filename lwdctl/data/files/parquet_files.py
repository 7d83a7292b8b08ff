"""Parquet files: reading those of unknown origin safely, and writing.

Needs pyarrow (the extra `parquet`): without it, importing this module is a `MissingExtraError`.
Declared sizes are known before anything is read, and rows come in batches. Only named columns are
decoded, so that a damaged or huge column beside them does no harm. Columns of text are read as
dictionaries: a text that a file repeats a million times is held once. Changed bytes are noticed
where they break the encoding or where the file has checksums of its pages, which few have.

Declared sizes are read from the footer here. pyarrow has these numbers too, but asking it for them
ends the process where a footer is damaged (version 26: an exception of C++ that nothing catches).
The footer is a struct of Thrift's compact protocol, described in Apache Parquet's `parquet.thrift`.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError, MissingExtraError, first_line, install_extra
from lwdctl.data.files.bounds import check_growth

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "parquet files, as of LeRobot datasets, need the package 'pyarrow', which is not installed",
        install_extra("parquet"),
    ) from error

BATCH_BYTES = 2**24
"""Bytes that a batch of rows takes, about; a single row can be larger."""
BATCH_ROWS = 2**16
READ_BYTES = 2**20
_LFS_POINTER = b"version https://git-lfs"


class ParquetTable:
    """One parquet file, opened for reading; nothing but its footer is read at first.

    Args:
        path: The file.

    Attributes:
        path: The file, as error messages name it.
        types: Type of every column whose name occurs once.
        group_rows: Number of rows of every row group.

    Raises:
        DataError: It is no parquet file, or its footer is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise DataError(
                    f"{path}: is a Git LFS pointer, not the file itself",
                    "git lfs pull, in the folder of the dataset",
                )
        with _damage(path):
            footer = pq.read_metadata(path)
            schema = footer.schema.to_arrow_schema()
            names: list[str] = schema.names
            self.types = {
                name: _storage(schema.field(name).type) for name in names if names.count(name) == 1
            }
            paths = [footer.schema.column(index).path for index in range(footer.num_columns)]
            self._leaves = {
                name: [at for at, path in enumerate(paths) if f"{path}.".startswith(f"{name}.")]
                for name in self.types
            }
            self.group_rows = tuple(
                footer.row_group(group).num_rows for group in range(footer.num_row_groups)
            )
            self._file = pq.ParquetFile(
                path,
                metadata=footer,
                page_checksum_verification=True,
                buffer_size=READ_BYTES,
                pre_buffer=False,
                read_dictionary=[
                    paths[leaf]
                    for name, kind in self.types.items()
                    if _is_text(_element(kind))
                    for leaf in self._leaves[name]
                ],
            )
            self._sizes = declared_sizes(path)
            if [len(sizes) for sizes in self._sizes] != [len(paths)] * len(self.group_rows):
                raise ValueError("a row group lacks columns")

    def declared_bytes(self, names: Sequence[str]) -> int:
        """Return how many bytes the columns take in memory, as the file declares it.

        Raises:
            DataError: They are far more than a file of this size holds.
        """
        size = sum(self._group_bytes(group, names) for group in range(len(self.group_rows)))
        hint = "write the file again without compression if it is right"
        check_growth(self.path.stat().st_size, size, f"{self.path}: {len(names)} columns", hint)
        return size

    def _group_bytes(self, group: int, names: Sequence[str]) -> int:
        return sum(self._sizes[group][leaf] for name in names for leaf in self._leaves[name])

    def batches(self, group: int, names: Sequence[str], rows: int = BATCH_ROWS) -> Iterator[Batch]:
        """Yield the columns of a row group, a batch of rows at a time.

        Args:
            group: The row group.
            names: Columns, each one of `types`.
            rows: Largest number of rows in a batch.

        Raises:
            DataError: Damaged bytes, or another number of rows than declared.
        """
        expected, first = self.group_rows[group], sum(self.group_rows[:group])
        if not expected:
            return
        with _damage(self.path):
            row_bytes = max(1, self._group_bytes(group, names) // expected)
            source = self._file.iter_batches(
                batch_size=max(1, min(rows, BATCH_ROWS, BATCH_BYTES // row_bytes)),
                row_groups=[group],
                columns=list(names),
            )
        found = 0
        while True:
            with _damage(self.path):
                batch = next(source, None)
                if batch is None:
                    break
                columns = {name: batch.column(name) for name in names}
            yield Batch(self.path, columns, first + found, batch.num_rows)
            found += batch.num_rows
        if found != expected:
            raise DataError(
                f"{self.path}: row group {group} holds {found} rows, its footer says {expected}"
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ParquetWriter:
    """Writes rows to one file after another; a file is opened by the first rows for it."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._stream: Any = None

    @property
    def bytes(self) -> int:
        """Bytes written to the open file, 0 where none is."""
        return self._stream.tell() if self._stream is not None else 0

    def write(self, path: Path, columns: Mapping[str, Any], index: str = "") -> None:
        """Append rows as one row group.

        Args:
            path: Where to create the file, if none is open.
            columns: Arrays (rows,) or (rows, components), or lists of Python values.
            index: The column that pandas takes as its index, or "".
        """
        table = pa.table({name: _arrow(values) for name, values in columns.items()})
        if index:
            table = table.replace_schema_metadata({"pandas": _pandas_metadata(table, index)})
        if self._writer is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("xb")
            self._writer = pq.ParquetWriter(
                self._stream, table.schema, compression="snappy", write_page_checksum=True
            )
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        """Complete the open file."""
        if self._writer is not None:
            self._writer.close()
            self._stream.close()
            self._writer = self._stream = None


def _arrow(values: Any) -> Any:
    if not isinstance(values, np.ndarray) or values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _pandas_metadata(table: Any, index: str) -> str:
    """Return what pandas writes into a file so that it finds its index again."""
    columns = [
        {
            "name": field.name,
            "field_name": field.name,
            "pandas_type": "unicode" if pa.types.is_string(field.type) else str(field.type),
            "numpy_type": "object" if pa.types.is_string(field.type) else str(field.type),
            "metadata": None,
        }
        for field in table.schema
    ]
    return json.dumps(
        {
            "index_columns": [index],
            "column_indexes": [],
            "columns": columns,
            "pandas_version": "2.0.0",
        }
    )


@dataclass(frozen=True)
class Batch:
    """Columns of neighboring rows of a file.

    Attributes:
        path: The file, as error messages name it.
        columns: Arrow arrays by name.
        row: Row of the first one in the file.
        count: Number of rows.
    """

    path: Path
    columns: Mapping[str, Any]
    row: int
    count: int

    def numbers(self, name: str, size: int = 0) -> npt.NDArray[Any]:
        """Return a column as (rows, components); what is null is NaN.

        Args:
            name: The column.
            size: Number of components that every row has; 0 for that of the first row.

        Raises:
            DataError: Rows have other numbers of components.
        """
        try:
            with _damage(self.path):
                values = _numbers(self.columns[name])
        except _RaggedError as error:
            raise self._other_size(name, error.row, error.found, error.expected) from None
        if values.shape[1] == 0 and size:  # nothing but nulls
            return np.full((self.count, size), np.nan)
        if size and values.shape[1] != size:
            raise self._other_size(name, 0, values.shape[1], size)
        return values

    def _other_size(self, name: str, row: int, found: int, expected: int) -> DataError:
        return DataError(
            f"{self.path}: {name}, row {self.row + row}: has {found} components, expected"
            f" {expected} as in earlier rows"
        )

    def scalars(self, name: str) -> npt.NDArray[Any]:
        """Return a column of one number per row (rows,).

        Raises:
            DataError: It holds something else.
        """
        if rank_of(self.columns[name].type) not in (0, 1):
            raise DataError(
                f"{self.path}: {name}: holds {self.columns[name].type}, expected one number per row"
            )
        return self.numbers(name, 1)[:, 0]

    def whole(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column of one whole number per row (rows,).

        Raises:
            DataError: It holds something else.
        """
        values = self.scalars(name)
        if values.dtype.kind != "i":
            with np.errstate(invalid="ignore"):
                bad = ~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values) > 2**53)
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                raise DataError(
                    f"{self.path}: {name}, row {self.row + row}: is {values[row]}, not a whole"
                    " number"
                )
        return values.astype(np.int64)

    def flags(self, name: str) -> npt.NDArray[np.bool_]:
        """Return which rows have a true flag (rows,); none where there is no such column.

        Raises:
            DataError: The column does not hold one number per row.
        """
        if name not in self.columns:
            return np.zeros(self.count, dtype=bool)
        return np.asarray(np.nan_to_num(self.scalars(name).astype(np.float64)) != 0)

    def values(self, name: str, rows: npt.NDArray[np.int64] | None = None) -> list[Any]:
        """Return the Python values of a column, or of some of its rows; equal texts are one.

        Raises:
            DataError: A text is damaged.
        """
        column = self.columns[name]
        with _damage(self.path):
            return _values(column if rows is None else column.take(pa.array(rows)))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise the errors of pyarrow as a `DataError` that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise DataError(
            f"{path}: cannot be read as parquet ({first_line(error)})",
            "the file is damaged, or no parquet file; copy or download it again",
        ) from None


def rank_of(kind: Any) -> int | None:
    """Return how many nested lists of numbers a column holds per row; None where no numbers.

    0 is one number per row, 1 a list of numbers.
    """
    rank = 0
    while _is_list(kind):
        kind, rank = _storage(kind.value_type), rank + 1
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return rank if is_number else None


def is_whole(kind: Any) -> bool:
    """Return whether a column holds whole numbers or booleans, also in lists."""
    kind = _element(kind)
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def is_text(kind: Any) -> bool:
    """Return whether a column holds a text per row, or a list of texts."""
    if _is_list(kind):
        kind = kind.value_type
    return _is_text(_storage(kind))


class _RaggedError(Exception):
    """The lists in a column have unequal lengths."""

    def __init__(self, row: int, found: int, expected: int) -> None:
        super().__init__(row, found, expected)
        self.row, self.found, self.expected = row, found, expected


def _numbers(array: Any) -> npt.NDArray[Any]:
    """Return a column of numbers or of (nested) lists of them as (rows, components).

    What is null becomes NaN; a column of nothing but nulls has no components.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if not _is_list(array.type):
        if pa.types.is_boolean(array.type):
            array = array.cast(pa.uint8())
        return np.asarray(array.to_numpy(zero_copy_only=False))[:, None]
    present = np.asarray(array.is_valid().to_numpy(zero_copy_only=False))
    lengths = pc.list_value_length(array).drop_null().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(present)
    if not len(rows):
        return np.full((len(present), 0), np.nan)
    different = np.flatnonzero(lengths != lengths[0])
    if len(different):
        at = int(different[0])
        raise _RaggedError(int(rows[at]), int(lengths[at]), int(lengths[0]))
    try:
        inner = _numbers(array.flatten())
    except _RaggedError as error:
        row = int(rows[error.row // max(1, int(lengths[0]))])
        raise _RaggedError(row, error.found, error.expected) from None
    values = inner.reshape(len(rows), int(lengths[0]) * inner.shape[1])
    if len(rows) == len(present):
        return values
    padded = np.full((len(present), values.shape[1]), np.nan)
    padded[rows] = values
    return padded


def _values(array: Any) -> list[Any]:
    """Return a column as Python values; equal texts are one object."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        texts = array.dictionary.to_pylist()
        return [None if at is None else texts[at] for at in array.indices.to_pylist()]
    if _is_list(array.type):
        inner = _values(array.flatten())
        lengths = pc.list_value_length(array).to_pylist()
        ends = np.cumsum([length or 0 for length in lengths]).tolist()
        return [
            None if length is None else inner[end - length : end]
            for length, end in zip(lengths, ends, strict=True)
        ]
    values: list[Any] = array.to_pylist()
    return values


def _storage(kind: Any) -> Any:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _element(kind: Any) -> Any:
    while _is_list(kind):
        kind = _storage(kind.value_type)
    return kind


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


MAGIC = b"PAR1"
MAX_DEPTH = 32
_ROW_GROUPS, _COLUMNS, _METADATA = 4, 1, 3
_TYPE, _NUM_VALUES, _UNCOMPRESSED = 1, 5, 6
_WIDTHS = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8, 6: 2, 7: 2}
"""Bytes of a value in memory by physical type; for texts, the least they can take."""


def declared_sizes(path: Path) -> list[list[int]]:
    """Return, per row group and column, how many bytes its values take in memory.

    Raises:
        ValueError: The file has no intact footer.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != MAGIC or length > size - 12:
            raise ValueError("it has no footer")
        file.seek(size - 8 - length)
        content = file.read(length)
    try:
        footer, _ = _read_struct(content, 0, 0)
        return [
            [_column_bytes(column[_METADATA]) for column in group[_COLUMNS]]
            for group in footer.get(_ROW_GROUPS, ())
        ]
    except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError("its footer is damaged") from error


def _column_bytes(column: dict[int, Any]) -> int:
    values = int(column[_NUM_VALUES])
    if values < 0 or column[_UNCOMPRESSED] < 0:
        raise ValueError("its footer declares a negative size")
    return max(int(column[_UNCOMPRESSED]), values * _WIDTHS[column[_TYPE]])


def _read_struct(content: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by their numbers, and where it ends."""
    if depth > MAX_DEPTH:
        raise ValueError("its footer is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while content[at]:
        step, kind = divmod(content[at], 16)
        at += 1
        if step:
            number += step
        else:
            number, at = _read_number(content, at)
        if kind in (1, 2):  # a flag is its own type
            fields[number] = kind == 1
        else:
            fields[number], at = _read_value(content, at, kind, depth)
    return fields, at + 1


def _read_value(content: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Return a value of one of the protocol's types, and where it ends."""
    if kind in (1, 2, 3):
        return content[at], at + 1
    if kind in (4, 5, 6):
        return _read_number(content, at)
    if kind == 7:
        return struct.unpack_from("<d", content, at)[0], at + 8
    if kind == 8:
        length, at = _read_varint(content, at)
        if length > len(content) - at:
            raise ValueError("its footer is cut off")
        return content[at : at + length], at + length
    if kind == 9:
        return _read_list(content, at, depth)
    if kind == 12:
        return _read_struct(content, at, depth + 1)
    raise ValueError("its footer holds an unknown type")


def _read_list(content: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    count, kind = divmod(content[at], 16)
    at += 1
    if count == 15:
        count, at = _read_varint(content, at)
    values = []
    for _ in range(count):
        value, at = _read_value(content, at, kind, depth + 1)
        values.append(value)
    return values, at


def _read_number(content: bytes, at: int) -> tuple[int, int]:
    """Return a signed whole number (zigzag), and where it ends."""
    value, at = _read_varint(content, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("its footer holds a number of more than 64 bits")
