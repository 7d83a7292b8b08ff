"""A finished artifact, and the checks that its files are what the manifest says."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lwdctl.artifacts.files import is_known_digest, remember_digest, sha256_of
from lwdctl.artifacts.manifest import MANIFEST_NAME, Manifest, PayloadFile
from lwdctl.artifacts.origin import ORIGIN_NAME, Origin, read_origin
from lwdctl.artifacts.references import format_reference
from lwdctl.artifacts.stored_files import read_stored, stored_files
from lwdctl.core.errors import ArtifactError

SMALL_FILE = 16 * 2**20
"""Files below this many bytes are hashed by every consumer."""
_SHORT_JSON = 2**20
_CHECKED: ContextVar[set[tuple[Path, str]] | None] = ContextVar("checked", default=None)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact, read-only.

    Attributes:
        type: Artifact type (`"vae"`).
        name: Name that its versions share.
        version: Number of this version, from 1.
        path: Its directory.
        manifest: What `manifest.json` says.
    """

    type: str
    name: str
    version: int
    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, artifact_type: str = "") -> Artifact:
        """Open the artifact directory at `path`.

        Raises:
            ArtifactError: It has no valid manifest, or is not of the type expected.
        """
        manifest = Manifest.read(path / MANIFEST_NAME, artifact_type)
        return cls(manifest.type, manifest.name, manifest.version, path, manifest)

    @property
    def reference(self) -> str:
        """`type/name:vN`."""
        return format_reference(self.type, self.name, self.version)

    @property
    def method(self) -> str:
        """Method of the policy that a baseline holds (`"dp"`); "" for every other artifact.

        The versions of one baseline may hold policies of several methods.
        """
        return str(self.manifest.config.get("method", "")) if self.type == "baseline" else ""

    @property
    def digest(self) -> str:
        """SHA-256 of its `manifest.json`, which pins every payload file as well."""
        return hashlib.sha256(read_stored(self.path, MANIFEST_NAME)).hexdigest()

    @property
    def origin(self) -> Origin | None:
        """Where it was pulled from, None where it was made here."""
        return read_origin(self.path)

    def held_files(self) -> list[PayloadFile]:
        """Return the payload files that are here.

        These are all files of the manifest, except those that a pulled artifact was shared without.
        """
        origin = self.origin
        left_out = frozenset(origin.left_out if origin else ())
        return [
            file
            for file in self.manifest.files
            if file.path not in left_out or os.path.lexists(self.path / file.path)
        ]

    def payload(self, relative: str) -> Path:
        """Return the path of a payload file or directory.

        Raises:
            ArtifactError: The artifact has none of that name.
        """
        path = self.path / relative
        if not path.exists():
            raise ArtifactError(
                f"{self.reference} has no '{relative}' in {self.path}", self._again()
            )
        return path

    def read(self, file: PayloadFile) -> bytes:
        """Return the content of a small payload file, compared with its digest.

        Raises:
            ArtifactError: The file is missing, differs, is a link, or too large to be read at once.
        """
        content = read_stored(self.path, file.path)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise self._damaged(self.path / file.path, hashlib.sha256(content).hexdigest(), file)
        return content

    def files_in(self, folder: str, suffix: str = "") -> list[PayloadFile]:
        """Return the payload files that lie directly in a folder, sorted by name."""
        inside = (
            file
            for file in self.held_files()
            if PurePosixPath(file.path).parent == PurePosixPath(folder)
        )
        found = (file for file in inside if file.path.endswith(suffix))
        return sorted(found, key=lambda file: file.path)

    def check(self) -> None:
        """Check the files before they are read.

        Refuses links, pipes and devices anywhere in the artifact. Compares the sizes of all files,
        the SHA-256 of small files always and of large files once per machine. Zarr chunks are left
        to the crc32c that is checked when they are read. Inside `checked_once` an artifact that was
        checked is not checked again.

        Raises:
            ArtifactError: A file is missing or differs, or there is something else than files.
        """
        checked = _CHECKED.get()
        if checked is None:
            self._check_files()
        elif (key := (self.path, self.digest)) not in checked:
            self._check_files()
            checked.add(key)

    def _check_files(self) -> None:
        found = self._stored()
        for file in self.held_files():
            path = self._check_size(file, found)
            if _is_zarr_chunk(file.path):
                continue
            if file.size < SMALL_FILE:
                self._check_digest(path, file)
            elif not is_known_digest(path, file.sha256):
                self._check_digest(path, file)
                remember_digest(path, file.sha256)

    def check_quickly(self) -> None:
        """Check that all files are there with their sizes, and the content of short JSON files.

        Raises:
            ArtifactError: A file is missing or differs, or there is something else than files.
        """
        found = self._stored()
        for file in self.held_files():
            path = self._check_size(file, found)
            if file.path.endswith(".json") and file.size < _SHORT_JSON:
                self._check_digest(path, file)

    def verify(self) -> int:
        """Read every payload byte again and compare it with its digest.

        Returns:
            Bytes read, in files and again in zarr chunks.

        Raises:
            ArtifactError: A file is missing, differs, or is not in the manifest; or there are links
                or chunks that cannot be decoded.
        """
        total = 0
        found = self._stored()
        for file in self.held_files():
            self._check_digest(self._check_size(file, found), file)
            total += file.size
        known = {file.path for file in self.manifest.files} | {MANIFEST_NAME, ORIGIN_NAME}
        for name in sorted(found - known):
            raise ArtifactError(
                f"{self.reference}: {self.path / name} is not in the manifest", "move it elsewhere"
            )
        for store in self._zarr_stores():
            # Imported here: listing artifacts must not load zarr.
            from lwdctl.artifacts.zarr_columns import read_every_chunk

            total += read_every_chunk(store)
        return total

    def _stored(self) -> set[str]:
        """Return the names of all files there are.

        Raises:
            ArtifactError: There is something else than files, or files with holes that together
                declare more bytes than the disk has, which would be read for days.
        """
        found = {path.relative_to(self.path).as_posix() for path in stored_files(self.path)}
        declared = sum(file.size for file in self.held_files())
        disk = shutil.disk_usage(self.path).total
        if declared > max(disk, SMALL_FILE):
            raise ArtifactError(
                f"{self.reference}: its manifest declares files of {declared / 1e9:,.0f} GB; the"
                f" disk that holds it has {disk / 1e9:,.0f} GB",
                self._again(),
            )
        return found

    def _check_size(self, file: PayloadFile, found: Collection[str]) -> Path:
        path = self.path / file.path
        if PurePosixPath(file.path).as_posix() not in found:
            raise ArtifactError(f"{self.reference}: {path} is missing", self._again())
        size = path.stat().st_size
        if size != file.size:
            raise ArtifactError(
                f"{self.reference}: {path} has {size} bytes, the manifest says {file.size}",
                self._again(),
            )
        return path

    def _check_digest(self, path: Path, file: PayloadFile) -> None:
        found = sha256_of(path)
        if found != file.sha256:
            raise self._damaged(path, found, file)

    def _damaged(self, path: Path, found: str, file: PayloadFile) -> ArtifactError:
        return ArtifactError(
            f"{self.reference}: {path} is damaged: its SHA-256 is {found}, "
            f"the manifest says {file.sha256}",
            self._again(),
        )

    def _zarr_stores(self) -> Iterator[Path]:
        left_out = {*self.manifest.files} - {*self.held_files()}
        stores, incomplete = _stores(self.manifest.files), _stores(left_out)
        yield from (self.path / store for store in sorted(stores - incomplete))

    def _again(self) -> str:
        return (
            f"make it again or restore a copy; check all of it with: lwdctl verify {self.reference}"
        )


@contextmanager
def checked_once() -> Iterator[None]:
    """Check every artifact once, however often it is met, while a plan is made."""
    if _CHECKED.get() is not None:
        yield
        return
    token = _CHECKED.set(set())
    try:
        yield
    finally:
        _CHECKED.reset(token)


def _stores(files: Collection[PayloadFile]) -> set[PurePosixPath]:
    """Return the zarr stores that some files belong to."""
    return {
        PurePosixPath(*parts[: index + 1])
        for file in files
        for parts in [PurePosixPath(file.path).parts]
        for index, part in enumerate(parts)
        if part.endswith(".zarr")
    }


def _is_zarr_chunk(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return any(part.endswith(".zarr") for part in parts[:-1]) and parts[-1] != "zarr.json"
