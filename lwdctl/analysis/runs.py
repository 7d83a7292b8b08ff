"""The runs of several evaluations together: once each, under labels that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lwdctl.analysis.evaluations import Run, read_evaluation
from lwdctl.analysis.pairing import require_one_protocol
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import ArtifactError


def read_runs(evaluations: Sequence[Artifact], root: Path) -> list[Run]:
    """Read every run of some evaluations, in an order that does not depend on theirs.

    A run that two evaluations hold alike is taken once. Two of one policy, latent source, horizon
    and perturbation belong to different policies, and get different labels, where their sampler,
    denoising steps, warm start or snippet length differ, or where their training seed agrees.

    Args:
        evaluations: Artifacts of kind `evaluation`.
        root: Workspace to follow lineages in.

    Raises:
        ArtifactError: One cannot be read, or they differ in environment or protocol.
    """
    chosen = {artifact.digest: artifact for artifact in evaluations}
    runs: dict[Any, Run] = {}
    for _, artifact in sorted(chosen.items(), key=lambda item: (item[1].reference, item[0])):
        for run in read_evaluation(artifact, root):
            runs.setdefault(_content(run), run)
    found = _labeled(list(runs.values()))
    require_one_protocol(found)
    return sorted(found, key=lambda run: run.order)


def _content(run: Run) -> Any:
    """Return what makes a run another one: all but the evaluation it stands in."""
    plain = replace(run, label="", source="", evaluation="", episodes=())
    if run.train_seed is None:  # nothing was trained: measured again, only the time differs
        plain = replace(plain, seconds=None)
    episodes = [
        (item.start, item.success, item.error, *sorted(item.values.items()))
        for item in run.episodes
    ]
    return plain, tuple(sorted(episodes))


def _labeled(runs: Sequence[Run]) -> list[Run]:
    """Give policies that would be mistaken for each other different labels."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return [run for group in groups.values() for run in _told_apart(group)]


SETTINGS = ("sampler", "num_inference_steps", "warm_start", "snippet_length")
"""What training seeds of one policy have in common."""


def _told_apart(group: Sequence[Run]) -> list[Run]:
    """Add to the labels what tells runs of one condition apart."""
    used: list[str] = []
    for name in (*SETTINGS, "evaluation", "source"):
        clashes = _alike(group, used) if name in SETTINGS else _clashes(group, used)
        if any(len({getattr(run, name) for run in clash}) > 1 for clash in clashes):
            used.append(name)
    left = _clashes(group, used)
    if left:
        first, second, *_ = left[0]
        raise ArtifactError(f"{first.where} was measured twice: there and in {second.source}")
    if not used:
        return list(group)
    return [
        replace(run, label=f"{run.label} ({', '.join(_words(run, used))})" if used else run.label)
        for run in group
    ]


def _alike(group: Sequence[Run], used: Sequence[str]) -> list[list[Run]]:
    """Return runs that would be taken for training seeds of one policy."""
    found: dict[Any, list[Run]] = {}
    for run in group:
        key = (str(run.horizon), run.perturbation, *[getattr(run, name) for name in used])
        found.setdefault(key, []).append(run)
    return list(found.values())


def _clashes(group: Sequence[Run], used: Sequence[str]) -> list[list[Run]]:
    """Return runs of one training seed among those."""
    found: dict[Any, list[Run]] = {}
    for number, runs in enumerate(_alike(group, used)):
        for run in runs:
            found.setdefault((number, run.train_seed), []).append(run)
    return [runs for runs in found.values() if len(runs) > 1]


def _words(run: Run, used: Sequence[str]) -> list[str]:
    said = {
        "sampler": run.sampler or "no sampler",
        "num_inference_steps": f"{run.num_inference_steps} denoising steps",
        "warm_start": f"warm start {run.warm_start:g}" if run.warm_start else "no warm start",
        "snippet_length": f"snippets of {run.snippet_length}",
        "evaluation": run.evaluation,
        "source": run.source,
    }
    return [said[name] for name in used]
