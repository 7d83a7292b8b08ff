"""Who works on a run: a lock on a file, and what is known where a file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lwdctl.core.processes import process_exists

_IN_USE = ".in-use"
_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


@dataclass(frozen=True)
class Owner:
    """The process that works on a run: what tells of its end where a file system has no locks.

    Attributes:
        host: Its machine, or "" where that is not known.
        pid: Its number there.
        job: Its job of Slurm, which runs on one machine at a time, or "".
    """

    host: str = ""
    pid: int = 0
    job: str = ""

    @classmethod
    def this(cls) -> Owner:
        """Return this process."""
        return cls(socket.gethostname(), os.getpid(), os.environ.get("SLURM_JOB_ID", ""))

    @property
    def is_elsewhere(self) -> bool:
        """Whether it runs, or ran, on another machine."""
        return self.host not in ("", socket.gethostname())

    @property
    def is_gone(self) -> bool:
        """Whether it has surely ended: it ran here, or was this job before it was requeued."""
        if self.is_elsewhere:
            return bool(self.job) and self.job == os.environ.get("SLURM_JOB_ID", "")
        return bool(self.pid) and not process_exists(self.pid)


def lock_file(file: IO[Any], how: int) -> bool:
    """Lock a file; return False where its file system has no locks.

    Raises:
        BlockingIOError: Another process holds the lock, and `how` does not wait.
    """
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return False
    return True


@contextmanager
def claimed(path: Path, *, wait: bool = False, without_locks: bool = True) -> Iterator[bool]:
    """Claim the work that a file stands for, until the block ends or this process dies.

    Args:
        path: The file; it is made where it is missing, in a directory that exists.
        wait: Wait for another process that has claimed it.
        without_locks: What to say where the file system has no locks.

    Yields:
        Whether this process has it.
    """
    with _lock_file_at(path) as file:
        try:
            has_locks = lock_file(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield has_locks or without_locks


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make a directory where it is missing, and keep `unless_worked_in` from it in the block.

    Several processes may work in one directory at the same time.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = _lock_file_at(folder / _IN_USE)
        except FileNotFoundError:  # it was just removed
            continue
        with file:
            lock_file(file, fcntl.LOCK_SH)
            if (folder / _IN_USE).exists():
                yield
                return


def unless_worked_in(folder: Path) -> AbstractContextManager[bool]:
    """Claim a directory, which exists; yields whether it is sure that no process works in it."""
    return claimed(folder / _IN_USE, without_locks=False)


def _lock_file_at(path: Path) -> IO[bytes]:
    """Open a file to lock, not through a link, and without waiting for the end of a pipe."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), "r+b", buffering=0)  # noqa: PTH123 - of a descriptor
