"""Where the stages of a recipe stand: from the workspace's artifacts and the stages' records."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from lwdctl.artifacts.manifest import plain
from lwdctl.core.progress import Progress
from lwdctl.pipeline.plan import MADE, RESUMABLE, PlannedStage, RecipeRun, plan_stages
from lwdctl.pipeline.records import FAILED, RUNNING, StageRecord, TaskState
from lwdctl.pipeline.slurm_jobs import jobs_folder, log_path
from lwdctl.pipeline.slurm_queue import JobStatus, SlurmError, base_id, jobs_among, queued_jobs

MISSING: Final = "missing"
QUEUED: Final = "queued"
StageState = Literal["missing", "queued", "running", "resumable", "done", "failed"]

GONE = "its process ended before it could say why"


@dataclass(frozen=True)
class StageStatus:
    """Where one stage of a recipe stands.

    Attributes:
        id: Its name within the recipe.
        command: The stage command.
        state: `"done"`: its artifact is up to date. `"running"`: a process works on it.
            `"queued"`: its job waits in Slurm's queue.
            `"resumable"`: an interrupted run has left a checkpoint to go on from. `"failed"`: its
            last run failed. `"missing"`: none of these.
        artifact: Reference of its artifact where it is up to date, or "".
        task: What it works on while it runs.
        updated: When the process that runs it last reported, UTC ISO 8601, or "".
        host: Machine that runs it, or "".
        job: Number of its job in a queue, or "".
        queue: What the queue says of its jobs (`"job 12 pending (Dependency)"`), or "".
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
    queue: str = ""
    error: str = ""
    hint: str = ""
    log: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        values: dict[str, Any] = plain(asdict(self))
        return values


def recipe_status(run: RecipeRun, progress: Progress | None = None) -> list[StageStatus]:
    """Return where every stage of a recipe stands, in order; nothing is changed.

    Args:
        run: The recipe.
        progress: Where to say that Slurm, which has jobs of the recipe, does not answer.
    """
    found = [_status(run, stage) for stage in plan_stages(run)]
    # A stage may also run in a job that somebody else wrote, beside other commands.
    if not jobs_folder(run).exists() and not any(_is_in_job(item) for item in found):
        return found
    try:
        queue = queued_jobs()
    except SlurmError as error:
        if progress is not None:
            progress.message(f"{error.message}; the states are those that stages reported last")
        return [_with_log(item, run) for item in found]
    ours, numbers = jobs_among(run, queue), {base_id(job.id) for job in queue}
    return [
        _with_jobs(item, [job for job in ours if job.stage == item.id], numbers, run)
        for item in found
    ]


def _is_in_job(status: StageStatus) -> bool:
    return status.state == RUNNING and bool(status.job)


def _with_log(status: StageStatus, run: RecipeRun) -> StageStatus:
    """Name the log of the job that a stage had, if there is one."""
    if not status.job or status.state == MADE:
        return status
    log = log_path(run, status.job)
    return replace(status, log=str(log)) if log.is_file() else status


def _with_jobs(
    status: StageStatus, jobs: Sequence[JobStatus], numbers: Collection[str], run: RecipeRun
) -> StageStatus:
    """Add what Slurm says: the jobs of a stage, and the numbers of all that are in the queue."""
    if jobs:
        working = [job for job in jobs if "running" in job.state or "completing" in job.state]
        running, job = bool(working), (working or jobs)[0]
        return replace(
            status,
            state=RUNNING if running else QUEUED,
            job=jobs[-1].id,
            queue="; ".join(job.text for job in jobs),
            task=status.task if running else None,
            error="",
            hint="",
            log=str(job.log),
        )
    status = _with_log(status, run)
    if _is_in_job(status) and base_id(status.job) not in numbers:
        return replace(
            status, state=FAILED, task=None, error=f"job {status.job} is no longer in the queue"
        )
    return status


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
