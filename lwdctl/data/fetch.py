"""Files over HTTP that survive a broken connection: what came is kept and gone on from.

Pooch is not used: it loads into a temporary file that it deletes when the connection breaks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import h5py
import requests

from lwdctl.artifacts.durable import sha256_of, sync
from lwdctl.core.errors import DataError
from lwdctl.core.progress import Progress

BLOCK = 1 << 16
"""Bytes written at once; of the block in which the connection breaks, nothing is kept."""
TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes."""
PAUSES = (1.0, 3.0)
"""Seconds before each new attempt that follows a fruitless one; then the download gives up."""
UNIT = 1000
# An error page or a log-in page sent in place of a file without a published digest.
SIGNATURES = {".hdf5": b"\x89HDF\r\n\x1a\n", ".zip": b"PK\x03\x04"}


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes:
        url: Its address.
        sha256: The digest it must have, or "".
        size: Its bytes, or 0 when unknown.
    """

    url: str
    sha256: str = ""
    size: int = 0


class _BrokenOffError(Exception):
    """The connection failed in a way that another attempt may mend."""


class _Part:
    """What has come so far, and which version of the server's file it belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._version = path.with_name(f"{path.name}.part.version")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def version(self) -> str:
        return self._version.read_text(encoding="utf-8") if self._version.exists() else ""

    def begin(self, version: str) -> None:
        self._version.write_text(version, encoding="utf-8")
        self.path.write_bytes(b"")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)

    def publish(self, path: Path) -> None:
        sync(self.path)
        self.path.replace(path)
        self.remove()


def fetch(remote: Remote, path: Path, progress: Progress) -> str:
    """Load a file, going on from what an earlier attempt left, and check it.

    Args:
        remote: What to load.
        path: Where it goes; `<path>.part` holds what has come until it is whole and checked.
        progress: Where to report.

    Returns:
        The file's SHA-256.

    Raises:
        DataError: The server cannot be reached, refuses, breaks off again and again (what
            came is kept), or sends another file (which is removed).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(path)
    if not (remote.size and part.size == remote.size):
        _load(remote, path, part, progress)
    problem, digest = _problem(remote, path, part)
    if problem:
        part.remove()
        raise DataError(
            f"{remote.url}: is not the file that was published ({problem}); it was removed",
            by_hand(remote.url, path),
        )
    part.publish(path)
    return digest


def by_hand(url: str, path: Path) -> str:
    """Say how to do without this program's connection."""
    return f"or fetch {url} by other means, save it as {path}, and run the same command again"


def _load(remote: Remote, path: Path, part: _Part, progress: Progress) -> None:
    """Attempt until the file is whole, or several attempts in a row brought nothing new."""
    best, fruitless = part.size, 0
    while True:
        try:
            _attempt(remote, path, part, progress)
        except (_BrokenOffError, requests.RequestException) as error:
            fruitless = 0 if part.size > best else fruitless + 1
            best = max(best, part.size)
            if fruitless > len(PAUSES):
                raise _given_up(remote, path, part, error) from error
            if fruitless:
                time.sleep(PAUSES[fruitless - 1])
            progress.message(f"{reason(error)}; trying again at {part.size:,} bytes")
        else:
            return


def _attempt(remote: Remote, path: Path, part: _Part, progress: Progress) -> None:
    """Ask for what is missing and write it down.

    Raises:
        _BrokenOffError: Trying again may help.
        DataError: It will not.
    """
    start = part.size
    headers = {"Accept-Encoding": "identity"}
    if start and (remote.sha256 or part.version):
        headers["Range"] = f"bytes={start}-"
        if not remote.sha256:  # nothing else would notice the halves of two different files
            headers["If-Range"] = part.version
    with requests.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        _refuse(remote, path, answer)
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if _total(answer) == start:
                return
            part.remove()
            raise _BrokenOffError("what had come does not fit the file")
        if not _continues(answer, start):
            if start:
                progress.message("the server does not go on where it stopped; starting over")
            start = 0
            part.begin(_version(answer))
        total = _total(answer) or remote.size
        _write(answer, path, part, start, total, progress)
        if total and part.size < total:
            raise _BrokenOffError("the connection broke off")


