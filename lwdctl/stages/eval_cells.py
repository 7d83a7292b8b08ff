"""Cells that were measured before: in an interrupted evaluation, or in an earlier one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.configs import EvalConfig
from lwdctl.core.errors import ArtifactError
from lwdctl.stages.eval_arms import Arm

KEYS = "keys.json"
EPISODES_FOLDER = "episodes"
LATENCY = "latency_"
# What decides an arm's numbers beside its model, latent, horizon and disturbance.
SHARED = (
    "oracle_split", "episodes", "task", "seed", "sampler", "num_inference_steps", "warm_start",
    "perturbation_probability", "max_steps", "num_envs",
)  # fmt: skip


@dataclass(frozen=True)
class Circumstances:
    """What all arms of an evaluation share, beside its settings.

    Attributes:
        labels: Behavior labels that are run.
        snippets: Digest of the data, which say how the environment is built.
        device: Where networks run.
        software: What `provenance.software` said when the evaluation began.
    """

    labels: tuple[str, ...]
    snippets: str
    device: str
    software: Mapping[str, Any]


def cell_key(arm: Arm, config: EvalConfig, shared: Circumstances) -> str:
    """Return a digest of everything that decides what an arm measures."""
    said = {
        "policy": arm.policy,
        "latent": arm.latent,
        "perturbation": arm.perturbation,
        "horizon": arm.trained.horizon,
        "models": {kind: item.digest for kind, item in sorted(arm.trained.artifacts.items())},
        "settings": {name: getattr(config, name) for name in SHARED},
        **asdict(shared),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_record(path: Path, key: str) -> dict[str, Any] | None:
    """Return an arm's record if it is whole, has this key, and lost no episode."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    lost = any(cell["errors"] for cell in record["results"])
    return None if lost or record.get("key") != key else record


def without_latency(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return an arm's record without what another run has timed."""
    cells = [
        cell
        | {"cost": {k: v for k, v in (cell.get("cost") or {}).items() if not k.startswith(LATENCY)}}
        for cell in record["results"]
    ]
    return {**record, "results": cells}


class Measured:
    """Looks up what earlier evaluations of a workspace have measured.

    Only with the same software: an unclean checkout finds nothing.
    """

    def __init__(self, workspace: Workspace, software: Mapping[str, Any]) -> None:
        self._where: dict[str, tuple[Artifact, str]] = {}
        if software["git"] and software["git"]["dirty"]:
            return
        for artifact in workspace.artifacts("evaluation"):
            path = artifact.path / KEYS
            if path.exists():
                keys = json.loads(path.read_text())
                self._where.update({key: (artifact, name) for name, key in keys.items()})

    def find(self, key: str) -> tuple[str, Mapping[str, Any]] | None:
        """Return the evaluation and the record of an arm with this key, where there is one."""
        if key not in self._where:
            return None
        artifact, name = self._where[key]
        try:
            artifact.check()
        except ArtifactError:  # damaged: measure again
            return None
        record = read_record(artifact.path / EPISODES_FOLDER / f"{name}.json", key)
        return None if record is None else (artifact.reference, without_latency(record))
