"""`analyze behavior`: do policies behave as the trajectories they learned from?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lwdctl.analysis.behavior import compare
from lwdctl.analysis.behavior_sections import sections_of, summary_of, write_rows
from lwdctl.analysis.evaluations import Run, read_evaluation
from lwdctl.analysis.sections import write_sections
from lwdctl.analysis.trajectories import policy_trajectories, source_trajectories
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import AnalyzeBehaviorConfig
from lwdctl.core.config import to_mapping
from lwdctl.stages.stage import LOST, StageContext

TITLE = "Behavior of the source and of the policies"
ROWS = "behavior.csv"


def run(
    config: AnalyzeBehaviorConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Artifact:
    """Compare and publish an `analysis` artifact.

    Raises:
        ArtifactError: The evaluation cannot be read, or has no behavior of the data.
    """
    evaluation = inputs["evaluation"]
    store = SnippetStore.open(inputs["snippets"].path)
    runs = read_evaluation(evaluation, context.workspace.root)
    limit = runs[0].max_steps or store.spec.env.max_steps
    lost: list[str] = []
    trajectories = source_trajectories(
        store, limit, config.source or 0, config.seed, context.progress, runs[0].tasks
    )
    for name, one in _named(runs).items():
        trajectories += policy_trajectories(one, name, store.spec.labels, lost)
    compared = compare(trajectories, config.seed, context.progress)
    sections, figures = sections_of(compared, limit)
    with context.workspace.begin(
        "analysis",
        context.name or evaluation.name,
        config=to_mapping(config),
        inputs=[inputs["snippets"], evaluation],
    ) as draft:
        write_sections(draft.path, f"{TITLE}: {evaluation.reference}", sections, figures)
        (draft.path / ROWS).write_text(write_rows(trajectories, compared), encoding="utf-8")
        summary: dict[str, Any] = {**summary_of(compared), "steps_compared": limit}
        if lost:
            summary[LOST] = dict(Counter(lost))
        return draft.publish(summary, seed=config.seed)


def _named(runs: list[Run]) -> dict[str, Run]:
    """Name every run by policy and latent, and by what else tells runs apart."""
    told: dict[str, list[Any]] = {
        "h": [run.row.horizon for run in runs if run.row.horizon is not None],
        "p": [run.row.perturbation for run in runs],
        "s": [run.row.train_seed for run in runs if run.row.train_seed is not None],
    }
    several = {mark for mark, values in told.items() if len(set(values)) > 1}
    return {_name(run, several): run for run in runs}


def _name(run: Run, several: set[str]) -> str:
    parts = [run.row.policy, run.row.latent]
    if "h" in several and run.row.horizon is not None:
        parts.append(f"h{run.row.horizon}")
    if "p" in several:
        parts.append(f"p{run.row.perturbation:g}")
    if "s" in several and run.row.train_seed is not None:
        parts.append(f"s{run.row.train_seed}")
    return " ".join(part for part in parts if part)
