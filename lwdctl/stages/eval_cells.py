"""Cells that were measured before: in an interrupted evaluation, or in an earlier one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwdctl.artifacts.provenance import software
from lwdctl.artifacts.workspace import Workspace

if TYPE_CHECKING:
    from lwdctl.stages.eval_arms import Arm
    from lwdctl.stages.eval_config import EvalConfig

KEYS = "keys.json"
EPISODES_FOLDER = "episodes"
# What decides an arm's numbers beside its model, latent, horizon and disturbance.
SHARED = (
    "encoded_split", "episodes", "task", "seed", "sampler", "denoise_steps", "warm_start",
    "perturbation_probability", "max_steps", "slots", "device",
)  # fmt: skip


def cell_key(arm: Arm, config: EvalConfig, labels: tuple[str, ...], snippets: str) -> str:
    """Return a digest of everything that decides what an arm measures.

    Args:
        arm: The arm.
        config: The evaluation's settings.
        labels: Behaviour labels that are run.
        snippets: Digest of the data, which say how the environment is built.
    """
    said = {
        "policy": arm.policy,
        "latent": arm.latent,
        "perturbation": arm.perturbation,
        "horizon": arm.trained.horizon,
        "models": {kind: item.digest for kind, item in sorted(arm.trained.artifacts.items())},
        "snippets": snippets,
        "labels": labels,
        "settings": {name: getattr(config, name) for name in SHARED},
        "software": software(),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Measured:
    """Looks up what earlier evaluations of a workspace have measured.

    Only with the same software: an unclean checkout finds nothing.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._where: dict[str, tuple[str, Path]] = {}
        git = software()["git"]
        if git and git["dirty"]:
            return
        for artifact in workspace.artifacts("evaluation"):
            path = artifact.path / KEYS
            if not path.exists():
                continue
            for name, key in json.loads(path.read_text()).items():
                self._where[key] = (
                    artifact.reference, artifact.path / EPISODES_FOLDER / f"{name}.json"
                )  # fmt: skip

    def find(self, key: str) -> tuple[str, Mapping[str, Any]] | None:
        """Return the evaluation and the record of an arm with this key, where there is one."""
        if key not in self._where:
            return None
        reference, path = self._where[key]
        return reference, json.loads(path.read_text())
