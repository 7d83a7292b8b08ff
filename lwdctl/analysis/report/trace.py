"""Everything some artifacts were made from, as far as it can still be found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lwdctl.artifacts import lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import ArtifactError


@dataclass
class Trace:
    """What was found: artifacts by digest, and why others are missing."""

    found: dict[str, Artifact] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def artifacts(self) -> list[Artifact]:
        """The artifacts, the one finished first first."""
        return sorted(
            self.found.values(),
            key=lambda item: (str(item.manifest.provenance["finished"]), item.reference),
        )


def trace(leading: Sequence[Artifact], root: Path) -> Trace:
    """Follow the inputs of some artifacts back to their sources.

    Args:
        leading: Where to begin; part of the answer.
        root: Workspace to look in.
    """
    answer = Trace()
    waiting = list(leading)
    while waiting:
        artifact = waiting.pop()
        if artifact.digest in answer.found:
            continue
        answer.found[artifact.digest] = artifact
        home = lineage.workspace_of(artifact, root)
        for item in artifact.manifest.inputs:
            try:
                waiting.append(lineage.find_input(item, home))
            except ArtifactError as error:
                answer.lost[item.digest] = error.message
    return answer
