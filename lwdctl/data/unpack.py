"""Unpacks zip archives of unknown origin: nothing is written outside the target folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from lwdctl.core.errors import DataError
from lwdctl.core.progress import Progress


def unpack(archive: Path, wanted: str, folder: Path, progress: Progress) -> Path:
    """Unpack one directory of a zip archive; it appears as a whole or not at all.

    Args:
        archive: The zip file.
        wanted: Directory inside it, with `/` between its parts.
        folder: Where `wanted` goes; its parents are made.
        progress: Where to report.

    Returns:
        `folder / wanted`.

    Raises:
        DataError: No zip file, a member that would leave the folder, or no such directory.
    """
    target = folder / wanted
    fresh = folder / f".{archive.name}.unpacking"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as source:
            members = _members(archive, source, wanted)
            with progress.task(f"unpack {archive.name}", len(members), "file") as task:
                for member in members:
                    source.extract(member, fresh)
                    task.advance()
        target.parent.mkdir(parents=True, exist_ok=True)
        (fresh / wanted).rename(target)
    except (zipfile.BadZipFile, NotImplementedError) as error:  # the latter: unknown compression
        raise DataError(
            f"{archive}: cannot be unpacked ({error})", "remove it and try again"
        ) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _members(archive: Path, source: zipfile.ZipFile, wanted: str) -> list[zipfile.ZipInfo]:
    """Return the members below `wanted` after checking every one of the archive."""
    for member in source.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(
                f"{archive}: holds '{member.filename}', which leads out of it",
                "it is not unpacked; fetch the archive again from where it was published",
            )
    found = [item for item in source.infolist() if item.filename.startswith(f"{wanted}/")]
    if not found:
        raise DataError(f"{archive}: holds no '{wanted}'")
    return found