def _refuse(remote: Remote, path: Path, answer: requests.Response) -> None:
    code = answer.status_code
    coding = answer.headers.get("Content-Encoding", "identity")
    if answer.ok and coding.lower() not in ("", "identity"):
        raise DataError(  # its lengths and ranges count other bytes than the file's
            f"{remote.url}: the server sends the file {coding}-encoded, though asked not to",
            by_hand(remote.url, path),
        )
    if code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or answer.ok:
        return
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR or code == HTTPStatus.TOO_MANY_REQUESTS:
        raise _BrokenOffError(f"{_host(remote)} answers {code} {answer.reason}")
    raise DataError(
        f"{remote.url}: the server answers {code} {answer.reason}",
        f"the file may have moved; {by_hand('it', path)}",
    )


def _write(
    answer: requests.Response, path: Path, part: _Part, start: int, total: int, progress: Progress
) -> None:
    size = total // UNIT or None
    with (
        part.path.open("ab") as file,
        progress.task(f"download {path.name}", size, "kB", start // UNIT) as task,
    ):
        told = start // UNIT
        for block in _blocks(answer):
            file.write(block)
            start += len(block)
            task.advance(start // UNIT - told)
            told = start // UNIT


def _blocks(answer: requests.Response) -> Iterator[bytes]:
    blocks: Iterator[bytes] = answer.iter_content(BLOCK)
    return blocks


def _continues(answer: requests.Response, start: int) -> bool:
    """Tell whether the answer begins at byte `start`, which is not 0."""
    said = answer.headers.get("Content-Range", "")
    partial = answer.status_code == HTTPStatus.PARTIAL_CONTENT
    return bool(start) and partial and said.startswith(f"bytes {start}-")


def _total(answer: requests.Response) -> int:
    """Return the whole file's bytes as the answer tells them, or 0."""
    said = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if not said and answer.status_code == HTTPStatus.OK:
        said = answer.headers.get("Content-Length", "")
    return int(said) if said.isdecimal() else 0


def _version(answer: requests.Response) -> str:
    """Return what marks this version of the file, as `If-Range` may quote it, or ""."""
    tag = answer.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return tag
    return answer.headers.get("Last-Modified", "")


def _problem(remote: Remote, path: Path, part: _Part) -> tuple[str, str]:
    """Return what is wrong with the file that came, or "", and its SHA-256."""
    digest = sha256_of(part.path)
    if remote.sha256:
        wrong = digest != remote.sha256
        return (f"SHA-256 {digest}, expected {remote.sha256}" if wrong else ""), digest
    signature = SIGNATURES.get(path.suffix, b"")
    with part.path.open("rb") as file:
        begins = file.read(len(signature))
    if begins != signature:
        return f"no {path.suffix[1:].upper()} file", digest
    cut = path.suffix == ".hdf5" and not _is_whole_hdf5(part.path)
    return ("the HDF5 file is cut off or damaged" if cut else ""), digest


def _is_whole_hdf5(path: Path) -> bool:
    """Tell whether a file is as long as it says: a server may send neither length nor digest."""
    try:
        with h5py.File(path):
            return True
    except OSError:
        return False


def _given_up(remote: Remote, path: Path, part: _Part, error: Exception) -> DataError:
    why = reason(error)
    if not part.size:
        return DataError(
            f"cannot load from {_host(remote)} ({why})",
            f"check the connection, {by_hand(remote.url, path)}",
        )
    return DataError(
        f"{path.name}: {why} at {part.size:,} bytes, again and again; they are kept",
        f"run the same command again to go on, {by_hand(remote.url, path)}",
    )


def reason(error: BaseException) -> str:
    """Say in a few words what lies beneath an error of an HTTP library."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return str(seen.strerror)
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.RequestException):  # their texts are long and speak of pools
        return "the connection broke off"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _host(remote: Remote) -> str:
    return urlsplit(remote.url).netloc
