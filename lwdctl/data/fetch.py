"""Downloading a file over HTTP so that a broken transfer can be resumed.

pooch and huggingface-hub do not serve: pooch deletes its temporary file when the connection
breaks, and the Hub's own transfer continues a file without checking that it is still the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import requests

from lwdctl.artifacts.files import sha256_of, sync
from lwdctl.core.errors import DataError
from lwdctl.core.progress import Progress

BLOCK = 1 << 16
"""Bytes written at once; the block in which the connection breaks is lost."""
TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes."""
PAUSES = (1.0, 3.0)
"""Seconds to wait after each attempt in a row that brought nothing; then the download fails."""
UNIT = 1000
# First bytes by file type: some servers send an error or log-in page with status 200.
SIGNATURES = {".hdf5": b"\x89HDF\r\n\x1a\n", ".zip": b"PK\x03\x04"}


def fetch(
    url: str,
    path: Path,
    progress: Progress,
    *,
    sha256: str = "",
    size: int = 0,
    most: int = 0,
    headers: Mapping[str, str] | None = None,
    hint: str = "",
) -> str:
    """Download a file, resume what an earlier attempt left, and check the result.

    Args:
        url: Address of the file.
        path: Where to store it; until it is complete and checked, `<path>.part` holds the bytes
            received so far.
        progress: Where to report.
        sha256: The digest that it must have, or "".
        size: Its size in bytes, or 0 when unknown.
        most: Bytes beyond which nothing is written and the download is refused; 0 for any number.
        headers: Further headers of every request; an authorization goes to this host only.
        hint: What to do where the server refuses or breaks off; "" says how to go on by hand.

    Returns:
        The file's SHA-256.

    Raises:
        DataError: The server cannot be reached, refuses, breaks off repeatedly (received bytes
            are kept), or sends another file (which is removed).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(url, path, progress, sha256, size, most, headers or {}, hint)
    if not (size and transfer.size == size):
        transfer.run()
    digest = sha256_of(transfer.part)
    problem = _problem(transfer.part, digest, sha256, path.suffix)
    if problem:
        transfer.remove()
        raise DataError(
            f"{url}: is not the file that was published ({problem}); it was removed",
            hint or by_hand(url, path),
        )
    sync(transfer.part)
    transfer.part.replace(path)
    transfer.remove()
    return digest


def received(path: Path) -> int:
    """Return how many bytes of a file are here: of the file, or what a broken `fetch` left."""
    found = path if path.is_file() else _part(path)
    return found.stat().st_size if found.is_file() else 0


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def by_hand(url: str, path: Path) -> str:
    """Return a hint that says how to download by other means."""
    return f"or fetch {url} by other means, save it as {path}, and run the same command again"


class _BrokenOffError(Exception):
    """The connection failed in a way that another attempt may mend."""


@dataclass
class _Transfer:
    """The bytes of one file received so far, and how to get the rest; see `fetch`.

    `part` holds the bytes, `version` the tag of the server's file that they belong to.
    """

    url: str
    path: Path
    progress: Progress
    sha256: str
    expected_size: int
    most: int
    headers: Mapping[str, str]
    hint: str

    def __post_init__(self) -> None:
        self.part = _part(self.path)
        self.version = self.path.with_name(f"{self.path.name}.part.version")

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def remove(self) -> None:
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)

    def run(self) -> None:
        """Attempt until the file is complete, or several attempts in a row brought nothing."""
        best, fruitless = self.size, 0
        while True:
            try:
                return self._attempt()
            except (_BrokenOffError, requests.RequestException) as error:
                fruitless = 0 if self.size > best else fruitless + 1
                best = max(best, self.size)
                if fruitless > len(PAUSES):
                    raise self._failure(reason(error)) from error
                if fruitless:
                    time.sleep(PAUSES[fruitless - 1])
                self.progress.message(f"{reason(error)}; trying again at {self.size:,} bytes")

    def _attempt(self) -> None:
        """Request the missing bytes and write them.

        Raises:
            _BrokenOffError: Another attempt may help.
            DataError: Another attempt cannot help.
        """
        start = self.size
        version = self.version.read_text(encoding="utf-8") if self.version.exists() else ""
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if start and (self.sha256 or version):
            headers["Range"] = f"bytes={start}-"
            if not self.sha256:  # nothing else notices the halves of two different files
                headers["If-Range"] = version
        with requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            self._check_response(response)
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                if _total(response) == start:
                    return
                self.remove()
                raise _BrokenOffError("the bytes received so far do not fit the file")
            if not _resumes(response, start):
                if start:
                    self.progress.message("the server does not resume transfers; starting over")
                start = 0
                tag = response.headers.get("ETag", "")
                if not tag or tag.startswith("W/"):  # a weak tag does not promise the same bytes
                    tag = response.headers.get("Last-Modified", "")
                self.version.write_text(tag, encoding="utf-8")
                self.part.write_bytes(b"")
            total = _total(response) or self.expected_size
            self._write(response, start, total)
        if total and self.size < total:
            raise _BrokenOffError("the connection broke off")

    def _check_response(self, response: requests.Response) -> None:
        url, code = self.url, response.status_code
        encoding = response.headers.get("Content-Encoding", "identity")
        if response.ok and encoding.lower() not in ("", "identity"):
            raise DataError(  # its lengths and ranges count other bytes than the file's
                f"{url}: the server sends the file {encoding}-encoded, though asked not to",
                self.hint or by_hand(url, self.path),
            )
        if code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or response.ok:
            return
        status = f"{code} {response.reason}"
        if code >= HTTPStatus.INTERNAL_SERVER_ERROR or code == HTTPStatus.TOO_MANY_REQUESTS:
            raise _BrokenOffError(f"{urlsplit(url).netloc} responds {status}")
        raise DataError(
            f"{url}: the server responds {status}",
            self.hint or f"the file may have moved; {by_hand('it', self.path)}",
        )

    def _write(self, response: requests.Response, start: int, total: int) -> None:
        title, size = f"download {self.path.name}", total // UNIT or None
        with (
            self.part.open("ab") as file,
            self.progress.task(title, size, "kB", start // UNIT) as task,
        ):
            for block in response.iter_content(BLOCK):
                end = start + len(block)
                if 0 < self.most < end:
                    raise DataError(
                        f"{self.url}: the server sends more than {self.most:,} bytes",
                        self.hint or by_hand(self.url, self.path),
                    )
                file.write(block)
                task.advance(end // UNIT - start // UNIT)
                start = end

    def _failure(self, why: str) -> DataError:
        if not self.size:
            return DataError(
                f"cannot download from {urlsplit(self.url).netloc} ({why})",
                self.hint or f"check the connection, {by_hand(self.url, self.path)}",
            )
        return DataError(
            f"{self.path.name}: {why} at {self.size:,} bytes, repeatedly; they are kept",
            self.hint or f"run the same command again to resume, {by_hand(self.url, self.path)}",
        )


def _resumes(response: requests.Response, start: int) -> bool:
    """Return whether the response begins at byte `start`, which is not 0."""
    content_range = response.headers.get("Content-Range", "")
    partial = response.status_code == HTTPStatus.PARTIAL_CONTENT
    return bool(start) and partial and content_range.startswith(f"bytes {start}-")


def _total(response: requests.Response) -> int:
    """Return the size of the whole file that the response declares, or 0."""
    size = response.headers.get("Content-Range", "").rpartition("/")[2]
    if not size and response.status_code == HTTPStatus.OK:
        size = response.headers.get("Content-Length", "")
    return int(size) if size.isdecimal() else 0


def _problem(part: Path, digest: str, expected: str, suffix: str) -> str:
    """Return what is wrong with a complete file, or ""."""
    if expected:
        return "" if digest == expected else f"SHA-256 {digest}, expected {expected}"
    signature = SIGNATURES.get(suffix, b"")
    with part.open("rb") as file:
        if file.read(len(signature)) != signature:
            return f"no {suffix[1:].upper()} file"
    if suffix == ".hdf5":  # it states its own length; a server may send neither length nor digest
        import h5py  # heavy, and `download --help` imports this module

        try:
            h5py.File(part).close()
        except OSError:
            return "the HDF5 file is cut off or damaged"
    return ""


def reason(error: BaseException) -> str:
    """Return in a few words what caused an error of an HTTP library."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, requests.Timeout):
        return "no response in time"
    if isinstance(error, requests.RequestException):  # their texts are long and about pools
        return "the connection broke off"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
