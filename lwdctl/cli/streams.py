"""Standard streams that may be closed, full, unread, or unable to hold every character."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from lwdctl.core.errors import EXIT_USER, LwdctlError
from lwdctl.core.plain_text import visible

EXIT_BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended."""


class OutputError(LwdctlError):
    """Standard output cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"cannot write to stdout: {error.strerror}",
            "only what the command prints is lost, not what it made; see: lwdctl list",
        )
        self.reader_is_gone = error.errno == errno.EPIPE
        self.exit_code = EXIT_BROKEN_PIPE if self.reader_is_gone else EXIT_USER


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make the standard streams safe to write to.

    - A closed one is opened: otherwise the next file that is opened would become the stream. A
      closed stdout stays unwritable, so that a lost result is an error, as in other programs.
    - Characters that an encoding lacks are written as their escapes.
    - A failed write to stdout raises `OutputError`, which no library mistakes for its own error.
    - A failed write to stderr is dropped: progress that nobody reads ends no work, as under
      `nohup`.
    - Warnings of libraries take one line, without characters that act on a terminal.
    """
    _open_missing()
    before = sys.stdout, sys.stderr, warnings.formatwarning
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = cast("TextIO", _Stdout(sys.stdout))
    sys.stderr = cast("TextIO", _Stream(sys.stderr))
    warnings.formatwarning = _one_line
    try:
        yield
    finally:
        for stream in before[:2]:
            _flush_or_discard(stream)
        sys.stdout, sys.stderr, warnings.formatwarning = before


class _Stream:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self.failed(error)
            return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self.failed(error)

    def failed(self, error: OSError) -> None:
        """Handle the error of a write."""


class _Stdout(_Stream):
    """A text stream of results, of which none may be lost unnoticed."""

    def failed(self, error: OSError) -> None:
        """Raise `OutputError`."""
        raise OutputError(error) from error


def _open_missing() -> None:
    """Open file descriptors 0 to 2 and their streams where the process was started without."""
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest free number is taken, which is this one
            os.set_inheritable(os.open(os.devnull, mode), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _flush_or_discard(stream: TextIO) -> None:
    """Flush; what cannot be written is discarded, or Python would complain about it as it ends."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):  # a stream without a descriptor
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    del category, filename, lineno, line
    return f"warning: {visible(str(message))}\n"
