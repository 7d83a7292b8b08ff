"""Run the stages of a recipe as jobs of Slurm: one per stage, each after those that it depends on.

Nothing has to wait for the jobs: who submitted them may go away. The same command later joins the
jobs that are queued and submits what is missing. The conditions of an evaluation are measured by an
array of jobs; the job of the stage follows it and makes one evaluation of their records.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.progress import Progress
from lwdctl.pipeline.executor import EXECUTORS, JOB_EXECUTORS, Ended, run_with
from lwdctl.pipeline.plan import MADE, PlannedStage, RecipeRun, plan_stages, reserve_versions
from lwdctl.pipeline.records import DONE
from lwdctl.pipeline.runner import PLANNED, UP_TO_DATE, Outcome, announce_imports
from lwdctl.pipeline.slurm_job import LONGEST_LAG_SECONDS
from lwdctl.pipeline.slurm_jobs import StageJobs, frozen, jobs_folder, log_path, stage_jobs
from lwdctl.pipeline.slurm_queue import QueuedJob, SlurmError, base_id, by_name
from lwdctl.pipeline.slurm_systems import JobSystem, LocalSystem, SlurmSystem, parse_slurm_options

LONGEST_END_SECONDS = 60.0
"""How long Slurm may take to end a job: it kills what has not ended 30 seconds after SIGTERM."""
_ASK_SECONDS, _SLOWEST_ASK_SECONDS, _SLOWER = 1.0, 15.0, 1.05


class JobExecutor:
    """Runs stages as jobs; see `pipeline.executor.Executor`.

    Args:
        run: The recipe, see `frozen`.
        system: Where jobs run.
        progress: Where to report.
        options: The options of `lwdctl run` that choose it, for messages.
        eval_jobs: Most jobs that the conditions of one evaluation are split into; 0 for one each.
    """

    poll_seconds = 0.5

    def __init__(
        self,
        run: RecipeRun,
        system: JobSystem,
        progress: Progress,
        options: tuple[str, ...] = (),
        eval_jobs: int = 0,
    ) -> None:
        self.options, self.queues = options, system.orders
        self._run, self._system, self._progress = run, system, progress
        most = eval_jobs or system.most_at_once
        self._jobs = stage_jobs(run, min(most, system.most_at_once))
        self._numbers: dict[str, str] = {}
        self._parts: dict[str, str] = {}
        self._shown: dict[str, str] = {}
        self._live = self._settled()
        self._gone: dict[str, float] = {}
        self._after: dict[str, tuple[str, ...]] = {}
        self._asked, self._pause = time.monotonic(), _ASK_SECONDS

    def _settled(self) -> dict[str, list[QueuedJob]]:
        """Return the jobs in the queue once none of this recipe is just ending.

        Such a job was cancelled, and is no longer to be waited for, or is requeued.
        """
        ours = {name for jobs in self._jobs.values() for name in (jobs.name, jobs.parts_name)}
        deadline = time.monotonic() + LONGEST_END_SECONDS
        while True:
            live = self._system.live()
            ending = [job for job in live if job.name in ours and job.state == "COMPLETING"]
            if not ending or time.monotonic() > deadline:
                return by_name(live)
            self._show("", f"waiting for job {ending[0].id} to end")
            time.sleep(self.poll_seconds)

    def has_room(self) -> bool:
        """Return whether another job can be submitted now."""
        return len(self._numbers) + len(self._parts) < self._system.most_at_once

    def start(self, stage: PlannedStage, after: Sequence[str]) -> None:
        """Submit the jobs of a stage, unless they are queued already.

        Raises:
            SlurmError: A job is refused.
        """
        jobs = self._jobs[stage.id]
        self._after[stage.id] = tuple(after)
        before = [self._numbers[other] for other in after]
        live = self._live.get(jobs.name)
        if live:
            self._note(stage.id, live[0].id, f"job {live[0].id} is in the queue already")
            return
        jobs.forget()
        if jobs.parts:
            before = [self._submit_parts(jobs, before)]
            if not self._system.orders:
                self._parts[stage.id] = before[0]
                return
        self._submit(jobs, before)

    def _submit_parts(self, jobs: StageJobs, before: Sequence[str]) -> str:
        live = self._live.get(jobs.parts_name)
        if live:
            return base_id(live[0].id)
        parts = [jobs.job(part) for part in range(jobs.parts)]
        number = self._system.submit(jobs.parts_name, parts, before)
        self._progress.message(f"{jobs.stage}: {jobs.parts} jobs measure conditions ({number})")
        return number

    def _submit(self, jobs: StageJobs, before: Sequence[str]) -> None:
        number = self._system.submit(jobs.name, [jobs.job()], before)
        follows = f" after {', '.join(before)}" if before else ""
        self._note(jobs.stage, number, f"job {number}{follows}")

    def _note(self, stage: str, number: str, text: str) -> None:
        self._numbers[stage] = number
        self._progress.message(f"{stage}: {text}")
        if self._system.outlives:
            self._run.files.update(stage, job=number)

    def assist(self, stage: PlannedStage) -> None:
        """Do nothing: the conditions of an evaluation are jobs of their own already."""

    def ended(self) -> Mapping[str, Ended]:
        """Return the stages whose jobs have ended since the last call."""
        if time.monotonic() - self._asked < self._pause:
            return {}
        self._asked = time.monotonic()
        self._pause = min(_SLOWEST_ASK_SECONDS, _SLOWER * self._pause)
        try:
            self._live = by_name(self._system.live())
        except SlurmError as error:  # a controller that restarts
            self._show("", error.message)
            return {}
        asked = list(self._numbers.items())  # not those that follow now
        over = dict(self._follow())
        for stage, number in asked:
            live = self._live.get(self._jobs[stage].name)
            if live:
                self._gone.pop(stage, None)
                self._show(stage, _state_text(live[0]))
                continue
            ended = self._how(stage, number)
            # In the order of the recipe, also where an artifact is seen later than the next one.
            if ended is not None and not set(self._after[stage]) & set(self._numbers):
                over[stage] = ended
                del self._numbers[stage]
        return over

    def _follow(self) -> Mapping[str, Ended]:
        """Submit evaluations whose conditions are measured; return those that failed."""
        failed = {}
        for stage in list(self._parts):
            jobs = self._jobs[stage]
            if jobs.parts_name in self._live:
                continue
            del self._parts[stage]
            ends = [jobs.end(part) for part in range(jobs.parts)]
            if all(end is not None and not end.code for end in ends):
                self._submit(jobs, ())
            else:
                failed[stage] = Ended(False, _failed_parts(jobs, self._run))
        return failed

    def _show(self, stage: str, text: str) -> None:
        if self._shown.get(stage) != text:
            self._shown[stage] = text
            self._progress.message(f"{stage}: {text}" if stage else text)

    def _how(self, stage: str, number: str) -> Ended | None:
        """Return how a job ended that is out of the queue; None while that cannot be seen yet."""
        waited = time.monotonic() - self._gone.setdefault(stage, time.monotonic())
        jobs = self._jobs[stage]
        end = jobs.end()
        if end is not None and end.code:
            return Ended(False, f"exit status {end.code}, see {log_path(self._run, number)}")
        if end is not None:
            seen = self._is_seen(stage) or waited > LONGEST_LAG_SECONDS
            return Ended(True) if seen else None
        words = self._system.how_it_ended(number)
        if words in ("", "COMPLETED") and waited < LONGEST_LAG_SECONDS and self._system.orders:
            return None
        if "Dependency" in words:
            failed = _failed_parts(jobs, self._run) if jobs.parts else ""
            return Ended(False, failed or "not run, as a job that it depends on failed")
        log = log_path(self._run, number)
        return Ended(False, f"job {number} ended without a result ({words or 'killed'}), see {log}")

    def _is_seen(self, stage: str) -> bool:
        """Tell whether this machine sees the artifact that a stage has made."""
        record = self._run.files.read(stage)
        if record.state != DONE:
            return True  # it was up to date when the job began
        try:
            self._run.workspace.resolve("", record.artifact)
        except ArtifactError:
            return False
        return True

    def stop(self) -> None:
        """End the jobs that do not go on by themselves."""
        if self._system.outlives:
            self._progress.message(
                "the jobs go on by themselves; the same command waits for them again, and"
                f" `lwdctl status {self._run.recipe.path.name} --cancel` cancels them"
            )
        self._system.stop()


def run_as_jobs(
    run: RecipeRun,
    progress: Progress,
    executor: str = "slurm",
    *,
    slurm: Sequence[str] = (),
    detach: bool = False,
    eval_jobs: int = 0,
    options: tuple[str, ...] = (),
) -> list[Outcome]:
    """Run a recipe's stages as jobs and wait for them.

    Args:
        run: The recipe. The jobs read a copy of it.
        progress: Where to report.
        executor: `"slurm"`, or `"local"` for such jobs on this machine.
        slurm: Options of sbatch for every job, as `KEY=VALUE,...`.
        detach: Return when the jobs are submitted; for `"slurm"` alone.
        eval_jobs: Most jobs that the conditions of one evaluation are split into; 0 for one each.
        options: The options of `lwdctl run` that say all this, for messages.

    Returns:
        The outcomes in the order of the recipe.

    Raises:
        ConfigError: Jobs do not run there.
        MissingExtraError: submitit is not installed.
        LwdctlError: There is no Slurm, a job is refused, or stages failed.
    """
    if executor not in JOB_EXECUTORS:
        known = ", ".join(EXECUTORS)
        raise ConfigError(f"executor takes {known}, not '{plain_text(executor, 60)}'")
    given, folder = parse_slurm_options(slurm), jobs_folder(run)
    system: JobSystem
    system = SlurmSystem(folder, given) if executor == "slurm" else LocalSystem(folder)
    jobs = JobExecutor(frozen(run), system, progress, options=options, eval_jobs=eval_jobs)
    if detach and system.orders:
        return submit_stages(jobs, run, progress)
    return run_with(jobs, run, progress)


def submit_stages(executor: JobExecutor, run: RecipeRun, progress: Progress) -> list[Outcome]:
    """Submit every stage that is not up to date and return without waiting for the jobs.

    Args:
        executor: Submits jobs; its system has to order them.
        run: The recipe.
        progress: Where to report.

    Raises:
        SlurmError: A job is refused; those that were submitted before it stay.
    """
    announce_imports(run.steps, progress)
    stages = plan_stages(run)
    missing = [stage for stage in stages if stage.state != MADE]
    reserve_versions(missing, run)
    names = {stage.id for stage in missing}
    for stage in missing:
        executor.start(stage, [other for other in stage.depends_on if other in names])
    progress.message(f"submitted; follow the jobs with: lwdctl status {run.recipe.path}")
    return [
        Outcome(stage.step, UP_TO_DATE if stage.artifact else PLANNED, stage.artifact)
        for stage in stages
    ]


def _failed_parts(jobs: StageJobs, run: RecipeRun) -> str:
    """Return which jobs that measure conditions failed, or ""."""
    failed = [end for end in map(jobs.end, range(jobs.parts)) if end is not None and end.code]
    if not failed:
        return ""
    log = log_path(run, failed[0].job) if failed[0].job else jobs_folder(run) / "logs"
    return (
        f"{len(failed)} of {jobs.parts} jobs that measure conditions failed"
        f" (exit status {failed[0].code}), see {log}"
    )


def _state_text(job: QueuedJob) -> str:
    where = f" on {job.node}" if job.node else ""
    why = f" ({job.reason})" if job.reason and not job.node else ""
    return f"job {job.id} {job.state.lower()}{where}{why}"
