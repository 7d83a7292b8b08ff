"""The evaluations of a sweep in one table: a row per combination, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import LwdctlError
from lwdctl.core.progress import Progress
from lwdctl.pipeline.runner import Outcome
from lwdctl.pipeline.sweep import SEED

NUMBERS = (
    "label", "policy", "latent", "task", "horizon", "perturbation", "train_seeds", "episodes",
    "errors", "success", "score",
)  # fmt: skip


def sweep_rows(outcomes: Sequence[Outcome], root: Path, progress: Progress) -> list[dict[str, Any]]:
    """Return the results of a sweep's evaluations, over all tasks.

    The evaluations of one stage that differ in their training seed alone become one row per
    condition. Success and score have the intervals of `lwdctl compare`: Wilson's for one training
    seed, a two-way bootstrap over training seeds and initial states for several.

    Args:
        outcomes: What a run of the recipe returned.
        root: The workspace.
        progress: Where to say which rows could not be made.

    Returns:
        Rows with `stage` (the id in the recipe), `combination` (axis to value, seeds aside),
        `metric` (the name of the score), and the fields of a comparison's row.
    """
    groups: dict[str, tuple[Outcome, list[Artifact]]] = {}
    for outcome in outcomes:
        step, artifact = outcome.step, outcome.artifact
        if step.base and artifact and artifact.manifest.summary.get("results"):
            key = repr((step.base, _without_seed(outcome)))
            groups.setdefault(key, (outcome, []))[1].append(artifact)
    if not groups:
        return []
    from lwdctl.analysis.comparison import compare_evaluations  # imports matplotlib
    from lwdctl.analysis.tables import flatten

    rows = []
    for outcome, artifacts in groups.values():
        try:
            compared = compare_evaluations(artifacts, root)
        except LwdctlError as error:
            progress.message(f"no row for {outcome.step.base}: {error.message}")
            continue
        head = {
            "stage": outcome.step.base,
            "combination": _without_seed(outcome),
            "metric": compared.metric,
        }
        rows += [{**head, **flatten(row)} for row in compared.overall]
    return rows


def _without_seed(outcome: Outcome) -> dict[str, Any]:
    return {label: value for label, value in outcome.step.combination.items() if label != SEED}
