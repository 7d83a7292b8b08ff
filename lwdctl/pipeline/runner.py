"""Run a plan in order and skip what is up to date."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwdctl.artifacts.artifact import Artifact, checked_once
from lwdctl.artifacts.files import fingerprint
from lwdctl.artifacts.manifest import InputRef, plain
from lwdctl.artifacts.run_in_progress import RunRecord
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ArtifactError, DataError, LwdctlError
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.core.registry import is_import_path
from lwdctl.data.reader import paths_of
from lwdctl.pipeline.expected import Comparison, Expectation, compare
from lwdctl.pipeline.recipe import Step
from lwdctl.pipeline.records import DONE, StageFiles, recorded
from lwdctl.pipeline.run_stage import with_ancestors
from lwdctl.pipeline.sweep import SEED
from lwdctl.stages.stage import LOST, Part, StageContext
from lwdctl.tracking.tracking import NO_TRACKING, Tracking

RAN, UP_TO_DATE, PLANNED = "ran", "up to date", "to run"


@dataclass(frozen=True)
class Outcome:
    """The result of a step: its state, its artifact if there is one, seconds it ran."""

    step: Step
    state: str
    artifact: Artifact | None
    seconds: float = 0.0


@checked_once()
def preview(plan: Sequence[Step], workspace: Workspace) -> list[Outcome]:
    """Return for every step whether it would run; nothing is run."""
    outcomes: dict[str, Outcome] = {}
    for step in plan:
        artifact = None
        if all(outcomes[parent].artifact for parent in step.reads_from):
            artifact = find_finished(step, outcomes, workspace)
        state = UP_TO_DATE if artifact else PLANNED
        outcomes[step.id] = Outcome(step, state, artifact)
    return list(outcomes.values())


def find_finished(
    step: Step, outcomes: Mapping[str, Outcome], workspace: Workspace
) -> Artifact | None:
    """Return the artifact of a step that is up to date, else None.

    Args:
        step: The step.
        outcomes: Step id to outcome; those that it reads from have an artifact.
        workspace: Where to look.
    """
    inputs = _inputs(step, outcomes, workspace)
    return _finished(step, inputs, _context(step, outcomes, workspace))


def find_unfinished(
    step: Step, outcomes: Mapping[str, Outcome], workspace: Workspace
) -> list[RunRecord]:
    """Return the unfinished runs of a step with the same settings and inputs, oldest first."""
    inputs = _inputs(step, outcomes, workspace)
    return _unfinished(step, inputs, _context(step, outcomes, workspace))


def announce_imports(plan: Sequence[Step], progress: Progress) -> tuple[str, ...]:
    """Say which environments (`package.module:Class`) a recipe imports, and return them."""
    imports = _imports(plan)
    if imports:
        progress.message(f"the recipe imports {', '.join(imports)}")
    return imports


def run_plan(
    plan: Sequence[Step],
    workspace: Workspace,
    progress: Progress,
    files: StageFiles | None = None,
    tracking: Tracking = NO_TRACKING,
) -> list[Outcome]:
    """Run every step that is not up to date, one after the other in this process.

    An interrupted step of a resumable stage goes on from its last checkpoint. The environments
    that the plan names by import path are imported where the data name them, and said.

    Args:
        plan: The steps, in order.
        workspace: Where artifacts are found and go.
        progress: Where to report.
        files: Where to record the state of every step, for `lwdctl status`; None records nothing.
        tracking: Trackers that follow the trainings and evaluations.
    """
    imports = announce_imports(plan, progress)
    outcomes: dict[str, Outcome] = {}
    for index, step in enumerate(plan, start=1):
        head = f"[{index}/{len(plan)}] {step.id}"
        outcomes[step.id] = run_step(
            step,
            outcomes,
            workspace,
            progress,
            imports=imports,
            head=head,
            files=files,
            tracking=tracking,
        )
    return list(outcomes.values())


def run_step(
    step: Step,
    outcomes: Mapping[str, Outcome],
    workspace: Workspace,
    progress: Progress,
    *,
    imports: tuple[str, ...],
    head: str,
    files: StageFiles | None = None,
    tracking: Tracking = NO_TRACKING,
) -> Outcome:
    """Run one step in this process, unless it is up to date, and return its outcome.

    Args:
        step: What to run.
        outcomes: Step id to outcome; those that it reads from have an artifact.
        workspace: Where its inputs stand and its artifact goes.
        progress: Where to report.
        imports: Environments that may be imported where the data name them.
        head: How its messages begin.
        files: Where to record its state; None records nothing.
        tracking: Trackers that follow it, where it is a training or an evaluation.
    """
    inputs = _inputs(step, outcomes, workspace)
    context = _context(step, outcomes, workspace, progress)
    context = replace(context, trust=imports, tracking=tracking)
    finished = _finished(step, inputs, context)
    if finished:
        progress.message(f"{head}: {finished.reference} is up to date")
        return Outcome(step, UP_TO_DATE, finished)
    progress.message(f"{head}: lwdctl {step.stage.command} (makes {step.stage.artifact_type})")
    started = time.monotonic()
    if files is None:
        artifact = _run(step, inputs, context)
    else:
        with recorded(files, step.id, progress) as watched:
            artifact = _run(step, inputs, replace(context, progress=watched))
            files.update(step.id, state=DONE, artifact=artifact.reference)
    seconds = time.monotonic() - started
    progress.message(f"{head}: made {artifact.reference} in {seconds:.1f} s")
    return Outcome(step, RAN, artifact, seconds)


def run_step_part(
    step: Step,
    outcomes: Mapping[str, Outcome],
    workspace: Workspace,
    progress: Progress,
    *,
    imports: tuple[str, ...],
    part: Part,
) -> None:
    """Do one part of a step's work, for `run_step` to take; see `Stage.parts`.

    Args:
        step: What to run; its stage has parts.
        outcomes: As for `run_step`.
        workspace: Where its inputs stand and its artifact will go.
        progress: Where to report.
        imports: As for `run_step`.
        part: Which part.
    """
    inputs = _inputs(step, outcomes, workspace)
    context = replace(_context(step, outcomes, workspace, progress), trust=imports)
    finished = _finished(step, inputs, context)
    if finished:
        progress.message(f"{step.id}: {finished.reference} is up to date")
        return
    step.stage.execute_part(step.config, inputs, context, part)


def compare_all(
    expected: Sequence[Expectation], outcomes: Sequence[Outcome]
) -> tuple[Comparison, ...]:
    """Compare the expected numbers of the stages that ran with the measured ones."""
    summaries = {
        outcome.step.id: outcome.artifact.manifest.summary if outcome.artifact else {}
        for outcome in outcomes
    }
    return tuple(
        compare(item, summaries[item.stage]) for item in expected if item.stage in summaries
    )


def _imports(plan: Sequence[Step]) -> tuple[str, ...]:
    """Return the import paths of environments (`package.module:Class`) that a plan names."""
    named = (str(getattr(step.config, "env", None) or "").partition("/")[0] for step in plan)
    return tuple(dict.fromkeys(name for name in named if is_import_path(name)))


def _run(step: Step, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    resume = step.stage.resumable and _has_checkpoint(step, inputs, context)
    try:
        return step.stage.execute(step.config, inputs, replace(context, resume=resume))
    except DataError as error:
        paths = paths_of(getattr(step.config, "paths", ()))
        if error.hint or all(path.exists() for path in paths):
            raise
        hint = f"name the recipe's files: --set {step.base or step.id}.paths=PATH,..."
        raise DataError(error.message, hint) from error


def _context(
    step: Step,
    outcomes: Mapping[str, Outcome],
    workspace: Workspace,
    progress: Progress | None = None,
) -> StageContext:
    """Return where a step runs; its candidates are what the plan made, not the workspace's."""
    candidates = None
    if step.stage.choices:
        made = [outcomes[choice].artifact for choice in step.candidates]
        candidates = tuple(artifact for artifact in made if artifact)
    return StageContext(workspace, progress or SilentProgress(), step.name, candidates=candidates)


