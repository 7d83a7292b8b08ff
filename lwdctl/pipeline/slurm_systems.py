"""Where jobs run, through submitit: Slurm, or processes of this machine in its place.

Options that a user passes on to sbatch are checked here, before a job is submitted.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lwdctl.core.errors import ConfigError, MissingExtraError, first_line, install_extra
from lwdctl.core.plain_text import plain_text, visible
from lwdctl.pipeline.resources import DEVICES
from lwdctl.pipeline.slurm_job import ALWAYS, WARNING_SECONDS, StageJob
from lwdctl.pipeline.slurm_queue import (
    QueuedJob,
    SlurmError,
    base_id,
    check_slurm,
    how_it_ended,
    queued_jobs,
)

_FOREVER_MINUTES = 60 * 24 * 365


class JobSystem(Protocol):
    """Where jobs run.

    Attributes:
        orders: Whether it can be told that a job follows others.
        outlives: Whether jobs go on where the process that submitted them ends.
        most_at_once: Jobs that are submitted at the same time at most.
    """

    orders: bool
    outlives: bool
    most_at_once: int

    def submit(self, name: str, jobs: Sequence[StageJob], after: Sequence[str]) -> str:
        """Submit a job, or an array of several, and return its number.

        Args:
            name: Its name.
            jobs: What runs: one, or the tasks of the array.
            after: Numbers of the jobs that have to succeed first.

        Raises:
            SlurmError: It is refused.
        """

    def live(self) -> list[QueuedJob]:
        """Return the jobs that are not over."""

    def how_it_ended(self, job: str) -> str:
        """Return the system's words for the end of a job, or ""."""

    def stop(self) -> None:
        """End all jobs that do not outlive this process, and wait until they have."""


class SlurmSystem:
    """Submits jobs to Slurm.

    Args:
        folder: Where logs go; the nodes see it under the same path.
        options: Options of sbatch, from `parse_slurm_options`.

    Raises:
        MissingExtraError: submitit is not installed.
        SlurmError: There is no Slurm on this machine.
    """

    orders, outlives, most_at_once = True, True, 2**31

    def __init__(self, folder: Path, options: Mapping[str, str | bool]) -> None:
        check_slurm()
        self._executor = _submitit().SlurmExecutor(folder=folder / "logs")
        self._options = {**options, **ALWAYS, "signal": f"USR2@{WARNING_SECONDS}"}
        # With its own number, since newer srun do not take it over from sbatch; and unbound, since
        # a step may otherwise run on a single core.
        cores = options.get("cpus-per-task")
        self._srun = ["--cpu-bind=none", *([f"--cpus-per-task={cores}"] if cores else [])]

    def submit(self, name: str, jobs: Sequence[StageJob], after: Sequence[str]) -> str:
        """Submit a job or an array; see `JobSystem.submit`."""
        options = dict(self._options)
        if after:
            options["dependency"] = f"afterok:{':'.join(map(base_id, after))}"
        self._executor.parameters.clear()
        self._executor.update_parameters(
            job_name=name, time=None, wckey=None, stderr_to_stdout=True,
            additional_parameters=options, srun_args=self._srun,
        )  # fmt: skip
        try:
            with _outside_of_jobs():
                submitted = self._executor.submit_array(list(jobs))
        except Exception as error:  # submitit raises its own and plain ones
            said = plain_text(str(error).strip() or first_line(error), 300)
            raise SlurmError(
                f"sbatch refused the job {name}: {said}",
                "change the options with --slurm KEY=VALUE,...; `sinfo` lists the partitions",
            ) from error
        return base_id(str(submitted[0].job_id))

    def live(self) -> list[QueuedJob]:
        """Return this user's jobs that are not over."""
        return queued_jobs()

    def how_it_ended(self, job: str) -> str:
        """Return Slurm's words for the end of a job, or ""."""
        return how_it_ended(job)

    def stop(self) -> None:
        """Do nothing: jobs go on by themselves."""


