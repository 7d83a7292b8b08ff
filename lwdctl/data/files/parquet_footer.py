"""The sizes that a parquet file declares, read from its footer.

pyarrow has these numbers too, but asking it for them ends the process where a footer is damaged
(version 26: an exception of C++ that nothing catches). The footer is a struct of Thrift's compact
protocol, described in Apache Parquet's `parquet.thrift`.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

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
