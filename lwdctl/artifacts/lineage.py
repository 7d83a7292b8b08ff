"""Lineage: what artifacts derive from, followed through the digests in their manifests."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.manifest import InputRef, plain
from lwdctl.artifacts.references import how_to_make, parse_reference, version_directory
from lwdctl.configs import BaselineConfig, DiffusionConfig, EncodeConfig, VaeConfig
from lwdctl.core.config import list_text, to_mapping
from lwdctl.core.errors import ArtifactError

_DECIDE_NOTHING = frozenset(
    {"seed", "device", "threads", "cuda_graphs", "cache", "snapshots", "paths", "max_bytes"}
)
_CONFIGS = {
    "vae": VaeConfig, "latents": EncodeConfig, "diffusion": DiffusionConfig,
    "baseline": BaselineConfig,
}  # fmt: skip


def settings_of(artifact: Artifact) -> dict[str, Any]:
    """Return the settings that say what an artifact is, but for seeds.

    Two trainings that differ in their seed, or in where and how fast they ran, have the same ones.
    What was trained before a setting existed has its default.
    """
    known = _CONFIGS.get(artifact.type)
    defaults = plain(to_mapping(known())) if known else {}
    config = {**defaults, **artifact.manifest.config}
    return {name: value for name, value in config.items() if name not in _DECIDE_NOTHING}


def options_of(artifact: Artifact | None, **others: Any) -> str:
    """Return the settings that made an artifact and are no defaults, as options of its command.

    Args:
        artifact: What was made; None for nothing but the other settings.
        **others: Settings to have instead, written even where they are defaults.
    """
    known = _CONFIGS.get(artifact.type) if artifact else None
    defaults = plain(to_mapping(known())) if known else {}
    made = settings_of(artifact) if artifact else {}
    chosen = {name: value for name, value in made.items() if value != defaults.get(name, value)}
    words = []
    for name, value in (chosen | others).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif name != "method":  # which is an argument
            text = list_text(value) if isinstance(value, list) else str(value)
            words.append(f"--{option} {shlex.quote('none' if value is None else text)}")
    return "".join(f" {word}" for word in words)


def input_ref(artifact: Artifact, root: Path) -> InputRef:
    """Describe `artifact` as an input of something made in the workspace at `root`."""
    inside = workspace_of(artifact, root).resolve() == root.resolve()
    reference = artifact.reference if inside else str(artifact.path.resolve())
    return InputRef(artifact.type, reference, artifact.digest)


def workspace_of(artifact: Artifact, default: Path) -> Path:
    """Return the workspace that an artifact's directory stands in."""
    path = artifact.path.resolve()
    expected = (artifact.type, artifact.name, version_directory(artifact.version))
    return path.parents[2] if path.parts[-3:] == expected else default


def find_input(reference: InputRef, root: Path) -> Artifact:
    """Open an input and check that it is still the one that was used.

    Raises:
        ArtifactError: It is gone or was changed.
    """
    path = _input_path(reference, root)
    if not path.is_dir():
        raise ArtifactError(
            f"the input {reference.reference} is gone: there is no {path}",
            how_to_make(reference.type),
        )
    artifact = Artifact.open(path, reference.type)
    if artifact.digest != reference.digest:
        raise ArtifactError(
            f"the input {reference.reference} changed: the digest of its manifest is "
            f"{artifact.digest}, not the recorded {reference.digest}",
            "restore it, or make again what derives from it",
        )
    return artifact


def parents(artifact: Artifact, root: Path) -> list[Artifact]:
    """Return the direct inputs, in the order of the manifest.

    Raises:
        ArtifactError: One is gone or changed.
    """
    home = workspace_of(artifact, root)
    return [find_input(item, home) for item in artifact.manifest.inputs]


def ancestors(
    artifact: Artifact, root: Path, types: Collection[str] | None = None
) -> dict[str, Artifact]:
    """Return everything that `artifact` derives from, by type.

    Args:
        artifact: Where to begin; it is not returned itself.
        root: Workspace to look in.
        types: Types that are needed, or None for all. Others may be gone, or differ.

    Raises:
        ArtifactError: One that is needed is gone or changed, or two differ in one type.
    """
    found: dict[str, Artifact] = {}
    home = workspace_of(artifact, root)
    for item in artifact.manifest.inputs:
        needed = types is None or item.type in types
        if not needed and not _input_path(item, home).is_dir():
            continue
        parent = find_input(item, home)
        for one in (parent, *ancestors(parent, root, types).values()):
            if types is None or one.type in types:
                _add(found, one, artifact)
    return found


