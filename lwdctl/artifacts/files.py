"""Files that survive a crash, and their SHA-256 digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event
from typing import Any

from lwdctl.core.errors import ArtifactError, cannot_write
from lwdctl.core.plain_text import plain_text

_BLOCK = 1 << 20
"""Bytes read at once: few, long calls leave the interpreter to other threads."""


def user_path(path: str | Path) -> Path:
    """Return a path with the home directory for `~`; a name that only begins with it stays."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's fails for `~notes.hdf5`


def sha256_of(path: Path, stop: Event | None = None) -> str:
    """Return the SHA-256 of a file as hexadecimal text, read in blocks.

    Args:
        path: The file.
        stop: Ends the work once it is set.

    Raises:
        CancelledError: `stop` was set.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            _check_going(stop)
            digest.update(block[:count])
    return digest.hexdigest()


def fingerprint(path: Path, stop: Event | None = None) -> dict[str, Any]:
    """Return the absolute path, size in bytes and SHA-256 of a file or directory.

    The digest of a directory covers the names and digests of its files.

    Args:
        path: The file or directory.
        stop: Ends the work once it is set.

    Raises:
        CancelledError: `stop` was set.
        OSError: There is no such file or directory, or it is something else, as a pipe.
    """
    where = str(path.resolve())
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)
        return {"path": where, "bytes": path.stat().st_size, "sha256": sha256_of(path, stop)}
    files = []
    for item in path.rglob("*"):
        _check_going(stop)
        if item.is_file():
            files.append(item)
    files.sort()
    lines = (f"{item.relative_to(path).as_posix()}\0{sha256_of(item, stop)}\n" for item in files)
    return {
        "path": where,
        "bytes": sum(item.stat().st_size for item in files),
        "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
    }


@contextmanager
def fingerprints_beside(paths: Sequence[Path]) -> Iterator[Future[list[dict[str, Any]]]]:
    """Compute the fingerprints of files or directories while the block works.

    hashlib leaves Python free to do so. An error in the block ends the work.
    """
    stop = Event()
    with ThreadPoolExecutor(1) as beside:
        try:
            yield beside.submit(lambda: [fingerprint(path, stop) for path in paths])
        except BaseException:
            stop.set()
            raise


def _check_going(stop: Event | None) -> None:
    if stop is not None and stop.is_set():
        raise CancelledError


def matching(folder: Path, *patterns: str) -> list[Path]:
    """Return the paths below a folder that match one pattern per level, sorted.

    Unlike `Path.glob`, it passes over directories that another process removes meanwhile.

    Args:
        folder: Where to begin; it need not exist.
        *patterns: One name with wildcards per level (`"*", "lift", "v*"`).

    Raises:
        ArtifactError: The system refuses to list a directory, or no directory can have the path.
    """
    found = [folder]
    for pattern in patterns:
        below: list[Path] = []
        for path in found:
            try:
                below += [item for item in path.iterdir() if fnmatchcase(item.name, pattern)]
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                where = plain_text(str(path), 300)
                raise ArtifactError(f"cannot read {where}: {error.strerror}") from error
        found = below
    return sorted(found)


def sync(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Make a directory that appears as a whole or not at all.

    A directory that exists, which may be the current one, stays the same one: the files are moved
    into it when all are written.

    Args:
        path: The directory; it may exist if it is empty.
        replace: Whether it may hold files, of which those of the same names are replaced when all
            are written.

    Yields:
        Where to write what will be in it, an absolute path.

    Raises:
        ArtifactError: The system refuses to write, or files that another process has written
            meanwhile would be replaced; the error names the path.
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path if path.is_dir() else path.parent
        fresh = Path(tempfile.mkdtemp(prefix=_unfinished(path), dir=beside))
        try:
            yield fresh
            fresh.chmod(0o755)  # only the owner can read a temporary directory
            _publish(fresh, path, replace=replace)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        told = cannot_write(error, path.parent, "run the same command again")
        if told is None:
            raise
        raise told from error


def _unfinished(path: Path) -> str:
    """Return how the names of directories begin in which the content of another is written."""
    return f".{path.name}.partial-"


def _publish(fresh: Path, path: Path, *, replace: bool) -> None:
    try:
        if fresh.parent != path and not (replace and path.is_dir()):
            fresh.replace(path)
        elif replace or all(item.name.startswith(_unfinished(path)) for item in path.iterdir()):
            for item in sorted(fresh.iterdir()):
                item.replace(path / item.name)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        raise ArtifactError(
            f"another process has written into {path} meanwhile", "name another directory"
        ) from error


def write_durably(path: Path, content: bytes) -> None:
    """Replace the file at `path` as a whole and force it to the disk.

    Raises:
        OSError: It cannot be written; the error names `path`, and nothing is left behind.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def sealed(content: bytes) -> bytes:
    """Return content behind its SHA-256, so that `unsealed` notices damage."""
    return hashlib.sha256(content).hexdigest().encode() + b" " + content


def unsealed(stored: bytes) -> bytes | None:
    """Return what `sealed` took, or None where a part of it was changed or is missing."""
    digest, _, content = stored.partition(b" ")
    return content if digest == hashlib.sha256(content).hexdigest().encode() else None


def is_known_digest(path: Path, sha256: str) -> bool:
    """Tell whether this machine has hashed this very file before and found this digest.

    The answer comes from an empty record file in the user's cache directory, named by path, size,
    time of change and digest. Losing the records only costs time.
    """
    return _digest_record(path, sha256).exists()


def remember_digest(path: Path, sha256: str) -> None:
    """Record that the file has this digest."""
    record = _digest_record(path, sha256)
    # A read-only or full home must not stop the work: the next check hashes again.
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()


def _digest_record(path: Path, sha256: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    state = path.stat()
    key = "\n".join((str(path.resolve()), str(state.st_size), str(state.st_mtime_ns), sha256))
    return cache / "lwdctl" / "verified" / hashlib.sha256(key.encode()).hexdigest()
