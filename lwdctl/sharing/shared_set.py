"""`lwdctl.json`: which artifacts a repository holds, with the size and SHA-256 of every file.

The files lie in the repository as they lie in a workspace: `vae/lift_mh/v0001/model.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath

from lwdctl.artifacts.manifest import (
    MANIFEST_NAME,
    Manifest,
    PayloadFile,
    digest_of,
    plain,
    with_digest,
)
from lwdctl.artifacts.origin import ORIGIN_NAME
from lwdctl.artifacts.references import (
    MAKERS,
    Reference,
    check_name,
    format_reference,
    parse_reference,
    version_directory,
)
from lwdctl.artifacts.stored_files import is_inside, read_stored, stored_file
from lwdctl.core.errors import ArtifactError, first_line
from lwdctl.core.plain_text import plain_text, visible
from lwdctl.core.untrusted import parse_json, typed

SET_NAME = "lwdctl.json"
SET_VERSION = 1
WEIGHTS, JSON = ".safetensors", ".json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCENE = re.compile(r"models/[0-9a-f]{64}\.xml")
_STORE = ".zarr"
_STORE_METADATA = "zarr.json"
_MOST_BYTES = 2**50
_MOST_CHARACTERS = 200
"""Of a name; file systems take 255, and a file in transfer has a longer one."""
_MOST_FOLDERS = 20
_PUSHED = "ask whoever pushed it to push it again, or name an earlier revision"


@dataclass(frozen=True)
class LeftOut:
    """A file of an artifact that was not shared."""

    path: str
    size: int


@dataclass(frozen=True)
class SharedArtifact:
    """One artifact of a set.

    Attributes:
        reference: `type/name:vN`.
        digest: SHA-256 of its manifest.
        files: The files in the repository, the manifest among them; paths are relative to the
            artifact's directory.
        left_out: What else the artifact holds.
    """

    reference: str
    digest: str
    files: tuple[PayloadFile, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def parsed(self) -> Reference:
        """The reference in parts."""
        return parse_reference(self.reference)

    @property
    def folder(self) -> str:
        """Its directory in the repository, as in a workspace."""
        return folder_of(self.parsed)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)

    @property
    def left_out_size(self) -> int:
        """Bytes of what was left out."""
        return sum(file.size for file in self.left_out)

    @property
    def left_out_names(self) -> list[str]:
        """What was left out, the files of one folder together: `snippets.zarr (54 files)`."""
        counts: dict[str, int] = {}
        for file in self.left_out:
            parts = PurePosixPath(file.path).parts
            counts[parts[0]] = counts.get(parts[0], 0) + 1
        return [f"{name} ({count} files)" if count > 1 else name for name, count in counts.items()]

    @property
    def manifest_file(self) -> PayloadFile:
        """The entry of its manifest."""
        return next(file for file in self.files if file.path == MANIFEST_NAME)


@dataclass(frozen=True)
class SharedSet:
    """The content of `lwdctl.json`.

    Attributes:
        schema_version: Version of this record's layout.
        lwdctl: Version of lwdctl that pushed it.
        artifact: Reference of the artifact that was pushed.
        license: Identifier of the license that it was pushed under.
        artifacts: That artifact and what it derives from, parents first.
    """

    schema_version: int
    lwdctl: str
    artifact: str
    license: str
    artifacts: tuple[SharedArtifact, ...]

    @property
    def main(self) -> SharedArtifact:
        """The artifact that was pushed."""
        return next(item for item in self.artifacts if item.reference == self.artifact)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.size for item in self.artifacts)

    def to_bytes(self) -> bytes:
        """Return the content of the file, with a digest of all the rest."""
        return with_digest(plain(asdict(self)))

    @classmethod
    def parse(cls, content: bytes, where: str) -> SharedSet:
        """Read and check what somebody pushed; no name in it leads out of its artifact.

        Args:
            content: The file.
            where: Its place, for messages.

        Raises:
            ArtifactError: It is no such record, was changed, or names what must not be pulled.
        """
        body = parse_json(content, where, hint=_PUSHED)
        version = body.get("schema_version") if isinstance(body, dict) else None
        if not isinstance(body, dict) or version != SET_VERSION:
            raise ArtifactError(
                f"{where}: schema version {plain_text(repr(version), 30)}, not {SET_VERSION}",
                "pip install --upgrade lwdctl, if it was pushed by a newer version",
            )
        digest = body.pop("digest", None)
        if digest != digest_of(body):
            raise ArtifactError(f"{where} was changed after it was written", _PUSHED)
        found = typed(cls, body, where, hint=_PUSHED)
        try:
            _check_set(found)
        except ArtifactError as error:
            raise ArtifactError(f"{where}: {error.message}", _PUSHED) from error
        except ValueError as error:
            raise ArtifactError(f"{where}: {plain_text(str(error), 300)}", _PUSHED) from error
        return found


def folder_of(reference: Reference) -> str:
    """Return the directory of a version below a workspace, as a POSIX path."""
    return f"{reference.type}/{reference.name}/{version_directory(reference.version)}"


def is_data(path: str) -> bool:
    """Tell whether a file holds demonstrations or latents: chunks and arrays of stores, scenes."""
    if _SCENE.fullmatch(path):
        return True
    folders = PurePosixPath(path).parts[:-1]
    stores = [part for part in folders if part.endswith(_STORE)]
    return bool(stores) and not (
        len(stores) == 1 and folders[-1] == stores[0] and path.endswith(f"/{_STORE_METADATA}")
    )


def is_shared(path: str, *, with_data: bool) -> bool:
    """Tell whether a payload file is shared: tensors and JSON, and with `with_data` the data."""
    return with_data if is_data(path) else path.endswith((WEIGHTS, JSON))


def check_content(directory: Path, name: str) -> None:
    """Check that a file is what its name says: JSON within bounds, or a safetensors file.

    Raises:
        ArtifactError: It is not.
    """
    if is_data(name):
        return  # checked by whatever opens the store
    path = stored_file(directory, name)
    if name.endswith(JSON):
        parse_json(read_stored(directory, name), str(path), allow_nan=True)
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(f"{path} is no safetensors file: {first_line(error)}") from error


def check_against_manifest(shared: SharedArtifact, manifest: Manifest, where: str) -> None:
    """Check that a set says of an artifact what the artifact's own manifest says.

    Raises:
        ArtifactError: Names, sizes or digests differ, or an input stands outside any workspace.
    """
    own = format_reference(manifest.type, manifest.name, manifest.version)
    if own != shared.reference:
        raise ArtifactError(f"{where} is the manifest of {own}, not of {shared.reference}", _PUSHED)
    known = {file.path: file for file in manifest.files}
    payload = [file for file in shared.files if file.path != MANIFEST_NAME]
    odd = next((file.path for file in payload if known.get(file.path) != file), "")
    listed = {file.path for file in payload} | {file.path for file in shared.left_out}
    odd = odd or min(listed ^ set(known), default="")
    if odd:
        raise ArtifactError(
            f"{where} and {SET_NAME} differ in the file {plain_text(odd, 200)}", _PUSHED
        )
    check_inputs(manifest, where)


def check_inputs(manifest: Manifest, where: str) -> None:
    """Check that an artifact names its inputs by references, which hold in any workspace.

    Raises:
        ArtifactError: One is a path.
    """
    for item in manifest.inputs:
        if Path(item.reference).is_absolute() or not parse_reference(item.reference).version:
            raise ArtifactError(
                f"{where}: derives from {plain_text(item.reference, 200)}, which is no version in"
                " the same workspace: a copy elsewhere would not find it",
                "make it again in the workspace that its inputs stand in",
            )


def _check_set(found: SharedSet) -> None:
    references = [item.reference for item in found.artifacts]
    if found.artifact not in references:
        raise ValueError(f"{found.artifact} is not among its artifacts")
    _check_once(references)
    for item in found.artifacts:
        parsed = item.parsed
        check_name(parsed.name)
        if parsed.type not in MAKERS or len(parsed.name) > _MOST_CHARACTERS:
            raise ValueError(f"{item.reference} is of no type of lwdctl's, or has too long a name")
        if item.reference != format_reference(parsed.type, parsed.name, parsed.version):
            raise ValueError(f"{item.reference} is not TYPE/NAME:vN")
        if not parsed.version:
            raise ValueError(f"{item.reference} has no version")
        _check_files(item)


def _check_files(item: SharedArtifact) -> None:
    paths = [file.path for file in item.files] + [file.path for file in item.left_out]
    _check_once(paths)
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    for path in paths:
        plain = is_inside(path) and PurePosixPath(path).as_posix() == path and visible(path) == path
        parts = PurePosixPath(path).parts
        fits = len(parts) <= _MOST_FOLDERS and max(map(len, parts), default=0) <= _MOST_CHARACTERS
        if not (plain and fits) or "\\" in path or path in folders or path == ORIGIN_NAME:
            raise ValueError(f"{item.reference} cannot have a file '{path}'")
    for file in item.files:
        if not is_shared(file.path, with_data=True):
            raise ValueError(f"{item.reference}: '{file.path}' is neither safetensors nor JSON")
        if not 0 <= file.size <= _MOST_BYTES or not _SHA256.fullmatch(file.sha256):
            raise ValueError(f"{item.reference}: '{file.path}' has no size or no SHA-256")
    manifests = [file.sha256 for file in item.files if file.path == MANIFEST_NAME]
    if manifests != [item.digest]:
        raise ValueError(f"{item.reference} has no {MANIFEST_NAME} of its digest")


def _check_once(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"'{name}' stands there twice")
        seen.add(name)


def parents_first(digests: Mapping[str, Iterable[str]]) -> list[str]:
    """Return artifacts so that each stands behind those that it derives from.

    Args:
        digests: Digest of each artifact to the digests of its inputs; others are passed over.
    """
    # Without cycles: no digest can be part of what it is made from.
    known = {one: [item for item in inputs if item in digests] for one, inputs in digests.items()}
    return [*TopologicalSorter(known).static_order()]
