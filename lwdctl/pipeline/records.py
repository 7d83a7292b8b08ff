"""What is known of a stage while a recipe runs: one small file per stage, read without locks.

`<workspace>/.recipes/<recipe>/<stage>.json` says where the stage stands; the process that runs the
stage replaces the file as a whole every second, so that any process, also one on another machine
that sees the same file system, can follow it. `<stage>.log` beside it holds the stage's messages
where it runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from lwdctl.artifacts.locks import Owner
from lwdctl.artifacts.manifest import now, plain
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import LwdctlError
from lwdctl.core.progress import Progress, Task
from lwdctl.core.untrusted import read_json, typed
from lwdctl.pipeline.slurm_job import job_id

FOLDER = ".recipes"
WAITING: Final = "waiting"
RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
RecordedState = Literal["waiting", "running", "done", "failed"]

FRESH_SECONDS = 120.0
"""Age up to which a record that says that its process runs is believed without further signs."""
WRITE_SECONDS = 1.0
"""Shortest time between two writes of the progress of one stage."""


@dataclass(frozen=True)
class TaskState:
    """The task that a stage works on: `done` of `total` units, and its latest numbers."""

    title: str = ""
    done: int = 0
    total: int | None = None
    unit: str = "it"
    fields: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRecord:
    """Where one stage of a recipe stands.

    Attributes:
        state: `"waiting"` (its version is reserved, nothing has begun), `"running"`, `"done"` or
            `"failed"`.
        version: Number reserved for the version of the artifact that it makes; 0 for none.
        reserved_for: Type and name of that artifact (`"vae/lift"`).
        host: Name of the machine that runs it.
        pid: Its process there; 0 where none has begun.
        job: Number of its job in a queue (Slurm), or "".
        started: When it began, UTC ISO 8601, or "".
        updated: When the record was written, UTC ISO 8601.
        task: What it works on.
        artifact: Reference of the artifact that it made, or "".
        error: Why it failed, in one line, or "".
        hint: What to do about it, or "".
    """

    state: RecordedState = WAITING
    version: int = 0
    reserved_for: str = ""
    host: str = ""
    pid: int = 0
    job: str = ""
    started: str = ""
    updated: str = ""
    task: TaskState = field(default_factory=TaskState)
    artifact: str = ""
    error: str = ""
    hint: str = ""

    @property
    def process_is_gone(self) -> bool:
        """Whether it says that it runs, but its process has surely ended (`Owner.is_gone`)."""
        return self.state == RUNNING and Owner(self.host, self.pid, self.job).is_gone

    @property
    def is_fresh(self) -> bool:
        """Whether its process says that it runs, and has said so within the last two minutes."""
        if self.state != RUNNING or not self.updated:
            return False
        try:
            said = datetime.fromisoformat(self.updated)
            return abs((datetime.now(UTC) - said).total_seconds()) < FRESH_SECONDS
        except (ValueError, TypeError, OverflowError):
            return False


class StageFiles:
    """The records of the stages of one recipe in one workspace.

    Args:
        workspace: The workspace.
        recipe: Name of the recipe; that of its toy size differs (`Recipe.name` with the suffix).
    """

    def __init__(self, workspace: Workspace, recipe: str) -> None:
        self.folder = workspace.root / FOLDER / quote(recipe, safe="")

    def path(self, stage: str) -> Path:
        """Return where the record of a stage lies."""
        return self.folder / f"{quote(stage, safe='')}.json"

    def log(self, stage: str) -> Path:
        """Return where the messages of a stage go that runs in a process of its own."""
        return self.folder / f"{quote(stage, safe='')}.log"

    def read(self, stage: str) -> StageRecord:
        """Return the record of a stage; one that is missing or damaged says nothing."""
        path = self.path(stage)
        try:
            return typed(StageRecord, read_json(path), str(path), only_known=False)
        except LwdctlError:
            return StageRecord()

    def write(self, stage: str, record: StageRecord) -> None:
        """Replace the record of a stage.

        A record is no result: where it cannot be written (a full disk), nothing happens.
        """
        path = self.path(stage)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        text = json.dumps(plain(asdict(replace(record, updated=now()))))
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)

    def update(self, stage: str, **changes: Any) -> None:
        """Change some fields of the record of a stage."""
        self.write(stage, replace(self.read(stage), **changes))


class RecordedProgress:
    """Reports to another progress, and keeps the record of the stage up to date.

    Args:
        inner: Where messages and tasks are shown.
        files: The records of the recipe.
        stage: Id of the stage that runs.
        record: Its record as the stage begins.
    """

    def __init__(self, inner: Progress, files: StageFiles, stage: str, record: StageRecord) -> None:
        self._inner, self._files, self._stage, self._record = inner, files, stage, record
        self._written = 0.0

    def message(self, text: str) -> None:
        """Show the line."""
        self._inner.message(text)

    @contextmanager
    def task(
        self, title: str, total: int | None, unit: str = "it", start: int = 0
    ) -> Iterator[Task]:
        """Yield a task that is shown and recorded."""
        with self._inner.task(title, total, unit, start) as inner:
            task = _RecordedTask(inner, self, TaskState(title, start, total, unit))
            yield task
            self.show(task.state, final=True)

    def show(self, task: TaskState, *, final: bool = False) -> None:
        """Write the state of a task, unless it is not its last and one was written just before."""
        if not final and time.monotonic() - self._written < WRITE_SECONDS:
            return
        self._files.write(self._stage, replace(self._record, task=task))
        self._written = time.monotonic()


class _RecordedTask:
    def __init__(self, inner: Task, progress: RecordedProgress, state: TaskState) -> None:
        self._inner, self._progress, self.state = inner, progress, state
        progress.show(state)

    def advance(self, amount: int = 1, **fields: float | str) -> None:
        self._inner.advance(amount, **fields)
        state = self.state
        self.state = replace(state, done=state.done + amount, fields=fields or state.fields)
        self._progress.show(self.state)


@contextmanager
def recorded(files: StageFiles, stage: str, progress: Progress) -> Iterator[RecordedProgress]:
    """Record that this process runs a stage, and how that ends; yield the progress to report to.

    Who enters writes `done` with the artifact itself (`StageFiles.update`).
    """
    record = replace(
        files.read(stage), state=RUNNING, host=socket.gethostname(), pid=os.getpid(), job=job_id(),
        started=now(), task=TaskState(), artifact="", error="", hint="",
    )  # fmt: skip
    files.write(stage, record)
    try:
        yield RecordedProgress(progress, files, stage, record)
    except BaseException as error:
        files.update(stage, state=FAILED, error=_reason(error), hint=getattr(error, "hint", ""))
        raise


def _reason(error: BaseException) -> str:
    """Return why a stage ended, in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, LwdctlError):
        return error.message
    if not isinstance(error, Exception):  # a signal, as an exception of the command line
        return type(error).__name__.lower()
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