def trace(artifacts: Sequence[Artifact], root: Path) -> tuple[dict[str, Artifact], dict[str, str]]:
    """Follow the inputs of some artifacts back to their sources.

    Returns:
        What was found by digest, the one finished first first, and why other digests are missing.
    """
    found: dict[str, Artifact] = {}
    lost: dict[str, str] = {}
    waiting = list(artifacts)
    while waiting:
        artifact = waiting.pop()
        if artifact.digest in found:
            continue
        found[artifact.digest] = artifact
        home = workspace_of(artifact, root)
        for item in artifact.manifest.inputs:
            try:
                waiting.append(find_input(item, home))
            except ArtifactError as error:
                lost[item.digest] = error.message
    ordered = sorted(
        found.values(), key=lambda item: (str(item.manifest.provenance["finished"]), item.reference)
    )
    return {item.digest: item for item in ordered}, lost


def check_agreement(inputs: Sequence[Artifact], root: Path) -> None:
    """Check that no two inputs derive from different artifacts of one type.

    Inputs of one and the same type are a deliberate comparison and are not checked.

    Raises:
        ArtifactError: Two disagree; the message says which and in what.
    """
    if len({item.type for item in inputs}) < len(inputs):
        return
    seen: dict[str, tuple[dict[str, InputRef], Artifact]] = {}
    for item in inputs:
        own: dict[str, dict[str, InputRef]] = {}
        for reference in (input_ref(item, root), *_walk(item, root)):
            own.setdefault(reference.type, {})[reference.digest] = reference
        for kind, references in own.items():
            others, user = seen.setdefault(kind, (references, item))
            # An evaluation may derive from several models, of which another input is one.
            missing, added = others.keys() - references, references.keys() - others
            if missing and added:
                raise ArtifactError(
                    f"{user.reference} and {item.reference} do not belong together: "
                    f"{_use(user, others[min(missing)])}, {_use(item, references[min(added)])}",
                    f"name inputs of one lineage; compare: lwdctl lineage {item.reference}",
                )
            if missing:
                seen[kind] = references, item


def root_names(
    artifact: Artifact, root: Path, known: dict[str, frozenset[str]] | None = None
) -> frozenset[str]:
    """Return the names of the artifacts without inputs that this one descends from.

    An input that is gone counts by its name: finding another artifact must not fail over it.

    Args:
        artifact: Where to begin.
        root: Workspace to look in.
        known: Results so far, by digest; filled on the way.
    """
    known = {} if known is None else known
    home = workspace_of(artifact, root)
    names: frozenset[str] = frozenset()
    for item in artifact.manifest.inputs:
        if item.digest not in known:
            try:
                parent = find_input(item, home)
            except ArtifactError:
                known[item.digest] = frozenset({_input_path(item, home).parts[-2]})
            else:
                known[item.digest] = root_names(parent, root, known)
        names |= known[item.digest]
    return names or frozenset({artifact.name})


def _input_path(reference: InputRef, root: Path) -> Path:
    if Path(reference.reference).is_absolute():
        return Path(reference.reference)
    parsed = parse_reference(reference.reference)
    return root / reference.type / parsed.name / version_directory(parsed.version)


def _walk(artifact: Artifact, root: Path) -> Iterator[InputRef]:
    home = workspace_of(artifact, root)
    for item in artifact.manifest.inputs:
        yield item
        if _input_path(item, home).is_dir():
            yield from _walk(find_input(item, home), root)


def _use(user: Artifact, reference: InputRef) -> str:
    if user.type == reference.type:
        return f"one is {reference.reference}"
    return f"{user.reference} derives from {reference.reference}"


def _add(found: dict[str, Artifact], one: Artifact, of: Artifact) -> None:
    other = found.setdefault(one.type, one)
    if other.path != one.path and other.digest != one.digest:
        raise ArtifactError(
            f"{of.reference} descends from two of type '{one.type}': "
            f"{other.reference} and {one.reference}",
            "name the one that is meant",
        )
