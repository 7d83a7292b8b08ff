"""The jobs of a recipe that Slurm has in its queue, and cancelling them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.slurm_jobs import jobs_folder, log_path, stage_jobs
from lwdctl.pipeline.slurm_queue import QueuedJob, base_id, by_name, cancel_jobs, queued_jobs


@dataclass(frozen=True)
class JobStatus:
    """The job of a stage, or the array of jobs that measures its conditions.

    Attributes:
        stage: Id of the stage.
        id: Its number.
        state: Slurm's word, in lower case (`"pending"`); of an array, how many are in each state.
        detail: Why it waits, or where it runs.
        log: Where its messages go.
    """

    stage: str
    id: str
    state: str
    detail: str
    log: Path

    @property
    def text(self) -> str:
        """All of it in a few words."""
        return f"job {self.id} {self.state}" + (f" ({self.detail})" if self.detail else "")


def jobs_in_queue(run: RecipeRun) -> list[JobStatus]:
    """Return the jobs of a recipe that are not over, in the order of its stages.

    Raises:
        SlurmError: It has had jobs, and Slurm is not on this machine or does not answer.
    """
    return jobs_among(run, queued_jobs()) if jobs_folder(run).exists() else []


def jobs_among(run: RecipeRun, queue: Sequence[QueuedJob]) -> list[JobStatus]:
    """Return the jobs of a recipe among those in the queue, in the order of its stages."""
    live = by_name(queue)
    return [
        _summary(jobs.stage, live[name], run)
        for jobs in stage_jobs(run).values()
        for name in (jobs.parts_name, jobs.name)
        if name in live
    ]


def cancel_stages(run: RecipeRun) -> list[JobStatus]:
    """Cancel the jobs of a recipe and return those that were queued or running.

    What they have finished stays: `lwdctl run` goes on from their checkpoints.

    Raises:
        SlurmError: Slurm does not answer.
    """
    found = jobs_in_queue(run)
    # The last first: otherwise Slurm would begin to remove what depends on the first by itself.
    cancel_jobs([job.id for job in reversed(found)])
    return found


def _summary(stage: str, tasks: Sequence[QueuedJob], run: RecipeRun) -> JobStatus:
    number, first = base_id(tasks[0].id), tasks[0]
    if first.id == number and len(tasks) == 1:
        state, log = first.state.lower(), log_path(run, number)
    else:
        counts = Counter(task.state.lower() for task in tasks)
        state = ", ".join(f"{count} {word}" for word, count in counts.items())
        log = log_path(run, f"{number}_*")
    detail = ", ".join(sorted({task.node or task.reason for task in tasks} - {""}))
    return JobStatus(stage, number, state, detail, log)
