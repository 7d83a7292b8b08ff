"""The stages of a recipe as they stand in a workspace: what is made, what may run, and what waits.

Stages meet only on disk, so that a stage can run in any process that sees the workspace, with the
command `PlannedStage.arguments`: it finds its inputs by what the recipe says.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from lwdctl.artifacts.artifact import Artifact, checked_once
from lwdctl.artifacts.references import version_directory
from lwdctl.artifacts.run_in_progress import RunRecord, next_version
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.progress import Progress
from lwdctl.core.suggest import did_you_mean
from lwdctl.pipeline.recipe import SMOKE_SUFFIX, Recipe, Step, ancestors, make_plan
from lwdctl.pipeline.records import WAITING, StageFiles, StageRecord
from lwdctl.pipeline.runner import (
    PLANNED,
    UP_TO_DATE,
    Outcome,
    announce_imports,
    find_finished,
    find_unfinished,
    run_step,
    run_step_part,
)
from lwdctl.stages.stage import Part
from lwdctl.tracking.tracking import NO_TRACKING, Tracking

MISSING: Final = "missing"
RESUMABLE: Final = "resumable"
MADE: Final = "done"
_LOOK_AGAIN_SECONDS = 5.0
PlannedState = Literal["missing", "resumable", "done"]


@dataclass(frozen=True)
class RecipeRun:
    """A recipe, the options that it is run with, and the workspace.

    Attributes:
        recipe: The recipe.
        workspace: Where artifacts are found and go.
        assignments: Settings that differ (`"train-vae.updates=500"`), as `--set` takes them.
        smoke: Whether it runs at toy size.
        start: Id of the first stage that runs even when it is up to date, or "".
        until: Id of the last stage, or "".
        tracking: Trackers that follow the trainings and evaluations.
        steps: The plan, in order.
    """

    recipe: Recipe
    workspace: Workspace
    assignments: tuple[str, ...] = ()
    smoke: bool = False
    start: str = ""
    until: str = ""
    tracking: Tracking = NO_TRACKING
    steps: tuple[Step, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Make the plan, which checks every setting.

        Raises:
            ConfigError: An unknown stage or setting, a wrong value, or a missing input.
        """
        steps = make_plan(
            self.recipe,
            assignments=self.assignments,
            smoke=self.smoke,
            start=self.start,
            until=self.until,
        )
        object.__setattr__(self, "steps", steps)

    @property
    def files(self) -> StageFiles:
        """The records of its stages."""
        suffix = SMOKE_SUFFIX if self.smoke else ""
        return StageFiles(self.workspace, self.recipe.name + suffix)

    def step(self, stage: str) -> Step:
        """Return the step of a stage.

        Raises:
            ConfigError: The recipe has no such stage.
        """
        steps = {step.id: step for step in self.steps}
        if stage not in steps:
            hint = did_you_mean(stage, list(steps))
            raise ConfigError(f"{self.recipe.path.name} has no stage '{stage}'", hint)
        return steps[stage]

    def after(self, finished: Collection[str]) -> RecipeRun:
        """Return the run that goes on after some finished stages, which do not run again."""
        left = (step.id for step in self.steps if step.forced and step.id not in finished)
        return replace(self, start=next(left, ""))

    def arguments(self, *extra: str) -> list[str]:
        """Return the arguments of `lwdctl` that run it, with more options of `lwdctl run`."""
        words = ["run", str(self.recipe.path), *extra]
        words += [word for item in self.assignments for word in ("--set", item)]
        words += [word for item in self.recipe.sweep for word in ("--sweep", item)]
        words += ["--smoke"] if self.smoke else []
        words += ["--from", self.start] if self.start else []
        words += ["--until", self.until] if self.until else []
        words += self.tracking.arguments()
        return [*words, "--workspace", str(self.workspace.root)]


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a recipe as it stands in a workspace.

    Attributes:
        step: Its id, command, configuration and name of its artifact.
        depends_on: Ids of the earlier stages that have to be finished before it begins.
        state: `"done"` where its artifact is up to date, `"resumable"` where an interrupted run
            has left a checkpoint to go on from, else `"missing"`.
        artifact: Its artifact where it is up to date.
        arguments: The arguments of `lwdctl` that run this stage alone, in a process of its own on
            any machine that sees the workspace.
        is_active: Whether a process works on it now.
    """

    step: Step
    depends_on: tuple[str, ...]
    state: PlannedState
    artifact: Artifact | None
    arguments: tuple[str, ...]
    is_active: bool = False

    @property
    def id(self) -> str:
        """Its name within the recipe."""
        return self.step.id

    @property
    def settings(self) -> dict[str, Any]:
        """Its full configuration."""
        return to_mapping(self.step.config)


@checked_once()
def plan_stages(run: RecipeRun) -> tuple[PlannedStage, ...]:
    """Return the stages of a recipe, in order, as they stand in the workspace."""
    outcomes: dict[str, Outcome] = {}
    stages = []
    for step in run.steps:
        artifact: Artifact | None = None
        unfinished: list[RunRecord] = []
        if all(outcomes[parent].artifact for parent in step.reads_from):
            artifact = find_finished(step, outcomes, run.workspace)
            if artifact is None:
                unfinished = find_unfinished(step, outcomes, run.workspace)
        active = any(item.active for item in unfinished)
        waits = any(item.resumable and not item.active for item in unfinished)
        state: PlannedState = MISSING
        if artifact is not None:
            state = MADE
        elif step.stage.resumable and waits:
            state = RESUMABLE
        outcomes[step.id] = Outcome(step, UP_TO_DATE if artifact else PLANNED, artifact)
        depends_on = (*step.reads_from, *_twins(step, run.steps))
        arguments = tuple(run.arguments("--only", step.id))
        stages.append(PlannedStage(step, depends_on, state, artifact, arguments, active))
    return tuple(stages)


def _twins(step: Step, steps: Sequence[Step]) -> tuple[str, ...]:
    """Return the earlier steps that make the same artifact: once they have, it is up to date."""

    def key(item: Step) -> tuple[Any, ...]:
        return (item.stage.command, item.name, item.config, item.parents, item.candidates)

    earlier = steps[: list(steps).index(step)]
    return tuple(other.id for other in earlier if key(other) == key(step))


def reserve_versions(stages: Sequence[PlannedStage], run: RecipeRun) -> None:
    """Record for every stage that is not done which number its artifact gets.

    The numbers are those of a run of one stage after the other. A number that was reserved for a
    stage which then failed stays its own.

    Args:
        stages: The stages that are to run, in the order of the recipe.
        run: The recipe.
    """
    taken: dict[Path, set[int]] = {}
    for stage in stages:
        kind = _versions_of(stage.step)
        folder = run.workspace.root / kind
        numbers = taken.setdefault(folder, set())
        version = _reserved(run, stage.step)
        used = version in numbers or (folder / version_directory(version)).exists()
        if not version or used:
            version = max([next_version(folder), *(number + 1 for number in numbers)])
        numbers.add(version)
        run.files.write(stage.id, StageRecord(state=WAITING, version=version, reserved_for=kind))


def _versions_of(step: Step) -> str:
    """Return type and name of the artifact that a step makes, which share their numbers."""
    return f"{step.stage.artifact_type}/{step.name}"


def _reserved(run: RecipeRun, step: Step) -> int:
    """Return the number that is reserved for the artifact of a step, 0 for none."""
    record = run.files.read(step.id)
    return record.version if record.reserved_for == _versions_of(step) else 0


def run_only(run: RecipeRun, stage: str, progress: Progress, *, patience: float = 0.0) -> Outcome:
    """Run one stage of a recipe in this process, unless it is up to date.

    Its inputs are what the stages before it have made in the workspace; its artifact gets the
    number that was reserved for it, if there is one.

    Args:
        run: The recipe.
        stage: Id of the stage.
        progress: Where to report.
        patience: Seconds to wait for inputs that another machine has made and this one does not
            see yet.

    Raises:
        ConfigError: The recipe has no such stage.
        ArtifactError: An input has not been made yet.
    """
    step, outcomes = _find_inputs(run, stage, progress, patience)
    version = _reserved(run, step)
    reserved = {(step.stage.artifact_type, step.name): version} if version else {}
    workspace = Workspace(run.workspace.root, reserved)
    head = f"[{1 + [item.id for item in run.steps].index(stage)}/{len(run.steps)}] {stage}"
    imports = announce_imports(run.steps, progress)
    if patience:
        _wait_for_earlier_attempt(run, step, outcomes, progress)
    return run_step(
        step,
        outcomes,
        workspace,
        progress,
        imports=imports,
        head=head,
        files=run.files,
        tracking=run.tracking,
    )


def run_only_part(
    run: RecipeRun,
    stage: str,
    part: Part,
    progress: Progress,
    *,
    patience: float = 0.0,
) -> None:
    """Measure one part of the conditions of an evaluation, for `run_only` to take.

    Args:
        run: The recipe.
        stage: Id of the stage.
        part: Which part.
        progress: Where to report.
        patience: As for `run_only`.

    Raises:
        ConfigError: The recipe has no such stage, or it has no parts.
        ArtifactError: An input has not been made yet.
    """
    step, outcomes = _find_inputs(run, stage, progress, patience)
    if not step.stage.parts:
        raise ConfigError(
            f"stage '{stage}' runs {step.stage.command}, which cannot be done in parts",
            "leave out --part",
        )
    imports = announce_imports(run.steps, progress)
    run_step_part(step, outcomes, run.workspace, progress, imports=imports, part=part)


def _wait_for_earlier_attempt(
    run: RecipeRun, step: Step, outcomes: Mapping[str, Outcome], progress: Progress
) -> None:
    """Wait while another process works on a stage and reports.

    A cluster runs a job again where it has lost a node, though the node may still work.
    """
    while True:
        unfinished = find_unfinished(step, outcomes, run.workspace)
        if not any(item.active for item in unfinished) or not run.files.read(step.id).is_fresh:
            return
        host = run.files.read(step.id).host
        progress.message(f"waiting for an earlier attempt, which still runs on {host}")
        time.sleep(_LOOK_AGAIN_SECONDS)


@checked_once()
def _find_inputs(
    run: RecipeRun, stage: str, progress: Progress, patience: float
) -> tuple[Step, dict[str, Outcome]]:
    """Return a stage's step and the outcomes of the steps that it derives from."""
    wanted = run.step(stage)
    outcomes: dict[str, Outcome] = {}
    needed = ancestors(wanted, {step.id: step for step in run.steps})
    deadline = time.monotonic() + patience
    for step in (step for step in run.steps if step.id in needed):
        # An earlier stage that was to run again has done so.
        made = replace(step, forced=False)
        while (artifact := find_finished(made, outcomes, run.workspace)) is None:
            if time.monotonic() >= deadline:
                raise _not_made(run, stage, step)
            progress.message(f"waiting for what '{step.id}' has made to be seen on this machine")
            time.sleep(_LOOK_AGAIN_SECONDS)
        outcomes[step.id] = Outcome(step, UP_TO_DATE, artifact)
    return wanted, outcomes


def _not_made(run: RecipeRun, stage: str, missing: Step) -> ArtifactError:
    import shlex

    command = shlex.join(["lwdctl", *run.arguments("--only", missing.id)])
    return ArtifactError(
        f"stage '{stage}' reads what '{missing.id}' makes, which is not in {run.workspace.root}",
        f"make it first: {command}",
    )
