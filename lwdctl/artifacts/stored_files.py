"""Paths and contents of stored things: inside their artifact, regular files, of bounded size.

A name that stands in a file (a manifest, a record of an analysis) is not trusted, and neither is
what lies under it. Every reader of artifacts takes paths from here: nothing outside the directory
is opened, links are not followed, and pipes and devices, which would be waited for, are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.untrusted import MOST_BYTES, read_bytes

_COPY = "copy the artifact again from where it was made, or make it again"


def stored_file(directory: Path, name: str) -> Path:
    """Return the path of a regular file inside a directory.

    Args:
        directory: The artifact's directory, which itself may be reached through links.
        name: POSIX path relative to it, as it is stored.

    Raises:
        ArtifactError: The name leads outside, or through a link; or there is no such file, or
            something else than a regular file.
    """
    if not is_inside(name):
        raise ArtifactError(
            f"{directory} names a file outside of it: {plain_text(name, 200)}", _COPY
        )
    path = directory / PurePosixPath(name)
    try:
        for place in (path, *path.parents):
            if place == directory:
                break
            if place.is_symlink():
                raise _refused(place, "is a link, which is not followed")
        if not path.is_file():
            raise _refused(path, "is no regular file" if path.exists() else "is missing")
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from error
    return path


def read_stored(directory: Path, name: str, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file inside a directory; see `stored_file`.

    Raises:
        ArtifactError: As for `stored_file`, or the file cannot be read, or has more bytes.
    """
    return read_bytes(stored_file(directory, name), ArtifactError, most)


def stored_files(directory: Path) -> Iterator[Path]:
    """Yield every file below a directory.

    Raises:
        ArtifactError: There is a link, a pipe, a socket or a device.
    """
    try:
        entries = sorted(os.scandir(directory), key=lambda item: item.name)
    except OSError as error:
        raise ArtifactError(f"cannot read {directory}: {error.strerror}") from error
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink():
            raise _refused(path, "is a link, which is not followed")
        if entry.is_dir(follow_symlinks=False):
            yield from stored_files(path)
        elif entry.is_file(follow_symlinks=False):
            yield path
        else:
            raise _refused(path, "is no regular file")


def is_inside(name: str) -> bool:
    """Tell whether a stored name is a plain relative POSIX path that leads into its directory."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name


def _refused(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{plain_text(str(path), 500)} {reason}", _COPY)
