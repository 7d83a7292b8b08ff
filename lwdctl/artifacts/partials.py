"""Unfinished artifacts on disk: hidden directories, each locked by the one process it serves.

A partial directory holds `draft.json` (configuration, input digests, start time). The
lock is an advisory `flock` on that file, so it ends with the process however it dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lwdctl.artifacts.durable import sync
from lwdctl.artifacts.manifest import InputRef, plain
from lwdctl.artifacts.provenance import now
from lwdctl.core.errors import ArtifactError

PREFIX = ".partial-"
DRAFT_NAME = "draft.json"
CHECKPOINTS = "checkpoints"
STAGING = ".publish"


@dataclass(frozen=True)
class DraftRecord:
    """What `draft.json` says.

    Attributes:
        kind: Kind of the artifact to be.
        name: Its name.
        path: The partial directory.
        config: Resolved configuration, JSON-ready.
        inputs: What it is made from.
        started: When it was begun, UTC ISO 8601.
    """

    kind: str
    name: str
    path: Path
    config: Mapping[str, Any]
    inputs: tuple[InputRef, ...]
    started: str

    @property
    def resumable(self) -> bool:
        """Whether it holds a checkpoint to go on from."""
        folder = self.path / CHECKPOINTS
        return folder.is_dir() and any(folder.iterdir())


def create_partial(
    root: Path, kind: str, name: str, config: Mapping[str, Any], inputs: tuple[InputRef, ...]
) -> tuple[DraftRecord, IO[str]]:
    """Make a new partial directory; return its record and the open file that locks it.

    Raises:
        ArtifactError: The workspace cannot be written.
    """
    path = root / kind / name / f"{PREFIX}{secrets.token_hex(8)}"
    record = DraftRecord(kind, name, path, plain(config), inputs, now())
    try:
        path.mkdir(parents=True)
        lock = (path / DRAFT_NAME).open("x+", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(
            f"cannot write in the workspace {root}: {error.strerror}",
            "choose another with --workspace DIR or $LWDCTL_WORKSPACE",
        ) from error
    # Locked before it is filled: whoever finds an empty draft.json leaves it alone.
    fcntl.flock(lock, fcntl.LOCK_EX)
    body = {"config": record.config, "inputs": [asdict(item) for item in inputs]}
    json.dump({**body, "started": record.started}, lock, indent=1)
    lock.flush()
    os.fsync(lock.fileno())
    sync(path)
    return record, lock


def read_partials(root: Path, kind: str, name: str) -> list[DraftRecord]:
    """Return the drafts of one name, oldest first; half-made directories are left out."""
    folder = root / kind / name
    records = [
        record
        for path in (folder.glob(f"{PREFIX}*") if folder.is_dir() else ())
        if (record := _read(kind, name, path)) is not None
    ]
    return sorted(records, key=lambda record: record.started)


def all_partials(root: Path, kind: str | None = None) -> Iterator[DraftRecord]:
    """Yield the drafts of a workspace, by kind and name."""
    for path in sorted(root.glob(f"{kind or '*'}/*/{PREFIX}*")):
        record = _read(path.parts[-3], path.parts[-2], path)
        if record is not None and not record.kind.startswith("."):
            yield record


def try_lock(path: Path) -> IO[str] | None:
    """Lock the partial directory at `path`; None when another process holds it."""
    try:
        lock = (path / DRAFT_NAME).open("r+", encoding="utf-8")
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def is_active(path: Path) -> bool:
    """Tell whether a running process works in the partial directory at `path`."""
    lock = try_lock(path)
    if lock is not None:
        lock.close()
    return lock is None


def was_published(path: Path) -> bool:
    """Tell whether a locked draft became a version before its maker could remove it.

    Its files are then the version's own (hard links): writing on in them would damage it. Links
    from elsewhere, as backups make them, say nothing.
    """
    shutil.rmtree(path / STAGING, ignore_errors=True)  # of a publication that did not happen
    linked = {_file_id(item) for item in _files(path) if item.stat().st_nlink > 1}
    return bool(linked) and any(
        _file_id(item) in linked for version in path.parent.glob("v*") for item in _files(version)
    )


def _files(folder: Path) -> Iterator[Path]:
    return (item for item in folder.rglob("*") if item.is_file())


def _file_id(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def sweep(root: Path, kind: str, name: str, *, resuming: bool = False) -> None:
    """Remove what killed processes left of one name.

    That is drafts that became versions and,
    unless one is about to be resumed, drafts without a checkpoint.
    """
    for record in read_partials(root, kind, name):
        lock = try_lock(record.path)
        if lock is not None:
            with lock:
                if not (resuming or record.resumable) or was_published(record.path):
                    shutil.rmtree(record.path, ignore_errors=True)


def _read(kind: str, name: str, path: Path) -> DraftRecord | None:
    try:
        body = json.loads((path / DRAFT_NAME).read_text(encoding="utf-8"))
        inputs = tuple(InputRef(**item) for item in body["inputs"])
        return DraftRecord(kind, name, path, body["config"], inputs, body["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # its maker died before it was written, or is still writing it
