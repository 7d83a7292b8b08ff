"""What a file is that holds no demonstrations, told by its first bytes, and what to do then."""

from __future__ import annotations

import io
import lzma
import shlex
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

_START = 4096
_TAR_START = 2**20
"""Bytes that hold the first entry of a tar archive, compressed or not."""
_PACKED = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}


class FileType(NamedTuple):
    """What a file is, and the command that makes something readable of it, or ""."""

    name: str
    hint: str = ""


_WHOLE = "lwdctl inspect {} (the directory of the whole data set)"
# First bytes, what they belong to, and a command in which {} stands for the path.
_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file itself", "git lfs pull"),
    (b"\x1f\x8b", "a gzip file", "gunzip --keep {}"),
    (b"BZh", "a bzip2 file", "bunzip2 --keep {}"),
    (b"\xfd7zXZ", "an xz file", "unxz --keep {}"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unzstd {}"),
    (b"PK\x03\x04", "a damaged zip file", ""),
    (b"PAR1", "a Parquet file", _WHOLE),
    (b"ARROW1", "an Arrow file", _WHOLE),
    (b"\x93NUMPY", "a single NumPy array", "put observations and actions into one .npz file"),
    (b"#ROSBAG", "a ROS bag", ""),
    (b"\x89MCAP", "an MCAP recording", ""),
    (b"SQLite format 3", "an SQLite database", ""),
    (b"\x89PNG", "a PNG picture", ""),
    (b"\xff\xd8\xff", "a JPEG picture", ""),
    (b"%PDF", "a PDF document", ""),
)
_WEB_PAGE = (b"<!doctype html", b"<html")


def file_type(path: Path) -> FileType:
    """Tell what a file is by its first bytes.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_START)
    if not start:
        return FileType("an empty file")
    if _is_tar(path):
        return FileType("a tar archive", f"tar -xf {shlex.quote(str(path))}")
    for signature, name, hint in _SIGNATURES:
        if start.startswith(signature):
            shown = _data_set_of(path) if hint is _WHOLE else path
            return FileType(name, hint.format(shlex.quote(str(shown))))
    if start.lstrip().lower().startswith(_WEB_PAGE):
        return FileType("a web page: the download gave an error page", "download the file again")
    if start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        hint = "save the arrays with numpy.savez in the program that wrote it"
        return FileType("a pickle, which is never opened because it can run code", hint)
    if start[4:8] == b"ftyp":
        return FileType("an MP4 video")
    return FileType("a text file" if _is_text(start) else "a binary file of an unknown kind")


def _is_tar(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(_TAR_START)  # zeros without end would be searched for a compressed block
    kind = next((kind for signature, kind in _PACKED.items() if start.startswith(signature)), "")
    try:
        with tarfile.open(fileobj=io.BytesIO(start), mode=f"r:{kind}") as archive:  # type: ignore[call-overload]
            return archive.next() is not None
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError):
        return False  # damaged, whatever it is


def _data_set_of(path: Path) -> Path:
    """Return the directory above a file that has metadata beside its data, else its own."""
    above = [item for item in path.absolute().parents if (item / "meta" / "info.json").is_file()]
    return above[0] if above else path.parent


def _is_text(start: bytes) -> bool:
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4 and len(start) == _START  # cut within a character
    return b"\0" not in start
