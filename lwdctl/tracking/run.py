"""What a tracker is told about a run before its first number."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.lineage import ancestors, find_input
from lwdctl.artifacts.manifest import InputRef, plain
from lwdctl.artifacts.references import MAKERS, sanitize_name
from lwdctl.artifacts.run_in_progress import RunRecord
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import plain_text

ID_LENGTH = 16
LONGEST_NAME = 100
"""Characters of the name of a metric, a setting or a file."""
LONGEST_TAG = 60
"""Characters of a tag; wandb accepts 64."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it.

    Attributes:
        id: Hexadecimal digits; the same for the run in progress, resumed, finished and replayed.
        title: Type and name of its artifact (`"vae/lift_mh"`).
        stage: Stage that makes such artifacts (`"train-vae"`), or "".
        tags: Stage, methods and environment.
        config: Settings, inputs and title; JSON-ready.
        project: Project that it is filed under.
    """

    id: str
    title: str
    stage: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    project: str = ""


def run_of_record(record: RunRecord, root: Path) -> TrackedRun:
    """Describe an unfinished run of the workspace at `root`."""
    return _describe(record.type, record.name, record.started, record.config, record.inputs, root)


def run_of_artifact(artifact: Artifact, root: Path) -> TrackedRun:
    """Describe the run that made an artifact, as `run_of_record` described it before."""
    manifest = artifact.manifest
    started = str(manifest.provenance.get("started", ""))
    return _describe(manifest.type, manifest.name, started, manifest.config, manifest.inputs, root)


def run_in_memory(kind: str, environment: str, config: Mapping[str, Any]) -> TrackedRun:
    """Describe a run that makes no artifact."""
    stage = _stage(kind)
    return TrackedRun(
        secrets.token_hex(ID_LENGTH // 2),
        f"{kind}/in-memory",
        stage,
        _tags([stage, *_methods(kind, config), environment]),
        tidy(plain(config)),
    )


def run_id(artifact_type: str, name: str, started: str, config: Mapping[str, Any]) -> str:
    """Return what identifies a run, whether its artifact is finished or not.

    The version is not part of it: an artifact gets one when it is finished.
    """
    parts = [artifact_type, name, started, plain(config)]
    content = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:ID_LENGTH]


def _describe(
    artifact_type: str,
    name: str,
    started: str,
    config: Mapping[str, Any],
    inputs: Sequence[InputRef],
    root: Path,
) -> TrackedRun:
    stage, title = _stage(artifact_type), f"{artifact_type}/{name}"
    tags = [stage, *_methods(artifact_type, config), _environment(inputs, root)]
    settings = {
        **tidy(config),
        "artifact": plain_text(title, LONGEST_NAME),
        "inputs": [plain_text(item.reference) for item in inputs],
    }
    identity = run_id(artifact_type, name, started, config)
    return TrackedRun(identity, plain_text(title, LONGEST_NAME), stage, _tags(tags), settings)


def tidy(value: Any) -> Any:
    """Return JSON-ready values whose keys and texts are plain, of bounded length.

    Keys that begin with an underscore are left out: trackers keep those for themselves.
    """
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, Mapping):
        return {
            plain_text(key, LONGEST_NAME): tidy(item)
            for key, item in value.items()
            if not key.startswith("_")
        }
    if isinstance(value, list | tuple):
        return [tidy(item) for item in value]
    return value


def project_name(project: str, root: Path | None) -> str:
    """Return the project that a run is filed under: the one named, or the workspace's name."""
    home = Path.cwd() if root is None else root.resolve()
    return sanitize_name(project or home.name)


def _stage(artifact_type: str) -> str:
    return MAKERS.get(artifact_type, "lwdctl ").split(" ")[1]


def _methods(artifact_type: str, config: Mapping[str, Any]) -> list[str]:
    named = config.get("method") or config.get("policy")
    if isinstance(named, str):
        return [named]
    if isinstance(named, list | tuple):
        return [str(item) for item in named]
    return ["lwd"] if artifact_type in ("vae", "latents", "diffusion") else []


def _environment(inputs: Sequence[InputRef], root: Path) -> str:
    """Return the environment of the snippets that a run derives from, "" where they are gone."""
    for item in inputs:
        try:
            parent = find_input(item, root)
            found = {parent.type: parent, **ancestors(parent, root, ("snippets",))}
        except ArtifactError:
            continue
        if "snippets" in found:
            return str(found["snippets"].manifest.summary.get("env") or "")
    return ""


def _tags(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(plain_text(text, LONGEST_TAG) for text in texts if text.strip()))
