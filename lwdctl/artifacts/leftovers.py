"""What killed processes left in a workspace, and removing it."""

from __future__ import annotations

import contextlib
import stat
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from lwdctl.artifacts.files import matching
from lwdctl.artifacts.locks import unless_worked_in
from lwdctl.artifacts.manifest import MANIFEST_NAME, Manifest
from lwdctl.artifacts.references import MAKERS
from lwdctl.artifacts.run_in_progress import (
    PARTS,
    PREFIX,
    REMOVED,
    RunRecord,
    read_record,
    remove_run,
    unused,
    was_published,
)
from lwdctl.core.errors import ArtifactError

PULLS = ".pulls"
"""Folder of a workspace in which `lwdctl pull` keeps what it has downloaded."""
EMPTY = "is empty"
SETTLED_SECONDS = 60.0
"""Age from which a directory without a record counts as left behind, not as just begun."""


@dataclass(frozen=True)
class Leftover:
    """What nothing needs any more.

    Attributes:
        path: The directory.
        reason: Why nothing needs it.
        bytes: What removing it frees: files that other directories hold as well do not count.
    """

    path: Path
    reason: str
    bytes: int

    def remove(self) -> bool:
        """Remove the directory unless a process may work on it; return whether it is gone."""
        if self.reason == EMPTY:  # whatever was begun in it meanwhile stays
            with contextlib.suppress(OSError):
                self.path.rmdir()
                self.path.parent.rmdir()
            return not self.path.exists()
        with _unused(self.path) as is_free:
            if is_free:
                remove_run(self.path)
        return not self.path.exists()


def leftovers(root: Path, *, resumable: bool = False) -> list[Leftover]:
    """Return what killed processes left in a workspace and no command goes on with.

    Args:
        root: The workspace.
        resumable: Whether to count runs that `--resume` could go on from, too. Without it they
            count only where a run of the same settings and inputs has finished since.
    """
    found = [(path, "was being removed") for path in matching(root, "*", "*", f"{REMOVED}*")]
    for path in matching(root, "*", "*", f"{PREFIX}*"):
        record = read_record(path)
        reason = _why_left(record, resumable=resumable) if record else _why_unreadable(path)
        if reason:
            found.append((path, reason))
    if resumable:
        parts = matching(root, "*", "*", f"{PARTS}*")
        found += [(path, "can be resumed") for path in parts if _is_free(path)]
        found += [(path, "can be pulled to its end") for path in matching(root, PULLS, "*@*")]
    # Of our own types only: the root may be any directory, by mistake.
    names = [path for kind in MAKERS for path in matching(root, kind, "*")]
    empty = (path for path in names if path.is_dir() and not path.is_symlink())
    found += [(path, EMPTY) for path in empty if not matching(path, "*")]
    return [Leftover(path, reason, _bytes_of(path)) for path, reason in sorted(found)]


def _unused(path: Path) -> AbstractContextManager[bool]:
    """Keep other processes from a directory; yields whether it is sure that none works on it."""
    return unless_worked_in(path) if path.name.startswith(PARTS) else unused(path)


def _is_free(path: Path) -> bool:
    try:
        with _unused(path) as is_free:
            return is_free
    except FileNotFoundError:  # gone meanwhile
        return False


def _why_left(record: RunRecord, *, resumable: bool) -> str:
    if record.active:
        return ""
    if was_published(record.path) or _is_superseded(record):
        return "the same run has finished since"
    if not record.resumable:
        return "ended before its first checkpoint"
    return "can be resumed" if resumable else ""


def _why_unreadable(path: Path) -> str:
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:  # gone meanwhile
        return ""
    return "has no readable run.json" if age > SETTLED_SECONDS else ""


def _is_superseded(record: RunRecord) -> bool:
    """Return whether a version with a run's settings and inputs was published after it began."""
    for path in matching(record.path.parent, "v*", MANIFEST_NAME):
        try:
            manifest = Manifest.read(path)
        except ArtifactError:
            continue
        digests = [item.digest for item in manifest.inputs]
        later = str(manifest.provenance.get("finished", "")) > record.started
        if later and (manifest.config, digests) == (record.config, record.input_digests):
            return True
    return False


def _bytes_of(path: Path) -> int:
    found = (item.lstat() for item in path.rglob("*"))
    return sum(item.st_size for item in found if stat.S_ISREG(item.st_mode) and item.st_nlink == 1)
