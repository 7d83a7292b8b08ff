"""How much memory data of unknown origin may take: compressed bytes grow, and headers lie."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lwdctl.core.errors import DataError

MOST_VALUE_BYTES = 2**26
"""Bytes of a single value: a text, or an array that stands for one element or attribute."""
MAX_CHUNK_BYTES = 2**28
"""Most bytes that a chunk may decode to; no chunk of a recording is larger."""
SMALLEST_COMPRESSION = 1 / 250
"""No array of a recording shrinks to less than this when it is compressed; bombs do."""
SUSPICIOUS_BYTES = 2**28
"""Bytes from which on compression is compared with `SMALLEST_COMPRESSION`."""
_STATM = Path("/proc/self/statm")


def check_growth(stored: int, size: int, where: str, hint: str) -> None:
    """Check that stored bytes do not grow to more memory than a recording would need.

    Args:
        stored: Bytes in the file.
        size: Bytes that they are decoded to.
        where: File, key and shape, for the message.
        hint: How to write the array again.

    Raises:
        DataError: It is a bomb.
    """
    if size > SUSPICIOUS_BYTES and stored < size * SMALLEST_COMPRESSION:
        raise DataError(
            f"{where}: {stored:,} bytes that grow to {size:,}: no recording compresses so well",
            hint,
        )


def check_no_holes(paths: Iterable[Path]) -> None:
    """Check that files have their bytes on a disk: a hole of any length would be read for days.

    Args:
        paths: Files and directories.

    Raises:
        DataError: They are far longer than what is stored of them.
    """
    for path in paths:
        files = [item for item in path.rglob("*") if item.is_file()] if path.is_dir() else [path]
        found = [file.stat() for file in files if file.is_file()]
        # A block has 512 bytes; some file systems do not count them.
        size, stored = sum(item.st_size for item in found), sum(item.st_blocks for item in found)
        if stored:
            check_growth(512 * stored, size, f"{path}: has holes", "copy it without them")


@contextmanager
def memory_limit(most: int) -> Iterator[None]:
    """Let the process take at most so many more bytes; a library that needs more fails.

    HDF5 decompresses a chunk to whatever it grows to. Memory that the process has freed and kept
    counts as taken, so it is used beyond the limit. Systems that do not count addresses, as macOS,
    have no limit.

    Args:
        most: Bytes of address space.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        used = int(_STATM.read_bytes().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = used + most
        if before[0] == resource.RLIM_INFINITY or limit < before[0]:
            resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    except (OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
