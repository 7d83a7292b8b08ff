"""Which large files were already hashed on this machine, so that it happens once.

A record is an empty file in the user's cache directory, named by path, size, time of
change and digest. Losing the records only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path


def is_verified(path: Path, sha256: str) -> bool:
    """Tell whether this very file was found to have this digest before."""
    return _record(path, sha256).exists()


def remember_verified(path: Path, sha256: str) -> None:
    """Note that the file has this digest."""
    record = _record(path, sha256)
    # A read-only or full home must not stop the work: the next check hashes again.
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()


def _record(path: Path, sha256: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    state = path.stat()
    key = "\n".join((str(path.resolve()), str(state.st_size), str(state.st_mtime_ns), sha256))
    return cache / "lwdctl" / "verified" / hashlib.sha256(key.encode()).hexdigest()
