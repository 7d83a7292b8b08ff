"""What a push would send: the artifact, its lineage, and which of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lwdctl
from lwdctl.artifacts import lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import sha256_of
from lwdctl.artifacts.manifest import MANIFEST_NAME, PayloadFile
from lwdctl.artifacts.stored_files import stored_file
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.progress import Progress
from lwdctl.sharing.shared_set import (
    SET_VERSION,
    LeftOut,
    SharedArtifact,
    SharedSet,
    check_content,
    check_inputs,
    is_data,
    is_shared,
    parents_first,
)

NEEDED_TO_ACT = {"diffusion": ("snippets", "vae")}
"""Artifact type of a policy to the ancestors without which it cannot act."""


@dataclass(frozen=True)
class PushPlan:
    """What would be pushed.

    Attributes:
        shared: The record of the set.
        artifacts: Reference to artifact, parents first.
        gone: Why ancestors are not part of it.
    """

    shared: SharedSet
    artifacts: Mapping[str, Artifact]
    gone: tuple[str, ...]

    @property
    def main(self) -> Artifact:
        """The artifact that was named."""
        return self.artifacts[self.shared.artifact]

    @property
    def sources(self) -> dict[str, Path]:
        """Path in the repository to the file on the disk."""
        return {
            f"{item.folder}/{file.path}": self.artifacts[item.reference].path / file.path
            for item in self.shared.artifacts
            for file in item.files
        }


def plan_push(
    artifact: Artifact, root: Path, *, with_data: bool, license_id: str, progress: Progress
) -> PushPlan:
    """Find what to push, and compare every file with its digest.

    Args:
        artifact: What to push.
        root: The workspace that it stands in.
        with_data: Whether to push demonstrations and latents, too.
        license_id: The Hub's identifier of a license.
        progress: Where to report.

    Raises:
        ArtifactError: A file is damaged, or what the artifact needs to act is gone.
    """
    found, lost = lineage.trace([artifact], root)
    derived = {
        digest: [item.digest for item in one.manifest.inputs] for digest, one in found.items()
    }
    ordered = [found[digest] for digest in parents_first(derived)]
    missing = {*NEEDED_TO_ACT.get(artifact.type, ())} - {item.type for item in ordered}
    if missing:
        why = "; ".join(lost.values()) or "its manifest names none"
        raise ArtifactError(
            f"{artifact.reference} cannot act without its {' and '.join(sorted(missing))}: {why}",
            "restore them, or train again",
        )
    with progress.task("comparing digests", len(ordered), "artifact") as task:
        shared = []
        for item in ordered:
            shared.append(_share(item, with_data=with_data))
            task.advance()
    record = SharedSet(
        SET_VERSION, lwdctl.__version__, artifact.reference, license_id, tuple(shared)
    )
    artifacts = {item.reference: item for item in ordered}
    return PushPlan(record, artifacts, tuple(plain_text(why, 300) for why in lost.values()))


def _share(artifact: Artifact, *, with_data: bool) -> SharedArtifact:
    """Return which files of an artifact are shared.

    Raises:
        ArtifactError: One is damaged, is not what its name says, or an input is named by its path.
    """
    artifact.check_quickly()
    check_inputs(artifact.manifest, artifact.reference)
    held = {file.path for file in artifact.held_files()}
    files, left_out = [], []
    for file in artifact.manifest.files:
        if file.path in held and is_shared(file.path, with_data=with_data):
            _check_file(artifact, file)
            files.append(file)
        elif with_data and is_data(file.path):
            raise ArtifactError(
                f"{artifact.reference} was pulled without its data",
                "push it without --with-data, or pull it with --with-data first",
            )
        else:
            left_out.append(LeftOut(file.path, file.size))
    size = stored_file(artifact.path, MANIFEST_NAME).stat().st_size
    manifest = PayloadFile(MANIFEST_NAME, size, artifact.digest)
    return SharedArtifact(artifact.reference, artifact.digest, (manifest, *files), tuple(left_out))


def _check_file(artifact: Artifact, file: PayloadFile) -> None:
    path = stored_file(artifact.path, file.path)
    digest = sha256_of(path)
    if digest != file.sha256:
        raise ArtifactError(
            f"{path} is damaged: its SHA-256 is {digest}, the manifest says {file.sha256}",
            f"make it again or restore a copy; lwdctl verify {artifact.reference}",
        )
    check_content(artifact.path, file.path)
