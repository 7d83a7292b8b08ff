"""Writing HDF5 where the disk may be full."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal


class GuardedFile(io.RawIOBase):
    """A file whose failed writes HDF5 does not see.

    HDF5 writes what it holds once more when it closes a file; where that fails as well, it leaves
    memory behind that ends the process with a segmentation fault. The first error is kept for
    `check`, and what follows it is discarded.

    Args:
        path: The file.
        mode: Whether to create it, or to open one that exists.
    """

    def __init__(self, path: Path, mode: Literal["x+b", "r+b"] = "x+b") -> None:
        self._file = path.open(mode, buffering=0)
        self._path = path
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the error of the first write that failed."""
        if self._error is not None:
            error = self._error
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return the number of bytes read."""
        if self._error is not None:  # what was discarded cannot be read back
            view = memoryview(buffer).cast("B")
            view[:] = bytes(len(view))
            return len(view)
        return self._file.readinto(buffer) or 0

    def write(self, buffer: Any) -> int:
        """Write a buffer as a whole; return the number of its bytes."""
        view = memoryview(buffer).cast("B")
        try:
            done = 0
            while self._error is None and done < len(view):
                done += self._file.write(view[done:]) or 0
        except OSError as error:
            self._error = error
        return len(view)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a byte."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the present byte."""
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """Change the size of the file."""
        try:
            return self._file.truncate(size) if self._error is None else 0
        except OSError as error:
            self._error = error
            return 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
