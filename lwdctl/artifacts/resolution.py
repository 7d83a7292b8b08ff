"""Which artifact is meant: by reference, or as the newest of the newest chain."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lwdctl.artifacts import catalog, lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.kinds import Reference, how_to_make, version_directory, version_of
from lwdctl.artifacts.manifest import MANIFEST_NAME
from lwdctl.core.errors import ArtifactError
from lwdctl.core.suggest import did_you_mean

_WHAT_THERE_IS = "`lwdctl list` shows what there is"


def is_path(reference: str) -> bool:
    """Tell whether a reference is meant as a path to an artifact directory."""
    if reference.startswith((".", "~", os.sep)):
        return True
    return os.sep in reference and (Path(reference) / MANIFEST_NAME).is_file()


def resolve_name(root: Path, kind: str, wanted: Reference, run: str) -> Artifact:
    """Return the version that a parsed reference names.

    Raises:
        ArtifactError: No such name or version, another kind or run, or it is damaged.
    """
    kind = _kind_of(root, kind, wanted)
    folder = root / kind / wanted.name
    directories = catalog.version_directories(root, kind, wanted.name)
    versions = [version_of(path.name) for path in directories]
    if not versions:
        names = {path.parent.name for path in catalog.version_directories(root, kind)}
        raise ArtifactError(
            f"no finished {kind} is called '{wanted.name}' in {root}",
            did_you_mean(wanted.name, names) or how_to_make(kind),
        )
    if wanted.version and wanted.version not in versions:
        raise ArtifactError(
            f"{kind}/{wanted.name} has no version v{wanted.version} in {root}",
            "there is " + ", ".join(f"v{version}" for version in versions),
        )
    found = catalog.open_version(folder / version_directory(wanted.version or versions[-1]))
    roots = lineage.root_names(found, root)
    if run and run != found.name and run not in roots:
        raise ArtifactError(
            f"{found.reference} does not belong to the run '{run}'",
            f"it descends from {', '.join(sorted(roots))}",
        )
    return found


def resolve_newest(root: Path, kind: str, run: str, choose: str = "") -> Artifact:
    """Return the newest of the one chain that has this kind.

    Args:
        root: Workspace to look in.
        kind: Artifact type.
        run: Keep only what has this name, or descends from a root of this name.
        choose: Hint of how to name one where several chains have it; "" puts the stages' options.

    Raises:
        ArtifactError: No chain has it, several unrelated ones have, or the newest version
            is damaged.
    """
    known: dict[str, frozenset[str]] = {}
    chains: dict[frozenset[str], list[Artifact]] = {}
    candidates = catalog.finished(root, kind)
    for item in candidates:
        roots = lineage.root_names(item, root, known)
        if not run or run == item.name or run in roots:
            chains.setdefault(roots, []).append(item)
    if not chains:
        names = {item.name for item in candidates}.union(*known.values())
        raise _nothing(root, kind, run, names)
    if len(chains) > 1:
        raise _ambiguous(root, kind, chains, choose)
    (chain,) = chains.values()
    newest = chain[-1]
    # A damaged later version must not be passed over in silence.
    last = catalog.version_directories(root, newest.kind, newest.name)[-1]
    if version_of(last.name) > newest.version:
        catalog.open_version(last)
    return newest


def _kind_of(root: Path, kind: str, wanted: Reference) -> str:
    if kind and wanted.kind and kind != wanted.kind:
        raise ArtifactError(
            f"'{wanted.kind}/{wanted.name}' is of kind '{wanted.kind}', not '{kind}'",
            f"name one of kind '{kind}'; {_WHAT_THERE_IS}",
        )
    if kind or wanted.kind:
        return kind or wanted.kind
    directories = catalog.version_directories(root, name=wanted.name)
    kinds = sorted({path.parts[-3] for path in directories})
    if not kinds:
        raise ArtifactError(f"nothing is called '{wanted.name}' in {root}", _WHAT_THERE_IS)
    if len(kinds) > 1:
        choices = ", ".join(f"{item}/{wanted.name}" for item in kinds)
        raise ArtifactError(
            f"several kinds of artifact are called '{wanted.name}' in {root}",
            f"name one: {choices}",
        )
    return kinds[0]


def _nothing(root: Path, kind: str, run: str, names: set[str]) -> ArtifactError:
    unusable = list(catalog.damaged(root, kind))
    if unusable:
        return ArtifactError(unusable[-1].reason, how_to_make(kind))
    if run and names:
        return ArtifactError(
            f"no finished {kind} in {root} belongs to the run '{run}'", did_you_mean(run, names)
        )
    return ArtifactError(f"there is no finished {kind} in {root}", how_to_make(kind))


def _ambiguous(
    root: Path, kind: str, chains: Mapping[frozenset[str], Sequence[Artifact]], choose: str
) -> ArtifactError:
    listed = "; ".join(
        f"{items[-1].reference} (from {', '.join(sorted(roots))})"
        for roots, items in chains.items()
    )
    example = min(min(roots) for roots in chains)
    return ArtifactError(
        f"several unrelated chains in {root} have {kind}: {listed}",
        choose or f"choose one with --run NAME (--run {example}) or name it with --{kind} NAME",
    )
