"""Evaluated conditions as a comparison takes them, from evaluations on disk or in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from lwdctl.analysis.comparison_records import SAMPLED, horizon_order
from lwdctl.artifacts import lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import ArtifactError
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.results import Condition, ConditionResult, ResultRow

SETTINGS = ("sampler", "num_inference_steps", "warm_start", "snippet_length")
"""What training seeds of one policy have in common."""


class EpisodeKey(NamedTuple):
    """What identifies an episode: its initial state and the behavior label it was run with."""

    task: str
    kind: str
    label: str
    number: int

    @property
    def initial_state(self) -> tuple[str, str, int]:
        """The initial state alone, which all labels that are run from it share."""
        return self.task, self.kind, self.number


def episode_key(episode: EpisodeResult) -> EpisodeKey:
    """Return what identifies an episode."""
    task, kind, number = episode.initial_state
    return EpisodeKey(task, kind, episode.plan.label, number)


def values_of(episode: EpisodeResult) -> dict[str, float]:
    """Return all numbers of an episode by name, its `steps` among them."""
    numbers = {**episode.values, "steps": episode.steps}
    return {name: float(value) for name, value in numbers.items()}


@dataclass(frozen=True)
class Run:
    """One trained policy under one condition.

    Attributes:
        result: Its result rows and episodes.
        label: Policy and latent source in short, made distinct from other runs where needed.
        source: Reference of the evaluation that holds it, "" in memory.
        evaluation: Name of that evaluation, shared by its versions.
        store: Digests of the demonstrations whose initial states were restored, otherwise "".
        max_steps: Step limit of the evaluation, None for the environment's own.
        perturbation_probability: Probability of a perturbation per step.
    """

    result: ConditionResult
    label: str
    source: str = ""
    evaluation: str = ""
    store: str = ""
    max_steps: int | None = None
    perturbation_probability: float = 0.0

    @property
    def row(self) -> ResultRow:
        """The condition and its results over all tasks."""
        return self.result.overall

    @property
    def episodes(self) -> tuple[EpisodeResult, ...]:
        """Every episode."""
        return self.result.episodes

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the environment's metrics, its score first."""
        return tuple(name for name in self.row.metrics if name != "return")

    @property
    def flops(self) -> float | None:
        """FLOPs per environment step, None where not recorded."""
        return self.row.cost.get("flops_per_step")

    @property
    def seconds(self) -> float | None:
        """Wall time per episode, None where not recorded."""
        total = self.row.seconds.get("total")
        return total / len(self.episodes) if total and self.episodes else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in order."""
        return tuple(sorted({episode.plan.task for episode in self.episodes}))

    @property
    def episode_keys(self) -> tuple[EpisodeKey, ...]:
        """What identifies the episodes, in order."""
        return tuple(sorted(map(episode_key, self.episodes)))

    @property
    def order(self) -> tuple[str, float, tuple[int, int], int]:
        """Sorting key of tables: label, perturbation, horizon, training seed."""
        seed = -1 if self.row.train_seed is None else self.row.train_seed
        return self.label, self.row.perturbation, horizon_order(self.row.horizon), seed

    def __str__(self) -> str:
        """Return how messages name it."""
        row = self.row
        seed = "" if row.train_seed is None else f", training seed {row.train_seed}"
        horizon = "" if row.horizon is None else f", horizon {row.horizon}"
        source = f" of {self.source}" if self.source else ""
        return f"{self.label}{source} (perturbation {row.perturbation:g}{horizon}{seed})"


def make_run(result: ConditionResult, **details: Any) -> Run:
    """Return a condition's result as a run, labeled by its policy and latent source.

    Args:
        result: Result rows and episodes.
        details: Further attributes of `Run`.
    """
    row = result.overall
    label = row.policy if row.latent in {"", SAMPLED} else f"{row.policy}-{row.latent}"
    restores = any(episode.plan.demonstration >= 0 for episode in result.episodes)
    store = details.pop("store", "memory") if restores else ""
    return Run(result, label, **{**details, "store": store})


def read_evaluation(artifact: Artifact, root: Path) -> list[Run]:
    """Read the runs of one evaluation.

    Args:
        artifact: Of type `evaluation`.
        root: Workspace to follow its lineage in.

    Raises:
        ArtifactError: Its episodes cannot be read.
    """
    folder = artifact.payload("episodes")
    config = artifact.manifest.config
    details = {
        "source": artifact.reference,
        "evaluation": artifact.name,
        "store": _store(artifact, root),
        "max_steps": config.get("max_steps") or None,
        "perturbation_probability": float(config.get("perturbation_probability", 0.0)),
    }
    runs = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            runs.append(make_run(ConditionResult.from_json(record), **details))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} is no record of episodes: {type(error).__name__}: {error}",
                "evaluate again with this version of lwdctl",
            ) from error
    if not runs:
        raise ArtifactError(f"{artifact.reference} holds no episodes in {folder}")
    return runs


def read_evaluations(evaluations: Sequence[Artifact], root: Path) -> list[Run]:
    """Read every run of some evaluations, in an order that does not depend on theirs.

    A run that two evaluations hold alike is taken once; see `distinguish` for the labels.

    Args:
        evaluations: Artifacts of type `evaluation`.
        root: Workspace to follow lineages in.

    Raises:
        ArtifactError: One cannot be read, or one policy was measured twice.
    """
    chosen = {artifact.digest: artifact for artifact in evaluations}
    runs: dict[Any, Run] = {}
    for _, artifact in sorted(chosen.items(), key=lambda item: (item[1].reference, item[0])):
        for run in read_evaluation(artifact, root):
            runs.setdefault(_content(run), run)
    return distinguish(list(runs.values()))


def distinguish(runs: Sequence[Run]) -> list[Run]:
    """Give different policies different labels, and sort the runs.

    Two runs of one label, horizon and perturbation belong to different policies where their
    sampler, inference steps, warm start or snippet length differ, or where their training seed
    agrees; the labels then say what differs.

    Raises:
        ArtifactError: Nothing differs: one policy was measured twice.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    found = [run for group in groups.values() for run in _relabel(group)]
    return sorted(found, key=lambda run: run.order)


