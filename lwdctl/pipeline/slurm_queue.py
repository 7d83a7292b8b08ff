"""What Slurm says about jobs, asked with its own programs.

`squeue` and `scontrol` answer on every cluster; `sacct` needs an accounting database, which many
do not have.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lwdctl.core.errors import LwdctlError
from lwdctl.core.plain_text import plain_text
from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.slurm_jobs import jobs_folder, log_path, stage_jobs

_FIELDS = re.compile(r"\b(JobState|Reason)=(\S*)")
_SECONDS = 60


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits, runs or is about to end.

    Attributes:
        id: Its number, `"12"` or, for a task of an array, `"12_3"`.
        name: Its name.
        state: Slurm's word for its state (`"PENDING"`, `"RUNNING"`).
        reason: Why it waits (`"Priority"`, `"Dependency"`), or "".
        node: Where it runs, or "".
    """

    id: str
    name: str
    state: str
    reason: str = ""
    node: str = ""


class SlurmError(LwdctlError):
    """Slurm is not there, does not answer, or refuses a job."""


def check_slurm() -> None:
    """Check that Slurm's programs are installed here.

    Raises:
        SlurmError: They are not.
    """
    if shutil.which("sbatch") is None:
        raise SlurmError(
            "there is no Slurm on this machine: no program sbatch is on the PATH",
            "use lwdctl where you use sbatch; or run stages side by side here with --jobs 2, or"
            " take files to a cluster with --slurm-script DIR",
        )


def queued_jobs() -> list[QueuedJob]:
    """Return this user's jobs that are not over.

    Raises:
        SlurmError: Slurm does not answer.
    """
    form = "%i|%T|%r|%N|%j"
    text = _ask("squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", form)
    jobs = []
    for line in text.splitlines():
        parts = line.strip().split("|", 4)
        if len(parts) == 5:
            number, state, reason, node, name = (plain_text(part, 200) for part in parts)
            reason = "" if reason == "None" else reason
            jobs.append(QueuedJob(number, name, state, reason, node))
    return jobs


def how_it_ended(job: str) -> str:
    """Return Slurm's words for the end of a job, or "" where it has forgotten the job."""
    try:
        text = _ask("scontrol", "-o", "show", "job", job)
    except SlurmError:
        return ""
    found = dict(_FIELDS.findall(text.splitlines()[0] if text else ""))
    state, reason = found.get("JobState", ""), found.get("Reason", "None")
    words = state if reason in ("None", "") else f"{state} ({reason})"
    return plain_text(words, 200)


def cancel_jobs(jobs: Sequence[str]) -> None:
    """Cancel jobs; those that are over are passed over.

    Raises:
        SlurmError: Slurm does not answer.
    """
    if jobs:
        _ask("scancel", *jobs)


def base_id(job: str) -> str:
    """Return the number of the whole array that a task belongs to (`"12"` for `"12_3"`)."""
    return job.partition("_")[0]


def by_name(jobs: Collection[QueuedJob]) -> dict[str, list[QueuedJob]]:
    """Return jobs by their names; the tasks of one array share theirs."""
    found: dict[str, list[QueuedJob]] = {}
    for job in jobs:
        found.setdefault(job.name, []).append(job)
    return found


def _ask(program: str, *arguments: str) -> str:
    # A user's SQUEUE_PARTITION and the like would hide jobs.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    try:
        done = subprocess.run(  # noqa: S603 - no words of a user
            [program, *arguments],
            env=environment, capture_output=True, text=True, errors="replace", check=False,
            timeout=_SECONDS,
        )  # fmt: skip
    except FileNotFoundError:
        check_slurm()
        raise
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{program} has not answered for {_SECONDS} seconds", _AGAIN) from None
    if done.returncode:
        said = plain_text(done.stderr.strip() or done.stdout.strip(), 300)
        raise SlurmError(f"{program} failed: {said}", _AGAIN)
    return done.stdout


_AGAIN = "jobs that are queued go on; run the same command again when Slurm answers: sinfo"


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
