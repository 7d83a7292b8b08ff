"""An artifact in the making: written aside, then published as a whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lwdctl.artifacts.artifact import SMALL_FILE, Artifact
from lwdctl.artifacts.durable import sha256_of, sync
from lwdctl.artifacts.kinds import version_directory, version_of
from lwdctl.artifacts.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    InputRef,
    Manifest,
    PayloadFile,
    plain,
)
from lwdctl.artifacts.partials import (
    CHECKPOINTS,
    DRAFT_NAME,
    STAGING,
    DraftRecord,
    create_partial,
    read_partials,
    sweep,
    try_lock,
)
from lwdctl.artifacts.provenance import provenance
from lwdctl.artifacts.verified import remember_verified
from lwdctl.core.errors import ArtifactError


class Draft:
    """A partial directory that this process alone works in.

    Use it as a context manager: left without `publish`, the directory is removed unless it
    holds a checkpoint or `keep` is true.

    Attributes:
        path: Where to write. Files under `checkpoints/` are never published.
        resumed: Whether `path` holds the work of an earlier, interrupted process.
        keep: Whether the directory survives an exception.
    """

    def __init__(self, record: DraftRecord, lock: IO[str], *, resumed: bool) -> None:
        self.path = record.path
        self.resumed = resumed
        self.keep = resumed
        self._record = record
        self._lock = lock
        self._published = False

    @property
    def checkpoints(self) -> Path:
        """Directory for checkpoints, made on first use."""
        folder = self.path / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        return folder

    def publish(
        self,
        summary: Mapping[str, Any],
        *,
        seed: int | None = None,
        device: str = "cpu",
        started: str = "",
    ) -> Artifact:
        """Make the payload the next version of its name, atomically.

        The payload is hard-linked into a staging directory, forced to the disk, and
        renamed into place; until then the draft stays whole and resumable.

        Args:
            summary: The numbers that `show` prints.
            seed: The stage's seed, or None.
            device: Where it computed.
            started: When the work began, or "" for when the draft was begun.

        Raises:
            ArtifactError: The payload holds something other than files and directories.
        """
        staging = self.path / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        files = tuple(_stage(self.path, staging))
        origin = provenance(seed=seed, device=device, started=started or self._record.started)
        manifest = Manifest(
            kind=self._record.kind,
            schema_version=SCHEMA_VERSION,
            name=self._record.name,
            version=0,
            config=self._record.config,
            inputs=self._record.inputs,
            files=files,
            summary=plain(summary),
            provenance=origin,
        )
        artifact = _claim_version(staging, self.path.parent, manifest)
        self._published = True
        self.discard()
        for file in files:
            if file.size >= SMALL_FILE:  # hashed just now: consumers need not do it again
                remember_verified(artifact.path / file.path, file.sha256)
        return artifact

    def discard(self) -> None:
        """Remove the partial directory and give up the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> Draft:
        """Return the draft itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the directory unless it was published or is to be kept."""
        del kind, error, traceback
        if self._published:
            return
        if self.keep or self._record.resumable:
            self._lock.close()
        else:
            self.discard()


def new_draft(
    root: Path, kind: str, name: str, config: Mapping[str, Any], inputs: tuple[InputRef, ...]
) -> Draft:
    """Begin from nothing; leftovers of killed processes that cannot resume are removed."""
    sweep(root, kind, name)
    record, lock = create_partial(root, kind, name, config, inputs)
    return Draft(record, lock, resumed=False)


def resume_draft(
    root: Path, kind: str, name: str, config: Mapping[str, Any], inputs: tuple[InputRef, ...]
) -> Draft:
    """Take up the newest draft of the same configuration and inputs.

    Raises:
        ArtifactError: There is none; the message names the settings or inputs that
            differ, or says that another process is at work on it.
    """
    sweep(root, kind, name, resuming=True)
    records = read_partials(root, kind, name)
    if not records:
        raise ArtifactError(
            f"there is no unfinished {kind}/{name} in {root} to resume",
            "leave out --resume to begin a new one",
        )
    wanted = plain(config)
    same = [item for item in records if item.config == wanted and _same_inputs(item, inputs)]
    if not same:
        raise ArtifactError(
            f"the unfinished {records[-1].path} differs in {_difference(records[-1], wanted)}",
            "give the same settings and inputs, or leave out --resume to begin a new one",
        )
    # One with a checkpoint before one that was begun later and has none.
    chosen = max(same, key=lambda item: (item.resumable, item.started))
    lock = try_lock(chosen.path)
    if lock is None:
        raise ArtifactError(f"another process is at work on {chosen.path}", "wait for it to end")
    return Draft(chosen, lock, resumed=True)


def _same_inputs(record: DraftRecord, inputs: tuple[InputRef, ...]) -> bool:
    return [item.digest for item in record.inputs] == [item.digest for item in inputs]


def _difference(record: DraftRecord, wanted: Mapping[str, Any]) -> str:
    missing = object()
    keys = [
        key
        for key in sorted({*record.config, *wanted})
        if record.config.get(key, missing) != wanted.get(key, missing)
    ]
    pairs = [f"{key} ({record.config.get(key)!r}, now {wanted.get(key)!r})" for key in keys]
    return ", ".join(pairs) or "its inputs: " + ", ".join(item.reference for item in record.inputs)


def _stage(source: Path, staging: Path) -> Iterator[PayloadFile]:
    """Hash, sync and hard-link the payload below `source` into `staging`."""
    staging.mkdir()
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if relative.parts[0] in (CHECKPOINTS, DRAFT_NAME, STAGING, MANIFEST_NAME):
            continue
        target = staging / relative
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ArtifactError(f"{path} is neither a file nor a directory: it cannot be published")
        if path.is_dir():
            target.mkdir()
            continue
        _link(path, target)
        sync(target)
        yield PayloadFile(relative.as_posix(), target.stat().st_size, sha256_of(target))
    for folder in staging.rglob("*/"):
        sync(folder)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _claim_version(staging: Path, folder: Path, manifest: Manifest) -> Artifact:
    """Rename `staging` to the next free version directory of `folder`.

    Renaming onto a directory that has content fails, so of two processes that want one
    number the second takes the next.
    """
    version = 1 + max((version_of(entry.name) for entry in folder.iterdir()), default=0)
    while True:
        numbered = Manifest(**{**vars(manifest), "version": version})
        numbered.write(staging / MANIFEST_NAME)
        target = folder / version_directory(version)
        try:
            staging.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            version += 1
            continue
        sync(folder)
        return Artifact(manifest.kind, manifest.name, version, target, numbered)
