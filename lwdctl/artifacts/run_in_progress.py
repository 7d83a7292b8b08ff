"""Runs in progress: artifacts written aside, then published as a whole or not at all.

A run works in a hidden directory, `<root>/<type>/<name>/.partial-*/`, whose `run.json` holds the
configuration, the digests of the inputs and the start time. The run is locked by an advisory
`flock` on that file, so the lock ends with the process however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lwdctl.artifacts.artifact import SMALL_FILE, Artifact
from lwdctl.artifacts.files import matching, remember_digest, sha256_of, sync, write_durably
from lwdctl.artifacts.locks import Owner, lock_file
from lwdctl.artifacts.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    InputRef,
    Manifest,
    PayloadFile,
    command_line,
    now,
    plain,
    provenance,
    software,
    software_changes,
)
from lwdctl.artifacts.references import version_directory, version_of
from lwdctl.core.errors import ArtifactError, cannot_write
from lwdctl.core.plain_text import plain_text
from lwdctl.core.untrusted import read_json, typed

CHECKPOINTS = "checkpoints"
PREFIX = ".partial-"
RESUME = "--resume (resume=True in Python)"
"""What asks for a run to be resumed; recipes need nothing."""
REMOVED = ".removed-"
"""Prefix of a run that is being removed: renamed first, so that a kill leaves no half of a run."""
PARTS = ".parts-"
"""Prefix of a directory for what several machines finish of one run before it begins."""
RECORD_NAME = "run.json"
_STAGING = ".publish"
_STAGED_AT_ONCE = 8


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says about an unfinished run.

    Attributes:
        type: Type of the artifact that it makes.
        name: Name of that artifact.
        path: The run's directory.
        config: Full configuration, JSON-ready.
        inputs: The artifacts it derives from.
        started: When it began, UTC ISO 8601.
        owner: The process that works on it. Where a file system has locks, the one that began it.
        command: The command line, or the Python call, that began it; "" where it is not known.
        software: What `manifest.software` returned when it began; empty where it is not known.
    """

    type: str
    name: str
    path: Path
    config: Mapping[str, Any]
    inputs: tuple[InputRef, ...]
    started: str
    owner: Owner = field(default_factory=Owner)
    command: str = ""
    software: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_digests(self) -> list[str]:
        """SHA-256 digests of the inputs' manifests."""
        return [item.digest for item in self.inputs]

    @property
    def resumable(self) -> bool:
        """Whether it holds a checkpoint to go on from, and has not been published.

        Hidden files are none: they are unfinished or damaged. A run that trains several models has
        a folder for each among its checkpoints, with checkpoints of its own.
        """
        found = matching(self.path, CHECKPOINTS, "*")
        found += matching(self.path, CHECKPOINTS, "*", CHECKPOINTS, "*")
        begun = any(item.is_file() and not item.name.startswith(".") for item in found)
        return begun and not was_published(self.path)

    @property
    def active(self) -> bool:
        """Whether a running process works on it."""
        with unused(self.path) as is_free:
            return not is_free