def _store(artifact: Artifact, root: Path) -> str:
    """Return the digests of the snippets that it derives from, or its own where they are gone."""
    try:
        found = _digests(artifact, root)
    except ArtifactError:
        found = set()
    return " ".join(sorted(found)) or artifact.digest


def _digests(artifact: Artifact, root: Path) -> set[str]:
    if artifact.type == "snippets":
        return {artifact.digest}
    below = [_digests(parent, root) for parent in lineage.parents(artifact, root)]
    return set().union(*below)


def _content(run: Run) -> Any:
    """Return what makes a run another one: all but the evaluation that holds it."""
    condition = tuple(getattr(run.row, field.name) for field in fields(Condition))
    # Where nothing was trained and it was measured again, only the time differs.
    seconds = None if run.row.train_seed is None else run.seconds
    protocol = (run.store, run.max_steps, run.perturbation_probability)
    episodes = [
        (episode_key(item), item.success, item.error)
        + (() if item.error else tuple(sorted(values_of(item).items())))
        for item in run.episodes
    ]
    return condition, run.metrics, run.flops, seconds, protocol, tuple(sorted(episodes))


def _relabel(group: Sequence[Run]) -> list[Run]:
    """Add to the labels what distinguishes runs of one condition."""
    used: list[str] = []
    for name in (*SETTINGS, "evaluation", "source"):
        alike = _alike(group, used, same_seed=name not in SETTINGS)
        if any(len({_setting(run, name) for run in runs}) > 1 for runs in alike):
            used.append(name)
    for runs in _alike(group, used, same_seed=True):
        if len(runs) > 1:
            where = runs[1].source or "another result"
            raise ArtifactError(f"{runs[0]} was measured twice: there and in {where}")
    if not used:
        return list(group)
    return [
        replace(run, label=f"{run.label} ({', '.join(_describe(run, name) for name in used)})")
        for run in group
    ]


def _alike(group: Sequence[Run], used: Sequence[str], *, same_seed: bool) -> list[list[Run]]:
    """Return runs that would be taken for one policy, or for one training seed of it."""
    found: dict[Any, list[Run]] = {}
    for run in group:
        seed = run.row.train_seed if same_seed else None
        settings = (_setting(run, name) for name in used)
        found.setdefault((run.row.horizon, run.row.perturbation, seed, *settings), []).append(run)
    return list(found.values())


def _setting(run: Run, name: str) -> Any:
    return getattr(run.row if name in SETTINGS else run, name)


def _describe(run: Run, name: str) -> str:
    row = run.row
    return {
        "sampler": row.sampler or "no sampler",
        "num_inference_steps": f"{row.num_inference_steps} denoising steps",
        "warm_start": f"warm start {row.warm_start:g}" if row.warm_start else "no warm start",
        "snippet_length": f"snippets of {row.snippet_length}",
        "evaluation": run.evaluation,
        "source": run.source,
    }[name]
