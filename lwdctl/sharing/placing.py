"""Where pulled artifacts go in a workspace: their own place, or under another name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.manifest import InputRef, Manifest
from lwdctl.artifacts.origin import read_origin
from lwdctl.artifacts.references import check_name, format_reference
from lwdctl.core.errors import ArtifactError
from lwdctl.sharing.shared_set import SharedArtifact, SharedSet, folder_of, parents_first


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
