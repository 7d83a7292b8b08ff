"""The directory that holds all artifacts: `<root>/<kind>/<name>/v0001/`."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwdctl.artifacts import catalog, lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.catalog import DamagedArtifact
from lwdctl.artifacts.draft import Draft, new_draft, resume_draft
from lwdctl.artifacts.kinds import check_name, parse_reference
from lwdctl.artifacts.partials import DraftRecord, all_partials, is_active
from lwdctl.artifacts.resolution import is_path, resolve_name, resolve_newest

DEFAULT_ROOT = Path("lwd-runs")
ROOT_VARIABLE = "LWDCTL_WORKSPACE"


@dataclass(frozen=True)
class UnfinishedArtifact:
    """A draft on disk, and whether a running process is at work on it."""

    record: DraftRecord
    active: bool


class Workspace:
    """Finds, opens and begins artifacts below one directory.

    Args:
        root: The directory; it is made when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def locate(cls, explicit: str | Path | None = None) -> Workspace:
        """Return the workspace named, else `$LWDCTL_WORKSPACE`, else `./lwd-runs`."""
        return cls(Path(explicit or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser())

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """Return the finished artifacts, oldest first; damaged ones are in `damaged`."""
        return catalog.finished(self.root, kind or "")

    def damaged(self, kind: str | None = None) -> list[DamagedArtifact]:
        """Return the version directories whose manifest cannot be used."""
        return list(catalog.damaged(self.root, kind or ""))

    def drafts(self, kind: str | None = None) -> list[UnfinishedArtifact]:
        """Return what is unfinished, oldest first."""
        records = sorted(all_partials(self.root, kind), key=lambda record: record.started)
        return [UnfinishedArtifact(record, is_active(record.path)) for record in records]

    def resolve(
        self, kind: str, reference: str = "", run: str = "", *, choose: str = ""
    ) -> Artifact:
        """Find the artifact that is meant and check its files.

        Args:
            kind: Kind that is needed, or "" for any (then `reference` must say enough).
            reference: `name`, `name:v2`, `name:latest`, any of these after `kind/`, or a
                path to an artifact directory. "" takes the newest of the newest chain.
            run: Keep only what has this name, or descends from a root of this name.
            choose: Hint of how to name one where several are unrelated; "" puts the options of
                the stages.

        Raises:
            ArtifactError: None, several unrelated, a damaged one, or another kind.
        """
        if reference and is_path(reference):
            artifact = Artifact.open(Path(reference).expanduser(), kind)
        elif reference:
            artifact = resolve_name(self.root, kind, parse_reference(reference), run)
        else:
            artifact = resolve_newest(self.root, kind, run, choose)
        artifact.check()
        return artifact

    def inputs_of(self, artifact: Artifact) -> dict[str, Artifact]:
        """Return the direct inputs by kind, checked.

        Raises:
            ArtifactError: One is gone, changed or damaged.
        """
        found = {item.kind: item for item in lineage.parents(artifact, self.root)}
        for item in found.values():
            item.check()
        return found

    def ancestors(
        self, artifact: Artifact, kinds: Collection[str] | None = None
    ) -> dict[str, Artifact]:
        """Return all that `artifact` was made from by kind, checked.

        Args:
            artifact: Where to begin; not part of the answer.
            kinds: Kinds that are needed, or None for all; others may be gone.

        Raises:
            ArtifactError: One is gone, changed or damaged, or two differ in one kind.
        """
        found = lineage.ancestors(artifact, self.root, kinds)
        for item in found.values():
            item.check()
        return found

    def chain(self, artifact: Artifact) -> frozenset[str]:
        """Return the names of the artifacts without inputs that this one descends from."""
        return lineage.root_names(artifact, self.root)

    def require_agreement(self, inputs: Sequence[Artifact]) -> None:
        """Refuse inputs whose lineages disagree (latents of another VAE).

        Raises:
            ArtifactError: Two disagree; the message says which.
        """
        lineage.require_agreement(inputs, self.root)

    def begin(
        self,
        kind: str,
        name: str,
        *,
        config: Mapping[str, Any],
        inputs: Sequence[Artifact] = (),
        resume: bool = False,
    ) -> Draft:
        """Begin an artifact, or take up an interrupted one.

        Args:
            kind: Kind to make.
            name: Its name; it becomes the next version of it.
            config: Full resolved configuration.
            inputs: What it is made from.
            resume: Go on in the newest draft with the same configuration and inputs.

        Raises:
            ArtifactError: A bad name, inputs that disagree, nothing to resume, or a
                workspace that cannot be written.
        """
        check_name(kind)
        check_name(name)
        self.require_agreement(inputs)
        references = tuple(lineage.input_ref(item, self.root) for item in inputs)
        start = resume_draft if resume else new_draft
        return start(self.root, kind, name, config, references)