class RunInProgress:
    """A run that this process alone works on.

    Use it as a context manager: left without `publish`, the directory is removed unless it
    holds a checkpoint or `keep` is true.

    Attributes:
        path: Where to write. Files under `checkpoints/` are never published.
        resumed: Whether `path` holds the work of an earlier, interrupted process.
        keep: Whether the directory survives an exception.
        artifact: What was published, None before.
        begun_with: What differs in the software that began it, as text, or "".
    """

    def __init__(
        self,
        record: RunRecord,
        lock: IO[str],
        code: Mapping[str, Any],
        *,
        resumed: bool,
        version: int = 0,
    ) -> None:
        self.path = record.path
        self.resumed = resumed
        self.keep = resumed
        self._record = record
        self._version = version
        self._lock = lock
        # Of the code that computes: the checkout may have another before a long run ends.
        self._software = code
        self.begun_with = software_changes(record.software or code, code)
        self.artifact: Artifact | None = None

    @property
    def record(self) -> RunRecord:
        """What `run.json` says."""
        return self._record

    @property
    def checkpoints(self) -> Path:
        """Directory for checkpoints, created on first use."""
        folder = self.path / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        return folder

    def publish(
        self,
        summary: Mapping[str, Any],
        *,
        seed: int | None = None,
        device: str = "cpu",
        more: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Make the payload the next version of its name, atomically.

        The payload is hard-linked into a staging directory, forced to the disk, and
        renamed into place; until then the run stays whole and resumable.

        Args:
            summary: The numbers that `lwdctl show` prints.
            seed: The stage's seed, or None.
            device: Where it computed.
            more: What else its provenance says.

        Raises:
            ArtifactError: The payload holds something other than files and directories.
        """
        staging = self.path / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        files = tuple(_stage(self.path, staging))
        started, code = self._record.started, self._software
        made = provenance(seed=seed, device=device, started=started, code=code)
        manifest = Manifest(
            type=self._record.type,
            schema_version=SCHEMA_VERSION,
            name=self._record.name,
            version=0,
            config=self._record.config,
            inputs=self._record.inputs,
            files=files,
            summary=plain(summary),
            provenance={**made, **(more or {})},
        )
        artifact = self._finish(staging, manifest)
        for file in files:
            if file.size >= SMALL_FILE:  # hashed just now: consumers need not do it again
                remember_digest(artifact.path / file.path, file.sha256)
        return artifact

    def _finish(self, staging: Path, manifest: Manifest) -> Artifact:
        artifact = _claim_version(staging, self.path.parent, manifest, self._version)
        self.artifact = artifact
        self.discard()
        return artifact

    def discard(self) -> None:
        """Remove the directory, those above it that are empty now, and release the lock."""
        remove_run(self.path)
        self._lock.close()
        # NFS keeps a file that is removed while it is open, as .nfs..., and with it the directory.
        removed = self.path.with_name(REMOVED + self.path.name.removeprefix(PREFIX))
        if matching(removed, ".nfs*"):
            remove_run(removed)

    def __enter__(self) -> RunInProgress:
        """Return the run itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the directory unless it was published or is to be kept.

        Raises:
            ArtifactError: Instead of an error of the system that a write met: names the path and
                says what is kept.
        """
        del kind, traceback
        if self.artifact is not None:
            return
        kept = self.keep or self._record.resumable
        if kept:
            self._lock.close()
        else:
            self.discard()
        then = "run the same command again"
        if self._record.resumable:
            then += f" with {RESUME}: the last checkpoint is kept"
        elif kept:
            then += ": what is finished is kept"
        refused = cannot_write(error, self.path, then)
        if refused is not None:
            raise refused from error


def begin_run(
    root: Path,
    artifact_type: str,
    name: str,
    config: Mapping[str, Any],
    inputs: tuple[InputRef, ...],
    *,
    resume: bool,
    version: int = 0,
) -> RunInProgress:
    """Begin a run, or resume the newest unfinished one of the same configuration and inputs.

    What killed processes left under the name and nobody can resume is removed. `version` is the
    number that the artifact gets where it is free; 0 for the next one.

    Raises:
        ArtifactError: The workspace cannot be written; or no run can be resumed: the message
            names the settings or inputs that differ, or says that another process works on it.
    """
    _sweep(root, artifact_type, name, resuming=resume)
    path = root / artifact_type / name / f"{PREFIX}{secrets.token_hex(8)}"
    record = RunRecord(artifact_type, name, path, plain(config), inputs, now(), Owner.this())
    record = replace(record, command=command_line(), software=plain(software()))
    return _resume(root, record, version) if resume else _begin(root, record, version)


def _begin(root: Path, record: RunRecord, version: int) -> RunInProgress:
    path = record.path
    try:
        _make(path)
        lock = (path / RECORD_NAME).open("x+", encoding="utf-8")
        # Locked before it is filled: whoever finds an empty run.json leaves it alone.
        lock_file(lock, fcntl.LOCK_EX)
        os.write(lock.fileno(), _content(record))
        os.fsync(lock.fileno())
        sync(path)
    except OSError as error:
        remove_run(path)
        raise ArtifactError(
            f"cannot write in the workspace {root}: {error.strerror}",
            "free disk space, or choose another with --workspace DIR or $LWDCTL_WORKSPACE",
        ) from error
    return RunInProgress(record, lock, record.software, resumed=False, version=version)


def _content(record: RunRecord) -> bytes:
    """Return what `run.json` holds of a run."""
    body = {"config": record.config, "inputs": [asdict(item) for item in record.inputs]}
    body |= {"started": record.started, "owner": asdict(record.owner), "command": record.command}
    body["software"] = record.software
    return json.dumps(body, indent=1).encode()


def _make(path: Path) -> None:
    """Make a directory and its parents, which another process may be removing as empty."""
    for attempt in reversed(range(10)):
        try:
            path.mkdir(parents=True)
        except FileNotFoundError:
            if not attempt:
                raise
        else:
            return


def remove_run(path: Path) -> None:
    """Remove a run's directory, and those of its name and type where nothing else is in them."""
    gone = path
    if not path.name.startswith(REMOVED):
        gone = path.with_name(REMOVED + path.name.removeprefix(PREFIX))
        try:
            path.rename(gone)
        except OSError:
            gone = path
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty
        path.parent.rmdir()
        path.parent.parent.rmdir()


def _resume(root: Path, wanted: RunRecord, version: int) -> RunInProgress:
    records = unfinished_runs(root, wanted.type, wanted.name)
    if not records:
        raise ArtifactError(
            f"no unfinished {wanted.type}/{wanted.name} to resume in {root}",
            f"leave out {RESUME} to begin a new one",
        )
    same = [
        item
        for item in records
        if item.config == wanted.config and item.input_digests == wanted.input_digests
    ]
    if not same:
        raise ArtifactError(
            f"the unfinished {records[-1].path} differs in {_difference(records[-1], wanted)}",
            f"leave out {RESUME} to begin a new one, or {_how_to_go_on(records[-1], wanted)}",
        )
    # One with a checkpoint before one that was begun later and has none.
    same.sort(key=lambda item: (item.resumable, item.started), reverse=True)
    for chosen in same:
        lock = try_lock(chosen.path)
        if lock is not None:
            return RunInProgress(chosen, lock, wanted.software, resumed=True, version=version)
    chosen = same[0]
    if _has_locks(chosen.path):
        raise ArtifactError(f"another process works on {chosen.path}", "wait for it to end")
    chosen = replace(chosen, owner=wanted.owner)
    lock = _take_over(chosen)
    return RunInProgress(chosen, lock, wanted.software, resumed=True, version=version)


def _how_to_go_on(record: RunRecord, wanted: RunRecord) -> str:
    """Return what resumes a run, with the command that began it where that was a command line.

    Where other inputs would be taken now, it names those of the run.
    """
    program, _, arguments = record.command.partition(" ")
    if program != "lwdctl":
        return "give the same settings and inputs"
    if arguments.startswith("run "):  # recipes resume by themselves
        return f"resume this one: {record.command}"
    known = {item.digest for item in wanted.inputs}
    given = shlex.split(arguments)
    inputs = [
        f" --{item.type} {shlex.quote(item.reference.removeprefix(f'{item.type}/'))}"
        for item in record.inputs
        if item.digest not in known and f"--{item.type}" not in given
    ]
    return f"resume this one: {record.command}{''.join(inputs)} --resume"


def unfinished_runs(root: Path, artifact_type: str = "*", name: str = "*") -> list[RunRecord]:
    """Return the unfinished runs of a workspace, oldest first.

    A directory whose process died before it had written its record is left out.
    """
    records = [read_record(path) for path in matching(root, artifact_type, name, f"{PREFIX}*")]
    found = [item for item in records if item is not None and not item.type.startswith(".")]
    return sorted(found, key=lambda record: record.started)


def read_record(path: Path) -> RunRecord | None:
    """Return what the `run.json` of a run's directory says, or None where it says nothing."""
    artifact_type, name = path.parts[-3:-1]
    try:
        where = str(path / RECORD_NAME)
        body = typed(_Record, read_json(path / RECORD_NAME), where)
    except ArtifactError:
        return None
    values = {item.name: getattr(body, item.name) for item in fields(body)}
    return RunRecord(artifact_type, name, path, **values)


@dataclass(frozen=True)
class _Record:
    """What `run.json` holds."""

    config: dict[str, Any]
    inputs: tuple[InputRef, ...]
    started: str
    owner: Owner = field(default_factory=Owner)
    command: str = ""
    software: dict[str, Any] = field(default_factory=dict)


def _has_locks(path: Path) -> bool:
    """Return whether the file system of the run in the directory at `path` has locks.

    Some cluster file systems are mounted without (Lustre, or NFS without its lock service).
    """
    try:
        with (path / RECORD_NAME).open("r+", encoding="utf-8") as file:
            return lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is held, or gone
        return True


@contextlib.contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Keep other processes from the run in the directory at `path`, if none works on it.

    Yields:
        Whether it is sure that none does: its lock is free, and held while the block works; it has
        no `run.json`; or its file system has no locks and its owner has surely ended.
    """
    lock = try_lock(path)
    if lock is not None:
        with lock:
            yield True
    elif not (path / RECORD_NAME).exists():
        yield True
    else:
        record = None if _has_locks(path) else read_record(path)
        yield record is not None and record.owner.is_gone


def _take_over(record: RunRecord) -> IO[str]:
    """Open the run of a process that has ended, where no lock tells of its end.

    From then on `run.json` names this process, so that others leave the run alone.

    Args:
        record: The run, with this process as its owner.

    Raises:
        ArtifactError: Its process may still run.
    """
    known = read_record(record.path)
    owner = known.owner if known else Owner()
    if not owner.is_gone:
        raise ArtifactError(
            f"{record.path} is on a file system without locks, so nothing tells whether process"
            f" {owner.pid} on {plain_text(owner.host or 'an unknown machine', 100)} still works on"
            " it",
            f"resume it on that machine, or remove it and begin a new one: rm -r {record.path}",
        )
    write_durably(record.path / RECORD_NAME, _content(record))
    return (record.path / RECORD_NAME).open("r+", encoding="utf-8")


def try_lock(path: Path) -> IO[str] | None:
    """Lock the run in the directory at `path`.

    Returns:
        The lock; None when another process holds it, or the file system has no locks, where
        nothing tells that none does.
    """
    try:
        lock = (path / RECORD_NAME).open("r+", encoding="utf-8")
    except OSError:
        return None
    try:
        if lock_file(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return lock
    except BlockingIOError:
        pass
    lock.close()
    return None


def _sweep(root: Path, artifact_type: str, name: str, *, resuming: bool = False) -> None:
    """Remove what killed processes left of one name.

    These are runs that were published and, unless one is about to be resumed, runs without a
    checkpoint. Those of other machines stay: some file systems are mounted with locks that other
    machines do not see, and `lwdctl gc` removes them when it is asked to.
    """
    for record in unfinished_runs(root, artifact_type, name):
        if record.owner.is_elsewhere:
            continue
        with unused(record.path) as is_free:
            if is_free and (not (resuming or record.resumable) or was_published(record.path)):
                remove_run(record.path)
    for path in matching(root, artifact_type, name, f"{REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)


def was_published(path: Path) -> bool:
    """Tell whether a run became a version before its process could remove it.

    Its files are then the version's own (hard links): writing to them would damage it. Links
    from elsewhere, such as those of backups, do not count.
    """
    linked = _file_ids(path, at_least=2)
    return bool(linked) and any(
        linked & _file_ids(version) for version in matching(path.parent, "v*")
    )


def _file_ids(folder: Path, at_least: int = 1) -> set[tuple[int, int]]:
    """Return device and inode of the files of a folder that have so many names."""
    found: set[tuple[int, int]] = set()
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a process that runs removes checkpoints
            item = path.lstat()
            if stat.S_ISREG(item.st_mode) and item.st_nlink >= at_least:
                found.add((item.st_dev, item.st_ino))
    return found


def _difference(record: RunRecord, wanted: RunRecord) -> str:
    missing = object()
    keys = [
        key
        for key in sorted({*record.config, *wanted.config})
        if record.config.get(key, missing) != wanted.config.get(key, missing)
    ]
    pairs = [f"{key} ({record.config.get(key)!r}, now {wanted.config.get(key)!r})" for key in keys]
    return ", ".join(pairs) or "its inputs: " + ", ".join(item.reference for item in record.inputs)


def _stage(source: Path, staging: Path) -> list[PayloadFile]:
    """Hash, sync and hard-link the payload below `source` into `staging`."""
    staging.mkdir()
    files = []
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if relative.parts[0] in (CHECKPOINTS, RECORD_NAME, _STAGING, MANIFEST_NAME):
            continue
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ArtifactError(f"{path} is neither a file nor a directory: it cannot be published")
        if path.is_dir():
            (staging / relative).mkdir()
        else:
            files.append(relative)
    # A disk takes many files at once in about the time that one takes.
    with ThreadPoolExecutor(_STAGED_AT_ONCE) as pool:
        staged = list(pool.map(lambda relative: _stage_file(source, staging, relative), files))
        list(pool.map(sync, staging.rglob("*/")))
    return staged


def _stage_file(source: Path, staging: Path, relative: Path) -> PayloadFile:
    target = staging / relative
    try:
        target.hardlink_to(source / relative)
    except OSError:  # a file system without hard links
        shutil.copyfile(source / relative, target)
    sync(target)
    return PayloadFile(relative.as_posix(), target.stat().st_size, sha256_of(target))


def next_version(folder: Path) -> int:
    """Return the number after the last version in the folder of a name; it need not exist."""
    return 1 + max((version_of(path.name) for path in matching(folder, "v*")), default=0)


def _claim_version(staging: Path, folder: Path, manifest: Manifest, reserved: int) -> Artifact:
    """Rename `staging` to the reserved version directory of `folder`, else to the next free one.

    Renaming onto a directory that has content fails, so of two processes that want one
    number the second takes the next.
    """
    version = reserved or next_version(folder)
    while True:
        numbered = replace(manifest, version=version)
        numbered.write(staging / MANIFEST_NAME)
        target = folder / version_directory(version)
        try:
            staging.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            version = max(version + 1, next_version(folder))
            continue
        sync(folder)
        return Artifact(manifest.type, manifest.name, version, target, numbered)
