"""Trackers beside a run: one process each, and what is said when one fails."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lwdctl.artifacts.manifest import plain
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.plain_text import plain_text
from lwdctl.core.progress import Progress
from lwdctl.tracking.history import log_files
from lwdctl.tracking.run import TrackedRun, project_name
from lwdctl.tracking.worker import FINISHED, INTERRUPTED, End, Order

SILENT_SECONDS = 30.0
"""Seconds without a sign of life after which a tracker counts as hung, and one more for every
megabyte of videos and pictures that it sends."""
STARTING_SECONDS = 60.0
"""The same for the first sign of life: Python may lie on a slow disk."""
INTERRUPTED_SECONDS = 15.0
"""The same where the run was interrupted: whoever interrupted it waits for the end."""
_MEGABYTE = 1e6


class Session:
    """One tracker in a process of its own.

    Args:
        order: What it shows.
        progress: Where to say what it says.
        again: Command that sends the run later, "" where none can; None leaves the failure to the
            caller to report.
        patience: Seconds without a sign of life after which it counts as hung; None takes
            `SILENT_SECONDS`.

    Attributes:
        tracker: Its name.
        failure: Why it was dropped, or "".
    """

    def __init__(
        self,
        order: Order,
        progress: Progress,
        again: str | None = "",
        patience: float | None = None,
    ) -> None:
        self._order, self._progress, self._again = order, progress, again
        self._patience, self._megabytes = patience or SILENT_SECONDS, 0.0
        self.tracker, self.failure = order.tracker, ""
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        reading, self._ending = os.pipe()
        try:
            self._process = _start(order, reading)
            self._thread = threading.Thread(target=self._follow, args=(self._process,), daemon=True)
            self._thread.start()
        except (OSError, RuntimeError) as error:
            self.kill()
            self._process = None
            self._drop(f"it could not be started: {error}")
        finally:
            os.close(reading)

    def end(self, state: str, directory: Path) -> None:
        """Tell the tracker that the run has ended."""
        if state == INTERRUPTED:
            self._patience = min(self._patience, INTERRUPTED_SECONDS)
        line = json.dumps(asdict(End(state, str(directory)))).encode() + b"\n"
        with contextlib.suppress(OSError):  # it is gone
            os.write(self._ending, line)

    def wait(self) -> None:
        """Wait until the tracker has shown everything or was dropped."""
        if self._process is not None:
            self._thread.join()

    def close(self) -> None:
        """End the tracker's process, and those that it started."""
        self.kill()
        if self._process is not None:
            self._thread.join()
            assert self._process.stdout is not None
            self._process.stdout.close()
        os.close(self._ending)

    def kill(self) -> None:
        """Kill the tracker's process, and those that it started."""
        if self._process is not None and not self._killed:
            self._killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        """Pass on what the process says, until it ends or is dropped."""
        failure = self._listen(process)
        if failure and not self._killed:
            self.kill()
            self._drop(failure)

    def _listen(self, process: subprocess.Popen[bytes]) -> str:
        """Return why the process failed, "" where it did all."""
        assert process.stdout is not None
        rest, heard, alive = b"", time.monotonic(), False
        while True:
            ready, _, _ = select.select([process.stdout], [], [], 0.5)
            waited = time.monotonic() - heard
            if not ready:
                patience = self._patience + self._megabytes if alive else STARTING_SECONDS
                if waited > patience:
                    return f"it has not answered for {waited:.0f} s"
                continue
            heard, alive = time.monotonic(), True
            content = os.read(process.stdout.fileno(), 65536)
            *lines, rest = (rest + content).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                if "error" in answer:
                    return str(answer["error"])
                if "done" in answer:
                    return ""
                if "say" in answer:
                    self._progress.message(plain_text(str(answer["say"])))
                self._megabytes = answer.get("alive", 0) / _MEGABYTE
            if not content:
                return f"its process ended with exit code {process.wait()}"

    def _drop(self, failure: str) -> None:
        self.failure = failure
        if self._again is None:
            return
        name = self.tracker
        then = f"; send the run when it has ended: {self._again}" if self._again else ""
        self._progress.message(f"warning: {name} no longer follows this run: {failure}{then}")


def _start(order: Order, ending: int) -> subprocess.Popen[bytes]:
    """Start the process of a tracker.

    Args:
        order: What it does.
        ending: Pipe from which it reads when the run has ended.
    """
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(plain(asdict(order))).encode())
        file.seek(0)
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", "lwdctl.tracking.worker", str(ending)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(ending,),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            # Signals of the terminal are for the run, and there is no terminal to ask on.
            start_new_session=True,
        )


@dataclass
class Followed:
    """What a followed run came to.

    Attributes:
        directory: Where its result lies; None while it is not finished.
    """

    directory: Path | None = None


@contextmanager
def followed(
    names: Sequence[str],
    project: str,
    run: TrackedRun,
    directory: Path,
    root: Path | None,
    progress: Progress,
) -> Iterator[Followed]:
    """Let trackers follow a run until the block ends.

    Args:
        names: Names of the trackers.
        project: Project that the run is filed under; "" takes the workspace's name.
        run: The run.
        directory: Where it writes its log.
        root: Its workspace; None for a run that makes no artifact.
        progress: Where to warn.

    Yields:
        Where the block puts the directory of the result.
    """
    outcome = Followed()
    run = replace(run, project=project_name(project, root))
    known = {
        path.relative_to(directory).as_posix(): path.stat().st_mtime_ns
        for path in log_files(directory).values()
    }
    sessions = [
        Session(
            Order(name, run, str(directory.resolve()), str((root or Path()).resolve()), known),
            progress,
            "" if root is None else replay_command(run.id, name, project, root),
        )
        for name in names
    ]
    try:
        yield outcome
    finally:
        ended = outcome.directory or directory
        state = INTERRUPTED if outcome.directory is None else FINISHED
        end_all(sessions, state, ended)


def end_all(sessions: Sequence[Session], state: str, directory: Path) -> None:
    """Tell trackers that the run has ended, and wait until they have shown it or were dropped."""
    try:
        for session in sessions:
            session.end(state, directory.resolve())
        for session in sessions:
            session.wait()
    finally:
        for session in sessions:
            session.close()


def replay_command(identity: str, tracker: str, project: str, root: Path) -> str:
    """Return the command that sends a run to a tracker later."""
    words = ["lwdctl", "track", identity, "--to", tracker]
    words += ["--project", project] if project else []
    if root.resolve() != Workspace.locate().root.resolve():
        words += ["--workspace", str(root)]
    return shlex.join(words)
