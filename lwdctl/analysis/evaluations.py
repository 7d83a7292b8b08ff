"""Evaluation artifacts as plain records: one run per policy, condition and training seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lwdctl.artifacts import lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import ArtifactError
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.results import ConditionResult

Start = tuple[str, str, int]
"""Task, `"seed"` or `"demonstration"` with the label run, and its number: what fixes an episode."""


def label_of(start: Start) -> str:
    """Return the label that was run, or ""."""
    return start[1].partition(" of ")[2]


def state_of(start: Start) -> Start:
    """Return the initial state alone, which all labels that are run from one seed share."""
    task, kind, number = start
    return task, kind.partition(" of ")[0], number


def horizon_order(horizon: int | str | None) -> tuple[int, int]:
    """Return a sorting key: no horizon, numbers, then whole episodes."""
    if horizon is None:
        return 0, 0
    return (1, horizon) if isinstance(horizon, int) else (2, 0)


@dataclass(frozen=True)
class Episode:
    """One evaluated episode.

    Attributes:
        start: Its initial state.
        success: Whether the task was solved at some step.
        values: The adapter's metrics, `return`, `final_success`, and `steps`; empty where
            the simulator was lost.
        error: Why the simulator gave no result, or "".
        label: Behavior label it was run with, or "".
        failure: Why the policy failed for good, or "".
    """

    start: Start
    success: bool
    values: Mapping[str, float]
    error: str = ""
    label: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Run:
    """One trained policy under one condition.

    Attributes:
        label: Policy and latent source in short, told apart from other runs where needed.
        source: Reference of the evaluation it stands in.
        evaluation: Name of that evaluation, shared by its versions.
        metrics: Names of the adapter's metrics, the environment's score first.
        store: What recorded starts were taken from, for `encoded`; otherwise "".
        max_steps: Episode limit that was asked for, 0 for the environment's own.
        operations: Operations per environment step, None where not recorded.
        seconds: Wall time per episode.
    """

    label: str
    source: str
    evaluation: str
    policy: str
    latent: str
    env: str
    horizon: int | str | None
    perturbation: float
    perturbation_probability: float
    train_seed: int | None
    snippet_length: int | None
    sampler: str
    num_inference_steps: int | None
    warm_start: float
    store: str
    max_steps: int
    metrics: tuple[str, ...]
    operations: float | None
    seconds: float | None
    episodes: tuple[Episode, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in order."""
        return tuple(sorted({episode.start[0] for episode in self.episodes}))

    @property
    def starts(self) -> tuple[Start, ...]:
        """Initial states in order."""
        return tuple(sorted(episode.start for episode in self.episodes))

    @property
    def order(self) -> tuple[str, float, tuple[int, int], int]:
        """Sorting key of tables: label, perturbation, horizon, training seed."""
        seed = -1 if self.train_seed is None else self.train_seed
        return self.label, self.perturbation, horizon_order(self.horizon), seed

    @property
    def where(self) -> str:
        """How messages name it."""
        seed = "" if self.train_seed is None else f", training seed {self.train_seed}"
        horizon = "" if self.horizon is None else f", horizon {self.horizon}"
        return f"{self.label} of {self.source} (perturbation {self.perturbation:g}{horizon}{seed})"


def read_evaluation(artifact: Artifact, root: Path) -> list[Run]:
    """Read the runs of one evaluation.

    Args:
        artifact: Of kind `evaluation`.
        root: Workspace to follow its lineage in.

    Raises:
        ArtifactError: Its episodes cannot be read.
    """
    folder = artifact.payload("episodes")
    store = _store(artifact, root)
    runs = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            runs.append(_run(ConditionResult.from_json(record), artifact, store))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} is no record of episodes: {type(error).__name__}: {error}",
                "evaluate again with this version of lwdctl",
            ) from error
    if not runs:
        raise ArtifactError(f"{artifact.reference} holds no episodes in {folder}")
    return runs


def _run(found: ConditionResult, artifact: Artifact, store: str) -> Run:
    row, config = found.overall, artifact.manifest.config
    count = len(found.episodes)
    seconds, flops = row.seconds.get("total"), row.cost.get("flops_per_step")
    restores = any(item.plan.demonstration >= 0 for item in found.episodes)
    return Run(
        label=row.policy if row.latent in {"", "sampled"} else f"{row.policy}-{row.latent}",
        source=artifact.reference,
        evaluation=artifact.name,
        policy=row.policy,
        latent=row.latent,
        env=row.env,
        horizon=row.horizon,
        perturbation=float(row.perturbation),
        perturbation_probability=float(config.get("perturbation_probability", 0.0)),
        train_seed=row.train_seed,
        snippet_length=row.snippet_length,
        sampler=row.sampler,
        num_inference_steps=row.num_inference_steps,
        warm_start=float(row.warm_start),
        store=store if restores else "",
        max_steps=int(config.get("max_steps") or 0),
        metrics=tuple(name for name in row.metrics if name != "return"),
        operations=None if flops is None else float(flops),
        seconds=seconds / count if seconds and count else None,
        episodes=tuple(_episode(item) for item in found.episodes),
    )


def _episode(found: EpisodeResult) -> Episode:
    task, kind, number = found.initial_state
    label = found.plan.label
    values = {**found.values, "steps": float(found.steps)}
    return Episode(
        start=(task, f"{kind} of {label}" if label else kind, number),
        success=found.success,
        values={} if found.error else {name: float(item) for name, item in values.items()},
        error=found.error,
        label=label,
        failure=found.policy_failure,
    )


def _store(artifact: Artifact, root: Path) -> str:
    """Return the digests of the snippets below, or its own where they cannot be told."""
    try:
        found = _digests(artifact, root)
    except ArtifactError:
        found = set()
    return " ".join(sorted(found)) or artifact.digest


def _digests(artifact: Artifact, root: Path) -> set[str]:
    if artifact.kind == "snippets":
        return {artifact.digest}
    below = [_digests(parent, root) for parent in lineage.parents(artifact, root)]
    return set().union(*below)
