"""Heaps of texts in HDF5 files, looked through before HDF5 is.

HDF5 2.0 walks a heap by the sizes that stand in it, and never leaves a free space of size 0.
Nothing in Python can stop it then, so that such a file is recognized by its bytes.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from lwdctl.core.errors import DataError

LARGEST_FILE = 2**32
"""Larger files are not looked through: that takes as long as reading them."""
_HEAP = b"GCOL\1\0\0\0"
_HEAD = 16


def check_heaps(path: Path) -> None:
    """Check that HDF5 can walk every heap of a file.

    Raises:
        DataError: A heap has a free space of size 0.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        if not 0 < path.stat().st_size <= LARGEST_FILE:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(_HEAP)
            while start >= 0:
                if not _ends(content, start):
                    raise DataError(
                        f"{path}: is damaged: the heap of texts at byte {start:,} has no end",
                        "copy or download the file again",
                    )
                start = content.find(_HEAP, start + 1)


def _ends(content: mmap.mmap, start: int) -> bool:
    """Return whether a walk through the heap at a byte comes to its end."""
    place = start + _HEAD
    size = int.from_bytes(content[start + 8 : place], "little")
    stop = min(start + size, len(content))
    while stop - place >= _HEAD:
        number = int.from_bytes(content[place : place + 2], "little")
        length = int.from_bytes(content[place + 8 : place + 16], "little")
        step = _HEAD + (length + 7) // 8 * 8 if number else length
        if not step:
            return False
        place += step
    return True
