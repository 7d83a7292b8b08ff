"""Which artifacts a stage reads: named ones, or the newest finished chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.stages.stage import Stage


def resolve_inputs(
    stage: Stage,
    config: Any,
    workspace: Workspace,
    named: Mapping[str, str],
    run: str = "",
) -> dict[str, Artifact]:
    """Find the artifacts a stage reads; the workspace checks their files.

    The last of the stage's kinds is looked up; the others are taken from what it was made
    from, so that parts of different models never meet.

    Args:
        stage: The stage about to run.
        config: Its configuration.
        workspace: Where to look.
        named: Kind to reference, for the kinds that were named.
        run: Name of the chain to take when several qualify, or "".

    Returns:
        Kind to artifact, in the order of `stage.inputs`.

    Raises:
        ArtifactError: One is missing, ambiguous, damaged, or of another lineage.
        ConfigError: A kind was named that the stage does not read.
    """
    kinds = stage.reads(config, named)
    for kind in named:
        if kind not in kinds:
            raise ConfigError(f"{stage.command} reads no {kind} here", did_you_mean(kind, kinds))
    if not kinds:
        return {}
    leading = workspace.resolve(kinds[-1], named.get(kinds[-1], ""), run)
    found = with_ancestors(kinds, leading, workspace)
    for kind, reference in named.items():
        _check_lineage(workspace.resolve(kind, reference), found[kind], leading)
    return found


def with_ancestors(
    kinds: tuple[str, ...], leading: Artifact, workspace: Workspace
) -> dict[str, Artifact]:
    """Return `leading` and, for the other kinds, the artifacts it was made from.

    Raises:
        ArtifactError: `leading` was not made from an artifact of one of the kinds.
    """
    ancestors = workspace.ancestors(leading, kinds[:-1]) if len(kinds) > 1 else {}
    found: dict[str, Artifact] = {}
    for kind in kinds[:-1]:
        if kind not in ancestors:
            raise ArtifactError(
                f"{leading.reference} was not made from any {kind}",
                f"see: lwdctl lineage {leading.reference}",
            )
        found[kind] = ancestors[kind]
    return {**found, kinds[-1]: leading}


def _check_lineage(named: Artifact, used: Artifact, leading: Artifact) -> None:
    if named.path.resolve() != used.path.resolve():
        raise ArtifactError(
            f"{leading.reference} was made from {used.reference}, not from {named.reference}",
            f"name a {leading.type} that was made from {named.reference}, "
            f"or leave out --{named.type}",
        )