class LocalSystem:
    """Runs jobs as processes of this machine, by submitit's local executor.

    Args:
        folder: Where logs go.

    Raises:
        MissingExtraError: submitit is not installed.
    """

    orders, outlives = False, False

    def __init__(self, folder: Path) -> None:
        self.most_at_once = os.cpu_count() or 1
        self._executor = _submitit().LocalExecutor(folder=folder / "logs")
        self._executor.update_parameters(timeout_min=_FOREVER_MINUTES, stderr_to_stdout=True)
        self._jobs: dict[str, tuple[str, Any]] = {}

    def submit(self, name: str, jobs: Sequence[StageJob], after: Sequence[str]) -> str:
        """Start one process per job; see `JobSystem.submit`."""
        assert not after
        numbers = []
        for job in jobs:
            process = self._executor.submit(StageJob([*_same_devices(), *job.command], job.record))
            numbers.append(str(process.job_id))
            self._jobs[numbers[-1]] = (name, process)
        return numbers[0]

    def live(self) -> list[QueuedJob]:
        """Return the jobs whose process runs."""
        return [
            QueuedJob(number, name, "RUNNING")
            for number, (name, process) in self._jobs.items()
            if not process.done()
        ]

    def how_it_ended(self, job: str) -> str:
        """Return "": a process leaves nothing but its record."""
        del job
        return ""

    def stop(self) -> None:
        """End every process with SIGTERM, so that it writes a checkpoint, and wait for it."""
        for job in self.live():
            os.kill(int(job.id), signal.SIGTERM)
        while self.live():
            time.sleep(0.1)


def _same_devices() -> list[str]:
    """Return what lets a command see the GPUs that this process sees: submitit would hide them."""
    named = os.environ.get(DEVICES)
    return ["env", "-u", DEVICES] if named is None else ["env", f"{DEVICES}={named}"]


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise MissingExtraError(
            "running on a cluster needs the package 'submitit', which is not installed",
            f"{install_extra('slurm')}; or write files for sbatch: --slurm-script DIR",
        ) from error
    return submitit


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Submit from within a job of Slurm as from outside: sbatch would take over its settings."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    from submitit.helpers import clean_env

    config = os.environ.get("SLURM_CONF")
    with clean_env():
        if config is not None:
            os.environ["SLURM_CONF"] = config
        yield


_KEY = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_OURS = {
    "array": "the conditions of an evaluation make the array: see --eval-jobs",
    "dependency": "the recipe says which stage follows which",
    "error": "`lwdctl status RECIPE` names every log",
    "job-name": "lwdctl finds its jobs by their names",
    "kill-on-invalid-dep": "jobs whose inputs cannot be made are always removed",
    "nodes": "a stage runs as one process on one node",
    "no-requeue": "a job that is requeued goes on from its checkpoint",
    "ntasks": "a stage runs as one process; for its threads, set cpus-per-task",
    "ntasks-per-node": "a stage runs as one process; for its threads, set cpus-per-task",
    "open-mode": "a job that is requeued appends to its log",
    "output": "`lwdctl status RECIPE` names every log",
    "parsable": "lwdctl reads what sbatch prints",
    "requeue": "it is always set",
    "signal": "lwdctl asks for a signal 120 seconds before the time limit and requeues the job",
    "test-only": "use `lwdctl run RECIPE --dry-run`",
    "wait": "`lwdctl run` waits by itself; --detach does not",
    "wrap": "lwdctl writes the script",
}
"""Options of sbatch that lwdctl sets itself, and why or what to use instead."""


def parse_slurm_options(texts: Iterable[str]) -> dict[str, str | bool]:
    """Return the options of sbatch that `KEY=VALUE,...` texts name.

    A part without `=` belongs to the value before it (`nodelist=n1,n2`); the value `true` stands
    for an option without a value (`exclusive=true`).

    Args:
        texts: What was given, for example `["partition=gpu,gpus=1", "time=4:00:00"]`.

    Raises:
        ConfigError: A key that is no option's name, or one that lwdctl sets itself; an empty value
            or one with control characters.
    """
    found: dict[str, str | bool] = {}
    for text in texts:
        if visible(text) != text:
            raise ConfigError(
                f"--slurm {plain_text(text, 80)} has a line break or another control character",
                "give KEY=VALUE pairs, for example --slurm partition=gpu,gpus=1,time=4:00:00",
            )
        for part in _parts(text):
            key, _, value = part.partition("=")
            key, value = key.strip().lstrip("-").replace("_", "-"), value.strip()
            _check(key, value, part)
            found[key] = True if value == "true" else value
    return found


def _parts(text: str) -> list[str]:
    """Split `a=1,b=2,3` into `a=1` and `b=2,3`."""
    parts: list[str] = []
    for piece in text.split(","):
        if "=" in piece or not parts:
            parts.append(piece)
        else:
            parts[-1] += f",{piece}"
    return parts


def _check(key: str, value: str, part: str) -> None:
    if not _KEY.fullmatch(key) or not value:
        raise ConfigError(
            f"--slurm: '{part}' is no KEY=VALUE with an option of sbatch",
            "for example --slurm partition=gpu,gpus=1,time=4:00:00; for an option without a value"
            " --slurm exclusive=true",
        )
    if key in _OURS:
        raise ConfigError(f"--slurm: lwdctl sets '{key}' itself", _OURS[key])
