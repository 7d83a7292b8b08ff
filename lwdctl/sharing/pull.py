"""Pulling an artifact with its lineage from the Hugging Face Hub into a workspace.

Nothing in a repository is trusted: names stay inside their artifact, no more bytes are written than
are declared, every file is compared with its SHA-256, and nothing is executed. What was downloaded
waits in `<workspace>/.pulls/` until an artifact is whole; an interrupted pull goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import sha256_of, sync
from lwdctl.artifacts.leftovers import PULLS
from lwdctl.artifacts.locks import lock_file
from lwdctl.artifacts.manifest import MANIFEST_NAME, InputRef, Manifest, PayloadFile, now
from lwdctl.artifacts.origin import ORIGIN_VERSION, Origin, read_origin
from lwdctl.artifacts.references import check_name, format_reference
from lwdctl.artifacts.run_in_progress import RECORD_NAME
from lwdctl.artifacts.stored_files import stored_files
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ArtifactError, DataError, cannot_write
from lwdctl.core.plain_text import plain_text, size_text
from lwdctl.core.progress import Progress, SilentProgress, Task
from lwdctl.core.untrusted import MOST_BYTES
from lwdctl.data.fetch import UNIT, fetch, received
from lwdctl.sharing.hub import (
    LOG_IN,
    Address,
    Remote,
    endpoint,
    headers,
    not_found,
    quiet_client,
    state_of,
)
from lwdctl.sharing.shared_set import (
    SET_NAME,
    SharedArtifact,
    SharedSet,
    check_against_manifest,
    check_content,
    folder_of,
    is_data,
    parents_first,
)

_KEPT = "run the same command again: what was downloaded is kept"
_HINT = (
    "run the same command again to go on where it stopped; where the repository is private or"
    f" gated, {LOG_IN}"
)


@dataclass(frozen=True)
class Pulled:
    """What a pull gave.

    Attributes:
        artifact: The artifact that was pushed, in the workspace.
        repository: `user/name`.
        revision: The commit.
        artifacts: Reference of each artifact to `"pulled"`, `"completed"` or `"here already"`.
        bytes: Bytes that were downloaded for it, by this command or an interrupted one.
        has_more: Whether the repository holds data that were not pulled.
    """

    artifact: Artifact
    repository: str
    revision: str
    artifacts: dict[str, str]
    bytes: int
    has_more: bool


def pull_artifact(
    address: Address, workspace: Workspace, *, name: str, with_data: bool, progress: Progress
) -> Pulled:
    """Pull a repository's artifact and its lineage into a workspace.

    Args:
        address: Repository and revision.
        workspace: Where to put it.
        name: Name that replaces the original where that belongs to another artifact, or "".
        with_data: Whether to pull demonstrations and latents, where they were pushed.
        progress: Where to report.

    Raises:
        DataError: The Hub does not respond, refuses, or sends something else than was pushed.
        ArtifactError: The set is not what it claims to be, its place in the workspace is taken, or
            the disk is full.
    """
    with quiet_client(progress):
        remote = state_of(address)
    if remote is None:
        raise not_found(address)
    if not remote.commit or SET_NAME not in remote.files:
        raise DataError(
            f"the repository {address.repository} holds no artifact of lwdctl",
            f"see what it holds: {endpoint()}/{address.repository}",
        )
    folder = workspace.root / PULLS / f"{address.repository.replace('/', '--')}@{remote.commit}"
    try:
        with _locked(folder):
            pulled = _Pull(remote, workspace, folder, with_data, progress).run(name)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        refused = cannot_write(error, workspace.root, _KEPT)
        if refused is None:
            raise
        raise refused from error
    with contextlib.suppress(OSError):  # another pull is under way
        folder.parent.rmdir()
    return pulled


def pull_policy(source: str, workspace: Workspace, progress: Progress) -> Artifact:
    """Return the artifact of a repository, pulled where it is not in the workspace.

    Where the source names a full commit that was pulled before, the Hub is not asked.

    Raises:
        LwdctlError: As for `pull_artifact`.
    """
    address = Address.parse(source)
    for artifact in workspace.artifacts() if address.is_commit else ():
        origin = read_origin(artifact.path)
        if origin and origin.address == str(address) and origin.reference == origin.pushed:
            artifact.check()
            return artifact
    return pull_artifact(address, workspace, name="", with_data=False, progress=progress).artifact


@dataclass(frozen=True)
class _Pull:
    """One pull into `folder`, where the files lie until their artifact is whole."""

    remote: Remote
    workspace: Workspace
    folder: Path
    with_data: bool
    progress: Progress

    @property
    def files(self) -> Path:
        """Where the files lie that were downloaded, as they will in the workspace."""
        return self.folder / "files"

    def run(self, name: str) -> Pulled:
        where = f"{self.remote.repository}/{SET_NAME}"
        shared = SharedSet.parse(self._read_set(), where)
        self._check_sizes(shared)
        self.progress.message(
            f"{shared.artifact} of {self.remote.repository}, {self.remote.commit}"
        )
        manifests = {item.reference: self._manifest(item) for item in shared.artifacts}
        places = place_artifacts(shared, manifests, self.workspace.root, name)
        wanted = {place: self._wanted(place) for place in places}
        self._check_space(wanted)
        states = {}
        with self._one_bar(wanted) as progress:
            for place, files in wanted.items():
                for file in files:
                    self._fetch(place.shared, file, progress)
                    check_content(self.files / place.shared.folder, file.path)
        for place, files in wanted.items():
            states[place.reference] = self._publish(place, files, shared)
        main = next(place for place in places if place.shared is shared.main)
        artifact = Artifact.open(main.path)
        artifact.check()
        more = any(is_data(file.path) for item in shared.artifacts for file in item.files)
        total = sum(file.size for files in wanted.values() for file in files)
        return Pulled(
            artifact, self.remote.repository, self.remote.commit, states, total,
            more and not self.with_data,
        )  # fmt: skip

    def _read_set(self) -> bytes:
        size = self.remote.files[SET_NAME]
        if size is not None and size > MOST_BYTES:
            raise DataError(f"{SET_NAME} of {self.remote.repository} has {size:,} bytes")
        path = self.folder / SET_NAME
        path.unlink(missing_ok=True)
        with self._no_bar() as progress:
            fetch(
                self._url(SET_NAME), path, progress, size=size or 0, most=size or MOST_BYTES,
                headers=headers(), hint=_HINT,
            )  # fmt: skip
        return path.read_bytes()

    def _check_sizes(self, shared: SharedSet) -> None:
        """Check that the repository has the files of the set, with their sizes."""
        for item in shared.artifacts:
            for file in item.files:
                name = f"{item.folder}/{file.path}"
                size = self.remote.files.get(name, -1)
                if size not in (None, file.size):
                    found = "does not have" if size == -1 else f"has with {size:,} bytes"
                    raise DataError(
                        f"{SET_NAME} names {plain_text(name, 200)} with {file.size:,} bytes, which"
                        f" {self.remote.repository} {found}",
                        "ask whoever pushed it to push it again, or name an earlier revision",
                    )

    def _manifest(self, item: SharedArtifact) -> Manifest:
        if item.manifest_file.size > MOST_BYTES:
            raise ArtifactError(f"the manifest of {item.reference} is too large to be one")
        with self._no_bar() as progress:
            self._fetch(item, item.manifest_file, progress)
        path = self.files / item.folder / MANIFEST_NAME
        manifest = Manifest.read(path)
        check_against_manifest(item, manifest, str(path))
        return manifest

    def _wanted(self, place: Placement) -> list[PayloadFile]:
        """Return the files to download beside the manifest."""
        return [
            file
            for file in place.shared.files
            if file.path != MANIFEST_NAME
            and (self.with_data or not is_data(file.path))
            and not (place.exists and (place.path / file.path).exists())
        ]

    def _check_space(self, wanted: dict[Placement, list[PayloadFile]]) -> None:
        """Check that the disk has room for what an earlier attempt did not receive."""
        missing = sum(
            max(0, file.size - received(self.files / place.shared.folder / file.path))
            for place, files in wanted.items()
            for file in files
        )
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            raise ArtifactError(
                f"{size_text(missing)} are to be downloaded, but only {size_text(free)} are free at"
                f" {self.workspace.root}",
                "free disk space, or choose another workspace with --workspace DIR",
            )

    @contextlib.contextmanager
    def _one_bar(self, wanted: dict[Placement, list[PayloadFile]]) -> Iterator[Progress]:
        """Show the files of all artifacts as one piece of work."""
        total = sum(file.size // UNIT for files in wanted.values() for file in files)
        if not total:
            with self._no_bar() as progress:
                yield progress
            return
        with self.progress.task(f"pull {self.remote.repository}", total, "kB") as task:
            yield _Joined(self.progress, task)

    @contextlib.contextmanager
    def _no_bar(self) -> Iterator[Progress]:
        """Show messages only."""
        with SilentProgress().task("", None) as task:
            yield _Joined(self.progress, task)

    def _fetch(self, item: SharedArtifact, file: PayloadFile, progress: Progress) -> None:
        path = self.files / item.folder / file.path
        if path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256:
            return
        path.unlink(missing_ok=True)
        if file.size == 0:  # a server sends nothing for it
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if hashlib.sha256().hexdigest() != file.sha256:
                raise DataError(f"{item.reference}: {file.path} is empty, with another SHA-256")
            return
        fetch(
            self._url(f"{item.folder}/{file.path}"), path, progress,
            sha256=file.sha256, size=file.size, most=file.size, headers=headers(), hint=_HINT,
        )  # fmt: skip

    def _url(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            self.remote.repository, name, revision=self.remote.commit, endpoint=endpoint()
        )

    def _publish(self, place: Placement, files: list[PayloadFile], shared: SharedSet) -> str:
        """Put an artifact in its place as a whole; return what was done."""
        staged = self.files / place.shared.folder
        if not place.exists:
            names = {file.path for file in files}
            for path in stored_files(staged):  # what earlier attempts left
                if path.relative_to(staged).as_posix() not in {*names, MANIFEST_NAME}:
                    path.unlink()
            if place.renamed:
                place.manifest.write(staged / MANIFEST_NAME)
            self._origin(place, names, shared).write(staged)
            _move(staged, place.path)
            Artifact.open(place.path).check()
            return "pulled"
        origin = read_origin(place.path)
        if not files or origin is None:
            return "here already"
        for file in files:  # still named as left out until all of them are there
            target = place.path / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            (staged / file.path).rename(target)
        here = {*(file.path for file in place.manifest.files)} - {*origin.left_out}
        self._origin(place, here | {file.path for file in files}, shared).write(place.path)
        Artifact.open(place.path).check()
        return "completed"

    def _origin(self, place: Placement, here: set[str], shared: SharedSet) -> Origin:
        return Origin(
            ORIGIN_VERSION, endpoint(), self.remote.repository, self.remote.commit,
            shared.artifact, place.shared.reference, place.shared.digest, now(),
            tuple(file.path for file in place.manifest.files if file.path not in here),
        )  # fmt: skip


def _move(staged: Path, target: Path) -> None:
    """Put a whole directory in its place.

    Raises:
        ArtifactError: Another process has put one there.
    """
    for directory in (staged, *staged.rglob("*/")):
        sync(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ArtifactError(f"{target} has been made meanwhile", _KEPT) from error
    sync(target.parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from the same pull, where the file system has locks.

    Raises:
        ArtifactError: Another one is under way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RECORD_NAME).open("a+", encoding="utf-8") as lock:
        try:
            lock_file(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"another process pulls into {folder}", "wait for it to end"
            ) from error
        yield


class _Joined:
    """Reports the downloads of several files to one task."""

    def __init__(self, progress: Progress, task: Task) -> None:
        self._progress, self._task = progress, task

    def message(self, text: str) -> None:
        """Pass a line on."""
        self._progress.message(text)

    @contextlib.contextmanager
    def task(
        self, title: str, total: int | None, unit: str = "it", start: int = 0
    ) -> Iterator[Task]:
        """Yield the task of all files."""
        del title, total, unit
        if start:
            self._task.advance(start)
        yield self._task


@dataclass(frozen=True, eq=False)
class Placement:
    """The place of one artifact.

    Attributes:
        shared: What the set says of it.
        manifest: Its manifest, the original one unless it or an input of it was renamed.
        path: Its directory in the workspace.
        exists: Whether the same artifact is there already.
        renamed: Whether the manifest is not the original one.
    """

    shared: SharedArtifact
    manifest: Manifest
    path: Path
    exists: bool
    renamed: bool

    @property
    def reference(self) -> str:
        """Its reference in the workspace."""
        manifest = self.manifest
        return format_reference(manifest.type, manifest.name, manifest.version)


def place_artifacts(
    shared: SharedSet, manifests: Mapping[str, Manifest], root: Path, name: str = ""
) -> list[Placement]:
    """Choose the place of every artifact of a set, parents first.

    With `name`, the pushed artifact gets it, and so do those of its lineage whose place belongs to
    another artifact (`name-theirs` where they have another name than it). What derives from a
    renamed artifact names it as its input, so that its manifest changes, too.

    Args:
        shared: The set.
        manifests: Reference to original manifest.
        root: The workspace.
        name: Name for the pushed artifact, or "" for its own.

    Raises:
        ArtifactError: A place belongs to another artifact, or `name` cannot name one.
    """
    if name:
        check_name(name)
    by_digest = {item.digest: item for item in shared.artifacts}
    derived = {
        digest: [one.digest for one in manifests[item.reference].inputs]
        for digest, item in by_digest.items()
    }
    places: list[Placement] = []
    moved: dict[str, InputRef] = {}
    for digest in parents_first(derived):
        item = by_digest[digest]
        place = _place(item, shared, manifests[item.reference], root, name, moved)
        places.append(place)
        if place.renamed:
            changed = hashlib.sha256(place.manifest.to_bytes()).hexdigest()
            moved[digest] = InputRef(place.manifest.type, place.reference, changed)
    taken = [place.reference for place in places]
    if len({*taken}) < len(taken):
        raise ArtifactError(f"two artifacts would be called '{name}'", "choose another --name")
    return places


def _place(
    item: SharedArtifact, shared: SharedSet, manifest: Manifest, root: Path, name: str,
    moved: Mapping[str, InputRef],
) -> Placement:  # fmt: skip
    inputs = tuple(moved.get(one.digest, one) for one in manifest.inputs)
    own, main = item.parsed, shared.main.parsed
    names = [] if name and item is shared.main else [own.name]
    if name:
        names.append(name if own.name == main.name else f"{name}-{own.name}")
    for chosen in names:
        path = root / folder_of(replace(own, name=chosen))
        changed = replace(manifest, name=chosen, inputs=inputs)
        renamed = changed != manifest
        exists = os.path.lexists(path)
        if not exists or _holds(path, item, changed, renamed=renamed):
            return Placement(item, changed, path, exists=exists, renamed=renamed)
    taken = format_reference(own.type, names[-1], own.version)
    raise ArtifactError(
        f"{taken} is another artifact in {root}",
        "choose another --name" if name else f"pull it under another name: --name {main.name}-hf",
    )


def _holds(path: Path, item: SharedArtifact, manifest: Manifest, *, renamed: bool) -> bool:
    """Tell whether a place holds this artifact already.

    Raises:
        ArtifactError: It does, but the artifact is damaged.
    """
    try:
        artifact, origin = Artifact.open(path), read_origin(path)
    except ArtifactError:
        return False
    if renamed:
        same = origin is not None and origin.digest == item.digest
        if not same or artifact.manifest != manifest:
            return False
    elif artifact.digest != item.digest:
        return False
    artifact.check()
    return True
