"""Heaps of texts in HDF5 files, looked through before HDF5 is.

HDF5 2.0 walks a heap by the sizes that stand in it, and never leaves a free space of size 0.
Nothing in Python can stop it then, so that such a file is recognized by its bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from io import FileIO
from pathlib import Path

import numpy as np

from lwdctl.core.errors import DataError

LARGEST_FILE = 2**32
"""Larger files are not looked through: that takes as long as reading them."""
SMALLEST_HEAP = 4096
_FEW_HEAPS = 1024
_HEAP = b"GCOL\1\0\0\0"
_HEAD = 16
_WORDS = tuple(np.frombuffer(_HEAP[skipped : skipped + 4], np.uint32)[0] for skipped in range(4))
_WORDS_AT_ONCE = 1 << 16


def check_heaps(path: Path) -> None:
    """Check that HDF5 can walk every heap of a file; one that was checked is not read again.

    Raises:
        DataError: A heap has a free space of size 0, or there are more than the file has room for.
        OSError: The file cannot be read.
    """
    found = path.stat()
    if 0 < found.st_size <= LARGEST_FILE:
        _check(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@lru_cache(maxsize=1024)
def _check(path: Path, size: int, *state: int) -> None:
    """Check the file at `path`, as it is now."""
    del state
    with path.open("rb", buffering=0) as file:
        for count, start in enumerate(_places(file)):
            if count > size // SMALLEST_HEAP + _FEW_HEAPS or not _ends(file, start, size):
                raise DataError(
                    f"{path}: is damaged: the heap of texts at byte {start:,} has no end",
                    "copy or download the file again",
                )


def _places(file: FileIO) -> Iterator[int]:
    """Yield the bytes at which heaps begin.

    Wherever one begins, its first eight bytes hold a whole word of four. To compare words takes a
    third of the time that a search for the bytes takes.
    """
    buffer = np.empty(_WORDS_AT_ONCE, np.uint32)
    first = 0
    while length := file.readinto(buffer.data):
        words = buffer[: length // 4]
        for skipped, word in enumerate(_WORDS):
            equal = words == word
            for index in np.flatnonzero(equal).tolist() if np.count_nonzero(equal) else ():
                start = first + 4 * index - skipped
                if start >= 0 and os.pread(file.fileno(), len(_HEAP), start) == _HEAP:
                    yield start
        first += len(words) * 4
        file.seek(first)
        if length < 4:
            return


def _ends(file: FileIO, start: int, size: int) -> bool:
    """Return whether a walk through the heap at a byte of a file comes to its end."""
    place = start + _HEAD
    head = os.pread(file.fileno(), _HEAD, start)
    stop = min(start + int.from_bytes(head[8:], "little"), size)
    while stop - place >= _HEAD:
        head = os.pread(file.fileno(), _HEAD, place)
        number, length = (int.from_bytes(part, "little") for part in (head[:2], head[8:]))
        step = _HEAD + (length + 7) // 8 * 8 if number else length
        if not step:
            return False
        place += step
    return True
