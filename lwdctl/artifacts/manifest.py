"""`manifest.json`: what an artifact is, what it was made from, and every file it holds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lwdctl.artifacts.durable import write_durably
from lwdctl.core.errors import ArtifactError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class InputRef:
    """An artifact that another was made from.

    Attributes:
        kind: Its kind.
        reference: `kind/name:vN` in the same workspace, else its absolute path.
        digest: SHA-256 of its `manifest.json`.
    """

    kind: str
    reference: str
    digest: str


@dataclass(frozen=True)
class PayloadFile:
    """One file of an artifact: POSIX path relative to its directory, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    The file also holds a digest of all the rest, so that a changed byte in it is seen.

    Attributes:
        kind: Kind of artifact (`"vae"`).
        schema_version: Version of this record's layout.
        name: Name that versions share.
        version: Number of this version, from 1.
        config: Full resolved configuration.
        inputs: What it was made from.
        files: Every payload file.
        summary: The numbers that `show` prints.
        provenance: Software, machine, seed and times.
    """

    kind: str
    schema_version: int
    name: str
    version: int
    config: Mapping[str, Any]
    inputs: tuple[InputRef, ...]
    files: tuple[PayloadFile, ...]
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, kind: str = "") -> Manifest:
        """Read and check a manifest file.

        Args:
            path: The `manifest.json`.
            kind: Kind that is expected, or "" for any.

        Raises:
            ArtifactError: It is missing, not JSON, changed since it was written, of an
                unknown schema version, or of another kind.
        """
        body = _load(path)
        _check_schema(path, body)
        digest = body.pop("digest", None)
        if digest != _digest(body):
            raise ArtifactError(
                f"{path} was changed after it was written", "make the artifact again, or restore it"
            )
        manifest = _build(path, body)
        if kind and manifest.kind != kind:
            raise ArtifactError(
                f"{path.parent} is an artifact of kind '{manifest.kind}', not '{kind}'",
                f"name one of kind '{kind}'; `lwdctl list` shows what there is",
            )
        return manifest

    def write(self, path: Path) -> None:
        """Write the manifest file as a whole and force it to the disk."""
        body = plain(asdict(self))
        write_durably(path, _render({**body, "digest": _digest(body)}))


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it.

    NumPy scalars and arrays become numbers and lists, paths text, tuples lists; a number
    that JSON lacks (NaN, infinity) becomes null.

    Raises:
        TypeError: A value of any other type.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars alike
        return plain(value.tolist())
    raise TypeError(f"a manifest cannot hold {type(value).__name__}: {value!r}")


def _render(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render(body)).hexdigest()


def _load(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}", "make the artifact again") from error
    if not isinstance(body, dict):
        raise ArtifactError(f"{path} is not an lwdctl manifest")
    return body


def _check_schema(path: Path, body: Mapping[str, Any]) -> None:
    version = body.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version}, this lwdctl reads {SCHEMA_VERSION}",
            "use the lwdctl that wrote it (see its provenance), or make the artifact again",
        )


def _build(path: Path, body: Mapping[str, Any]) -> Manifest:
    try:
        manifest = Manifest(
            **{
                **body,
                "inputs": tuple(InputRef(**item) for item in body["inputs"]),
                "files": tuple(PayloadFile(**item) for item in body["files"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not an lwdctl manifest: {error}") from error
    for file in manifest.files:
        inside = PurePosixPath(file.path)
        if inside.is_absolute() or ".." in inside.parts:
            raise ArtifactError(f"{path} names a file outside its artifact: {file.path}")
    return manifest
