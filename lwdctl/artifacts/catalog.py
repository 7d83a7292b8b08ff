"""What stands in a workspace: `<root>/<kind>/<name>/v0001/`, whole or damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.kinds import format_reference, version_of
from lwdctl.core.errors import ArtifactError


@dataclass(frozen=True)
class DamagedArtifact:
    """A version directory that cannot be used, and why."""

    reference: str
    path: Path
    reason: str


def version_directories(root: Path, kind: str = "", name: str = "") -> list[Path]:
    """Return the version directories below `root`, hidden ones left out, by version."""
    found = [
        path
        for path in sorted(root.glob(f"{kind or '*'}/{name or '*'}/v*"))
        if not any(part.startswith(".") for part in path.parts[-3:])
        and version_of(path.name)
        and path.is_dir()
    ]
    return sorted(found, key=lambda path: (path.parent, version_of(path.name)))


def inspect(path: Path) -> Artifact | DamagedArtifact:
    """Open a version directory, or say why it cannot be opened."""
    kind, name, version = path.parts[-3], path.parts[-2], version_of(path.name)
    reference = format_reference(kind, name, version)
    try:
        artifact = Artifact.open(path, kind)
    except ArtifactError as error:
        return DamagedArtifact(reference, path, error.message)
    if artifact.reference != reference:
        reason = f"{path} was renamed: its manifest says {artifact.reference}"
        return DamagedArtifact(reference, path, reason)
    return artifact


def open_version(path: Path) -> Artifact:
    """Open a version directory.

    Raises:
        ArtifactError: It is damaged.
    """
    entry = inspect(path)
    if isinstance(entry, DamagedArtifact):
        raise ArtifactError(entry.reason, "make it again, or move the directory elsewhere")
    return entry


def finished(root: Path, kind: str = "") -> list[Artifact]:
    """Return the intact artifacts below `root`, the one finished first first."""
    entries = map(inspect, version_directories(root, kind))
    return sorted((item for item in entries if isinstance(item, Artifact)), key=_age)


def damaged(root: Path, kind: str = "") -> Iterator[DamagedArtifact]:
    """Yield the version directories that cannot be used."""
    for path in version_directories(root, kind):
        entry = inspect(path)
        if isinstance(entry, DamagedArtifact):
            yield entry


def _age(artifact: Artifact) -> tuple[str, str, int]:
    return str(artifact.manifest.provenance["finished"]), artifact.name, artifact.version
