"""Reading npz files of unknown origin safely: nothing is unpickled, sizes are checked first.

An array that is stored as it is, is mapped into memory; a compressed one is read once and kept.
Only the arrays that are asked for are read.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError, first_line
from lwdctl.core.records import Finding
from lwdctl.data.checks import check_declared_bytes, check_path
from lwdctl.data.files.bounds import check_growth
from lwdctl.data.files.contents import npz_entry, read_npy_header
from lwdctl.data.files.zip_errors import ZIP_ERRORS

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_BLOCK = 2**20


class NpzFile:
    """An npz file, opened for reading.

    Args:
        path: The file.
        max_bytes: Largest total uncompressed size of the arrays that are opened.

    Attributes:
        path: The file.
        arrays: Every array as its header declares it, by its name.
        findings: Always empty; what stores of other kinds find about their arrays.

    Raises:
        DataError: No such file, or no intact npz file.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.findings: list[Finding] = []
        self._max_bytes = max_bytes
        self._declared = self._stored = 0
        self._values: dict[str, npt.NDArray[Any]] = {}
        check_path(path)
        if not path.is_file() or not zipfile.is_zipfile(path):
            raise DataError(f"{path}: is not an npz file")
        try:
            with zipfile.ZipFile(path) as archive:
                members = [item for item in archive.infolist() if item.filename.endswith(".npy")]
                self._members = {item.filename.removesuffix(".npy"): item for item in members}
                self.arrays = {
                    key: npz_entry(archive, item.filename) for key, item in self._members.items()
                }
        except (OSError, ValueError, *ZIP_ERRORS) as error:
            raise DataError(f"{path}: is damaged ({first_line(error)})") from None
        if len(self._members) < len(members):
            raise DataError(f"{path}: is damaged: two arrays have the same name")

    def is_compressed(self, key: str) -> bool:
        """Return whether an array is compressed, so that it is read and kept as a whole."""
        return self._members[key].compress_type != zipfile.ZIP_STORED

    def open(self, steps: Sequence[str], others: Sequence[str] = ()) -> None:
        """Open arrays after checking their sizes and checksums.

        Args:
            steps: Names of arrays.
            others: Names of more arrays.

        Raises:
            DataError: One is missing, holds Python objects, is larger than it may be, or is
                damaged.
        """
        for key in (*steps, *others):
            if key in self._values:
                continue
            if key not in self.arrays:
                raise DataError(f"{self.path}: {key}: is missing")
            if self.arrays[key].dtype == "object":
                raise DataError(f"{self.path}: {key}: holds Python objects, which are not read")
            try:
                self._values[key] = self._load(key)
            except DataError:
                raise
            except Exception as error:  # noqa: BLE001 - every compressor raises its own type
                problem = first_line(error)
                raise DataError(f"{self.path}: {key}: is damaged ({problem})") from None

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return the rows `start:stop` of an opened array as they are stored."""
        values = self._values[key]
        return np.array(values[start:stop] if values.ndim else values.reshape(1))

    def attributes(self, group: str) -> Mapping[str, Any]:
        """Return no attributes: npz files have none."""
        del group
        return {}

    def close(self) -> None:
        """Forget the arrays."""
        self._values.clear()

    def _load(self, key: str) -> npt.NDArray[Any]:
        item, entry = self._members[key], self.arrays[key]
        size = prod(entry.shape) * np.dtype(entry.dtype).itemsize
        self._declared += max(size, item.file_size)
        self._stored += item.compress_size
        where = f"{self.path}: {key}: has shape {entry.shape}"
        check_declared_bytes(self._declared, self._max_bytes, where)
        if size > item.file_size:
            raise ValueError(f"declares shape {entry.shape}, but has {item.file_size:,} bytes")
        hint = "write the array again with numpy.savez if it is right"
        for stored, whole in ((item.compress_size, size), (self._stored, self._declared)):
            check_growth(stored, whole, where, hint)
        with zipfile.ZipFile(self.path) as archive, archive.open(item) as member:
            if not self.is_compressed(key):
                while member.read(_BLOCK):  # raises where the checksum does not match
                    pass
                return self._mapped(item)
            values = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):
                raise ValueError("has bytes after the array")
        return np.asarray(values)

    def _mapped(self, item: zipfile.ZipInfo) -> npt.NDArray[Any]:
        """Map the array of a member that is not compressed."""
        with self.path.open("rb") as file:
            file.seek(item.header_offset)
            header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            file.seek(header[-2] + header[-1], 1)
            shape, fortran, dtype = read_npy_header(file)
            offset = file.tell()
        if not prod(shape):
            return np.zeros(shape, dtype)
        return np.memmap(self.path, dtype, "r", offset, shape, "F" if fortran else "C")