def _inputs(
    step: Step, outcomes: Mapping[str, Outcome], workspace: Workspace
) -> dict[str, Artifact]:
    types = step.stage.reads(step.config, step.parents)
    if not types:
        return {}
    made = {made_type: outcomes[parent].artifact for made_type, parent in step.parents.items()}
    primary = made[types[-1]]
    if primary is None:  # only a preview has parents without artifacts, and it skips such steps
        raise RuntimeError(f"step '{step.id}' was reached before its inputs were made")
    primary.check()
    return with_ancestors(types, primary, workspace)


def _finished(step: Step, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact | None:
    """Return the newest artifact made with the same name, configuration and inputs.

    An artifact made before a setting existed counts as made with its default.
    """
    if step.forced:
        return None
    config, defaults = plain(to_mapping(step.config)), plain(to_mapping(step.stage.config()))
    same = [
        artifact
        for artifact in reversed(context.workspace.artifacts(step.stage.artifact_type))
        if artifact.name == step.name and {**defaults, **artifact.manifest.config} == config
    ]
    for artifact in same:
        manifest = artifact.manifest
        if (
            _derives_from(manifest.inputs, step, inputs, context)
            and not _sources_changed(step, manifest.summary)
            and not _lost_episodes(manifest.summary)
            and _is_whole(artifact, context.progress)
        ):
            return artifact
    return None


def _is_whole(artifact: Artifact, progress: Progress) -> bool:
    """Tell whether the files of an artifact are there; one that is damaged is made again."""
    try:
        artifact.check_quickly()
    except ArtifactError as error:
        progress.message(f"{artifact.reference} is passed over: {error.message}")
        return False
    return True


def _derives_from(
    recorded: Sequence[InputRef], step: Step, inputs: Mapping[str, Artifact], context: StageContext
) -> bool:
    """Tell whether the recorded inputs are those that the step would have now.

    A stage may record its primary input only, since the others are its ancestors.
    """
    digests = {item.digest for item in recorded}
    chosen = step.stage.choose(step.config, inputs, context)
    if chosen is not None:
        return digests == {artifact.digest for artifact in chosen}
    current = [artifact.digest for artifact in inputs.values()]
    return digests <= set(current) and digests.issuperset(current[-1:])


def _lost_episodes(summary: Mapping[str, Any]) -> bool:
    """Tell whether episodes were lost to simulator errors: the stage has to run again."""
    rows = summary.get("results", [])
    return bool(summary.get(LOST)) or any(row.get("errors") for row in rows)


def _sources_changed(step: Step, summary: Mapping[str, Any]) -> bool:
    """Tell whether the files that the step would read differ from those that were recorded.

    A file that is gone cannot be read again, so it does not count as changed.
    """
    paths, sources = paths_of(getattr(step.config, "paths", ())), summary.get("sources", [])
    if not paths:  # it reads artifacts
        return False
    return len(paths) != len(sources) or any(
        path.exists() and fingerprint(path)["sha256"] != source.get("sha256")
        for path, source in zip(paths, sources, strict=True)
    )


def _has_checkpoint(step: Step, inputs: Mapping[str, Artifact], context: StageContext) -> bool:
    found = _unfinished(step, inputs, context)
    return any(run.resumable and not run.active for run in found)


def _unfinished(
    step: Step, inputs: Mapping[str, Artifact], context: StageContext
) -> list[RunRecord]:
    config = plain(to_mapping(step.config))
    return [
        run
        for run in context.workspace.unfinished(step.stage.artifact_type)
        if run.name == step.name
        and run.config == config
        and _derives_from(run.inputs, step, inputs, context)
    ]


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
