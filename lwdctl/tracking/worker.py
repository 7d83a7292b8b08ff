"""The process of one tracker: it reads the log of a run from its directory and shows it.

The run itself never calls a tracker's library, waits for it, or shares a terminal, a signal or a
thread with it. `tracking.session` starts this process with an `Order` in JSON as its stdin, and
writes an `End` to a pipe when the run has ended. On stdout the process answers with one object per
line: `{"alive": BYTES}` every second, with the bytes of media handed over so far; `{"say": TEXT}`;
and at last `{"done": true}` or `{"error": TEXT}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO

from lwdctl.core.errors import ArtifactError, LwdctlError, first_line
from lwdctl.core.plain_text import plain_text
from lwdctl.core.untrusted import parse_json, typed
from lwdctl.tracking.history import Outcome, Point, outcome_of, points
from lwdctl.tracking.run import TrackedRun
from lwdctl.tracking.trackers import TRACKERS

POLL_SECONDS = 1.0
READING_FRACTION = 0.05
"""Fraction of its time that the process reads a long log for."""
ORPHANED_SECONDS = 300
"""Seconds to finish in after the run's process has died."""
FINISHED, INTERRUPTED = "finished", "interrupted"
_SECRET = re.compile(r"[A-Za-z0-9_\-]{32,}|//[^/\s@]+@")


@dataclass(frozen=True)
class Order:
    """What to do.

    Attributes:
        tracker: Row of `TRACKERS`.
        run: What is shown.
        directory: The run's directory.
        root: Folder for local files.
        ignored: Logs below the directory, with the time of change in nanoseconds at which they are
            ignored: a resumed training is about to cut them.
    """

    tracker: str
    run: TrackedRun
    directory: str
    root: str
    ignored: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """How the run ended: `"finished"` or `"interrupted"`, and where its files lie now."""

    state: str
    directory: str


class Worker:
    """Shows one run.

    Args:
        order: What to do.
        tracker: What shows it.
        ending: Pipe that the `End` comes from.
        out: Where to answer.
    """

    def __init__(self, order: Order, tracker: Tracker, ending: BinaryIO, out: TextIO) -> None:
        self._order, self._tracker, self._ending, self._out = order, tracker, ending, out
        self._begun = False
        self._step = 0
        self._bytes = 0
        self._read_seconds = 0.0

    def follow(self) -> None:
        """Show the run until it has ended, and its outcome."""
        live = Path(self._order.directory)
        end = None
        while end is None:
            end = self._wait_for_end(max(POLL_SECONDS, self._read_seconds / READING_FRACTION))
            if end is None:
                self._send_what_can_be_read(live)
        finished = end.state == FINISHED
        if finished:
            self._send(Path(end.directory), {})
            self._conclude(Path(end.directory))
        else:
            self._send_what_can_be_read(live)
        if self._begun:
            self._tracker.finish(finished=finished)
        self._answer(done=True)

    def _send_what_can_be_read(self, directory: Path) -> None:
        """Show what was logged; what is being moved or written right now is read next time."""
        with contextlib.suppress(ArtifactError, OSError):
            self._send(directory, self._order.ignored)

    def _send(self, directory: Path, ignored: Mapping[str, int]) -> None:
        """Show what was logged since the last time."""
        started = time.monotonic()
        fresh = [point for point in points(directory, ignored) if point.step > self._step]
        self._read_seconds = time.monotonic() - started
        for point in fresh:
            self._begin()
            self._tracker.log(point)
            self._step = point.step
            self._beat(started)

    def _conclude(self, directory: Path) -> None:
        outcome = outcome_of(directory)
        self._begin()
        self._bytes = sum(item.size for item in outcome.media)
        self._answer(alive=self._bytes)
        self._tracker.conclude(outcome, self._step + 1)

    def _begin(self) -> None:
        """Begin the run with its first number: one that fails before is not shown at all.

        The library is imported then, not while a training measures how many threads are fastest.
        """
        if not self._begun:
            order = self._order
            self._tracker.begin(order.run, Path(order.root), lambda text: self._answer(say=text))
            self._begun = True

    def _wait_for_end(self, seconds: float) -> End | None:
        """Wait for the line that says that the run has ended; None if none comes in that time."""
        until = time.monotonic() + seconds
        ready: list[BinaryIO] = []
        while not ready:
            left = until - time.monotonic()
            if left <= 0:
                return None
            self._answer(alive=self._bytes)
            ready, _, _ = select.select([self._ending], [], [], min(left, POLL_SECONDS))
        line = self._ending.readline()
        if line:
            return typed(End, parse_json(line, "end"), "end")
        signal.alarm(ORPHANED_SECONDS)  # the run's process died, and nobody watches this one
        return End(INTERRUPTED, self._order.directory)

    def _beat(self, started: float) -> None:
        if time.monotonic() - started > POLL_SECONDS:
            self._answer(alive=self._bytes)

    def _answer(self, **values: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # the end of the pipe `ending` says the same
            self._out.write(json.dumps(values) + "\n")
            self._out.flush()


def main() -> int:
    """Show the run that stdin describes; return the exit code."""
    # What libraries print goes nowhere: it may hold secrets.
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        content = sys.stdin.buffer.read()
        order = typed(Order, parse_json(content, "order", allow_nan=True), "order")
        with open(int(sys.argv[1]), "rb") as ending:  # noqa: PTH123 - of a descriptor
            Worker(order, TRACKERS.load(order.tracker)(), ending, out).follow()
    except Exception as error:  # noqa: BLE001 - whatever a library raises
        with contextlib.suppress(BrokenPipeError):
            out.write(json.dumps({"error": reason(error)}) + "\n")
            out.flush()
        # Threads of a library that has failed must not keep the process.
        os._exit(1)
    return 0


def reason(error: BaseException) -> str:
    """Return why a library failed, in one line without what could be a secret."""
    text = first_line(error)
    for name, value in os.environ.items():
        if re.search(r"KEY|TOKEN|SECRET|PASSWORD", name) and len(value) >= 4:
            text = text.replace(value, "***")
    kind = "" if isinstance(error, LwdctlError) else f"{type(error).__name__}: "
    return plain_text(kind + _SECRET.sub("***", text), 300).rstrip(".")


if __name__ == "__main__":
    sys.exit(main())


class Tracker(Protocol):
    """Shows one run. Whatever its methods raise ends the tracking, never the run."""

    def begin(self, run: TrackedRun, root: Path, say: Callable[[str], None]) -> None:
        """Begin to show a run, or go on with the one of the same id.

        Args:
            run: The run.
            root: Folder for local files: the workspace, as a rule.
            say: Shows a line to the user.
        """

    def log(self, point: Point) -> None:
        """Show one row of the log; steps increase. One that is shown already changes nothing."""

    def conclude(self, outcome: Outcome, step: int) -> None:
        """Show the summary, result rows and media of a finished run behind its last step."""

    def finish(self, *, finished: bool) -> None:
        """Send what is left, and say whether the run was finished or interrupted."""
