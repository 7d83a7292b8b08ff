"""Run the stages of a recipe through an executor: several at once, here or on a cluster."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.references import parse_reference
from lwdctl.core.errors import ArtifactError, LwdctlError
from lwdctl.core.progress import Progress, Task
from lwdctl.pipeline.plan import MADE, PlannedStage, RecipeRun, plan_stages, reserve_versions
from lwdctl.pipeline.records import DONE, FAILED, RUNNING, StageRecord, TaskState
from lwdctl.pipeline.runner import RAN, UP_TO_DATE, Outcome, announce_imports, find_finished

JOB_EXECUTORS = ("slurm", "local")
EXECUTORS = ("here", *JOB_EXECUTORS)
"""Where the stages of a recipe can run."""
SHOW_SECONDS = 0.5
"""Seconds between two looks at the records of what runs."""


@dataclass(frozen=True)
class Ended:
    """How the process or job of a stage ended.

    Attributes:
        succeeded: Whether it ended with exit status 0.
        reason: Why it ended, for a stage that could not record it itself (`"killed by signal 9"`).
    """

    succeeded: bool
    reason: str = ""


class Executor(Protocol):
    """Where stages run: processes of this machine, or jobs of a cluster.

    An executor runs the command `lwdctl *stage.arguments` of every stage that it is given and tells
    how it ended. All else is read from the stage's record, which that command keeps up to date
    (`pipeline.records`): its progress, its artifact, its error. `run_with` decides what starts
    when, reports, and collects the outcomes.

    Attributes:
        options: The options of `lwdctl run` that choose it, for messages (`("--jobs", "2")`).
        queues: Whether it takes stages whose inputs are not made yet and starts them by itself
            when the stages that they depend on have succeeded (dependencies of a cluster's jobs).
        poll_seconds: Seconds between two questions.
    """

    options: tuple[str, ...]
    queues: bool
    poll_seconds: float

    def has_room(self) -> bool:
        """Return whether another stage can be started now."""

    def start(self, stage: PlannedStage, after: Sequence[str]) -> None:
        """Start a stage and return at once.

        Args:
            stage: What to run.
            after: Ids of stages started before that have to succeed first; empty unless `queues`.

        Raises:
            LwdctlError: It cannot be started at all (no cluster, no processes).
        """

    def assist(self, stage: PlannedStage) -> None:
        """Let a free process do a part of what a running stage has not begun, where it can.

        Asked while nothing is left to start, so a stage may have been assisted before.
        """

    def ended(self) -> Mapping[str, Ended]:
        """Return the stages that have ended since the last call, by id."""

    def stop(self) -> None:
        """End everything that was started and is not over, and wait for it.

        A stage gets the chance to write a checkpoint (SIGTERM). Called where the run is
        interrupted or fails; nothing is started afterwards.
        """


def run_with(executor: Executor, run: RecipeRun, progress: Progress) -> list[Outcome]:
    """Run every stage that is not up to date through an executor.

    A stage that fails keeps those from running that depend on it; the others go on.

    Args:
        executor: Where stages run.
        run: The recipe.
        progress: Where to report: one task per running stage.

    Returns:
        The outcomes in the order of the recipe, as a run of one stage after the other gives them.

    Raises:
        LwdctlError: Stages failed; the message names them and those that were not run.
    """
    announce_imports(run.steps, progress)
    stages = _Stages(executor, run, progress)
    try:
        stages.begin()
        while stages.look():
            time.sleep(executor.poll_seconds)
    finally:
        stages.close()
    stages.check()
    return [stages.outcomes[step.id] for step in run.steps]


class _Stages:
    """The stages of one run: which wait, run, are done, or failed."""

    def __init__(self, executor: Executor, run: RecipeRun, progress: Progress) -> None:
        self._executor, self._run, self._progress = executor, run, progress
        self._stages = plan_stages(run)
        self._waiting: dict[str, PlannedStage] = {}
        self._running: dict[str, _Line] = {}
        self._failed: dict[str, str] = {}
        self._skipped: list[str] = []
        self._shown = 0.0
        self.outcomes: dict[str, Outcome] = {}

    def begin(self) -> None:
        """Note what is up to date and reserve versions for the rest."""
        for stage in self._stages:
            if stage.state == MADE and stage.artifact:
                self._say(stage.id, f"{stage.artifact.reference} is up to date")
                self.outcomes[stage.id] = Outcome(stage.step, UP_TO_DATE, stage.artifact)
            else:
                self._waiting[stage.id] = stage
        reserve_versions(list(self._waiting.values()), self._run)

    def look(self) -> bool:
        """Note what has ended, start what can be started; return whether anything is left."""
        for identity, ended in self._executor.ended().items():
            self._end(identity, ended)
        if time.monotonic() - self._shown >= SHOW_SECONDS:
            self._shown = time.monotonic()
            for identity, line in self._running.items():
                line.show(self._run.files.read(identity))
        for stage in list(self._waiting.values()):
            self._consider(stage)
        if not self._waiting:
            self._assist()
        return bool(self._waiting or self._running)

    def _assist(self) -> None:
        """Let free processes do parts of the stages that run."""
        for stage in self._stages:
            if stage.id in self._running and stage.step.stage.parts and self._executor.has_room():
                self._executor.assist(stage)

    def _consider(self, stage: PlannedStage) -> None:
        if any(other in self._failed or other in self._skipped for other in stage.depends_on):
            del self._waiting[stage.id]
            self._skipped.append(stage.id)
            return
        unfinished = [other for other in stage.depends_on if other not in self.outcomes]
        ready = not unfinished or (
            self._executor.queues and all(other in self._running for other in unfinished)
        )
        if not ready or not self._executor.has_room():
            return
        self._executor.start(stage, unfinished)
        del self._waiting[stage.id]
        self._running[stage.id] = _Line(stage.id, self._progress)
        self._say(
            stage.id, f"lwdctl {stage.step.stage.command} (makes {stage.step.stage.artifact_type})"
        )

    def _end(self, identity: str, ended: Ended) -> None:
        record = self._run.files.read(identity)
        line = self._running.pop(identity)
        line.show(record)
        line.close()
        stage = next(stage for stage in self._stages if stage.id == identity)
        artifact = None
        if ended.succeeded:
            artifact = self._artifact(stage, record)
        if artifact is None:
            self._fail(identity, record, ended)
            return
        if record.state == DONE:
            seconds = _seconds(record)
            self.outcomes[identity] = Outcome(stage.step, RAN, artifact, seconds)
            self._say(identity, f"made {artifact.reference} in {seconds:.1f} s")
        else:  # it was made meanwhile
            self.outcomes[identity] = Outcome(stage.step, UP_TO_DATE, artifact)
            self._say(identity, f"{artifact.reference} is up to date")

    def _artifact(self, stage: PlannedStage, record: StageRecord) -> Artifact | None:
        """Return what a stage has made, or found to be up to date."""
        step, workspace = stage.step, self._run.workspace
        if record.state != DONE:
            return find_finished(replace(step, forced=False), self.outcomes, workspace)
        try:  # the record may say anything
            version = parse_reference(record.artifact).version
            return workspace.resolve(step.stage.artifact_type, f"{step.name}:v{version}")
        except ArtifactError:
            return None

    def _fail(self, identity: str, record: StageRecord, ended: Ended) -> None:
        error = record.error if record.state == FAILED and record.error else ended.reason
        error = error or "ended without its artifact"
        if record.state != FAILED:
            self._run.files.update(identity, state=FAILED, error=error)
        self._failed[identity] = error
        hint = f" (hint: {record.hint})" if record.hint else ""
        self._say(identity, f"failed: {error}{hint}")

    def close(self) -> None:
        """End what still runs."""
        if self._running:
            self._executor.stop()
        for line in self._running.values():
            line.close()

    def check(self) -> None:
        """Raise where a stage failed."""
        if not self._failed:
            return
        failed = "; ".join(f"{identity} ({error})" for identity, error in self._failed.items())
        skipped = f"; not run, as they depend on these: {', '.join(self._skipped)}"
        run = self._run.after(self.outcomes)
        words = ["lwdctl", *run.arguments(*self._executor.options)]
        raise LwdctlError(
            f"{len(self._failed)} of {len(self._stages)} stages failed: {failed}"
            + (skipped if self._skipped else ""),
            f"messages are in {self._run.files.folder}; finished stages are kept, so run what is"
            f" missing with: {shlex.join(words)}",
        )

    def _say(self, identity: str, text: str) -> None:
        number = 1 + [stage.id for stage in self._stages].index(identity)
        self._progress.message(f"[{number}/{len(self._stages)}] {identity}: {text}")


class _Line:
    """The progress line of one running stage: the task that its record names."""

    def __init__(self, stage: str, progress: Progress) -> None:
        self._stage, self._progress = stage, progress
        self._open = ExitStack()
        self._task: Task | None = None
        self._state = TaskState()

    def show(self, record: StageRecord) -> None:
        """Show what the record says; another task begins another line."""
        state = record.task
        if record.state not in (RUNNING, DONE) or not state.title:
            return
        if self._task is None or (state.title, state.total) != self._shown:
            self._open.close()
            title = f"{self._stage}: {state.title}"
            self._task = self._open.enter_context(
                self._progress.task(title, state.total, state.unit, start=state.done)
            )
        elif state != self._state:
            fields: Any = dict(state.fields)
            self._task.advance(state.done - self._state.done, **fields)
        self._state = state

    @property
    def _shown(self) -> tuple[str, int | None]:
        return self._state.title, self._state.total

    def close(self) -> None:
        """End the line."""
        self._open.close()


def _seconds(record: StageRecord) -> float:
    """Return how long a stage took that is over."""
    try:
        begin, end = (datetime.fromisoformat(text) for text in (record.started, record.updated))
        return (end - begin).total_seconds()
    except (ValueError, TypeError):  # no times, or only one with a time zone
        return 0.0
