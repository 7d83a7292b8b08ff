"""Where the stages of a recipe stand: from the workspace's artifacts and the stages' records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from lwdctl.artifacts.manifest import plain
from lwdctl.pipeline.plan import MADE, RESUMABLE, PlannedStage, RecipeRun, plan_stages
from lwdctl.pipeline.records import FAILED, RUNNING, StageRecord, TaskState

MISSING: Final = "missing"
StageState = Literal["missing", "running", "resumable", "done", "failed"]

GONE = "its process ended before it could say why"


@dataclass(frozen=True)
class StageStatus:
    """Where one stage of a recipe stands.

    Attributes:
        id: Its name within the recipe.
        command: The stage command.
        state: `"done"`: its artifact is up to date. `"running"`: a process works on it.
            `"resumable"`: an interrupted run has left a checkpoint to go on from. `"failed"`: its
            last run failed. `"missing"`: none of these.
        artifact: Reference of its artifact where it is up to date, or "".
        task: What it works on while it runs.
        updated: When the process that runs it last reported, UTC ISO 8601, or "".
        host: Machine that runs it, or "".
        job: Number of its job in a queue, or "".
        error: Why its last run ended before it was done, in one line, or "".
        hint: What to do about it, or "".
        log: File that holds its messages where it ran in a process of its own, or "".
    """

    id: str
    command: str
    state: StageState
    artifact: str = ""
    task: TaskState | None = None
    updated: str = ""
    host: str = ""
    job: str = ""
    error: str = ""
    hint: str = ""
    log: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        values: dict[str, Any] = plain(asdict(self))
        return values


def recipe_status(run: RecipeRun) -> list[StageStatus]:
    """Return where every stage of a recipe stands, in order; nothing is changed."""
    return [_status(run, stage) for stage in plan_stages(run)]


def _status(run: RecipeRun, stage: PlannedStage) -> StageStatus:
    record = run.files.read(stage.id)
    command, log = stage.step.stage.command, run.files.log(stage.id)
    where = str(log) if log.is_file() else ""
    if record.state == RUNNING and not record.process_is_gone:
        return StageStatus(
            stage.id, command, RUNNING, task=record.task, updated=record.updated,
            host=record.host, job=record.job, log=where,
        )  # fmt: skip
    if stage.is_active:  # by a command of its own
        return StageStatus(stage.id, command, RUNNING)
    if stage.state == MADE and stage.artifact is not None:
        return StageStatus(stage.id, command, MADE, stage.artifact.reference, log=where)
    error, hint = _why(record)
    state: StageState = MISSING
    if stage.state == RESUMABLE:
        state = RESUMABLE
    elif error:
        state = FAILED
    return StageStatus(stage.id, command, state, job=record.job, error=error, hint=hint, log=where)


def _why(record: StageRecord) -> tuple[str, str]:
    """Return why the last run of a stage ended before it was done, and what to do about it."""
    if record.state == FAILED:
        return record.error, record.hint
    return (GONE, "") if record.process_is_gone else ("", "")
