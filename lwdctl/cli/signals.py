"""Signals that end a command: none is lost, whatever the program is doing when it arrives.

This module is imported before all others and imports as little as it can: until the handlers are
installed, an interrupt ends in a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # `typing` would take longer to import than everything here
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""Signals that end a command, and what the command then says."""
_LOOK_AGAIN_SECONDS = 0.01
_MUST_END = {
    "<frozen importlib._bootstrap>": (),
    "/zarr/core/sync.py": (),
    "/lwdctl/artifacts/workspace.py": ("begin",),
    "/lwdctl/artifacts/run_in_progress.py": (
        "begin_run",
        "__enter__",
        "_finish",
        "discard",
        "remove_run",
    ),
}
"""Functions that no exception of a signal may leave: how the names of their source files end, and
their names where not all are meant. These import modules; wait for a thread of zarr, which would go
on to write into a directory that has been removed by then; make, publish or remove a run."""


class Interrupted(KeyboardInterrupt):
    """SIGINT arrived.

    A `KeyboardInterrupt` of the very class that passes through `exec` or `eval` of a text, as
    `dataclasses` and `inspect` use them, makes Python end itself by SIGINT instead of exiting.
    """


class Terminated(BaseException):
    """A signal other than SIGINT arrived; raised so that unfinished runs are cleaned up.

    `run --from` also raises it after SIGINT, with the stage with which it goes on, "" where all
    have finished.
    """

    def __init__(self, number: int, go_on_from: str | None = None) -> None:
        super().__init__(number)
        self.number, self.go_on_from = number, go_on_from


class Signals:
    """Handlers that turn the first signal into an exception and end the process at the second.

    No exception is raised while a module is imported: libraries catch it there, Python drops it
    in callbacks, and half of a module would remain. The signal is then handled when the import is
    over; likewise in a few other functions (`_MUST_END`). A signal that the process ignores (SIGINT
    in a background job of a script, SIGHUP under `nohup`) stays ignored.

    Attributes:
        received: The first signal that arrived, or 0.
        working: Whether a signal raises an exception; otherwise it ends the process at once.
        code: The exit code, once the work is over.
        hint: What to say when a second signal ends the process before it has cleaned up.
    """

    def __init__(self) -> None:
        self.received = 0
        self.working = False
        self.code: int | None = None
        self.hint = ""
        self._waits = False
        self._before: dict[int, Any] = {}
        self._unraisable: Callable[[Any], object] = sys.unraisablehook

    def catch(self) -> None:
        """Install the handlers; only the main thread can, in others nothing changes."""
        for number in (*SIGNALS, signal.SIGALRM):
            if number in SIGNALS and signal.getsignal(number) is signal.SIG_IGN:
                continue
            handler = self._arrived if number in SIGNALS else self._look_again
            try:
                self._before[number] = signal.signal(number, handler)
            except ValueError:  # another thread
                return
        sys.unraisablehook = self._dropped

    def restore(self) -> None:
        """Install the handlers that were there before `catch`."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._unraisable

    def end(self, code: int) -> int:
        """Return the exit code of the command, which no later signal changes."""
        self.code, self.working = code, False
        return code

    def ignore(self) -> None:
        """Ignore further signals: Python, as it ends, would let them kill the process."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def end_interrupted(self) -> int:
        """Say which signal arrived, where nothing else could, and return the exit code."""
        _write(f"error: {SIGNALS[signal.Signals(self.received or signal.SIGINT)]}")
        return self.end(128 + (self.received or signal.SIGINT))

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.received or not self.working:
            self._end_at_once(number)
        self.received = number
        if _must_wait(frame):
            self._wait()
        elif number == signal.SIGINT:
            raise Interrupted
        else:
            raise Terminated(number)

    def _wait(self) -> None:
        # Again and again: Python would not notice one that arrives just before a long system call.
        self._waits = True
        signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_SECONDS, _LOOK_AGAIN_SECONDS)

    def _look_again(self, number: int, frame: FrameType | None) -> None:
        """Let the signal that waits arrive again, for whatever handles it by now."""
        if not self._waits or (self.working and _must_wait(frame)):
            return
        self._waits = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.working:
            number, self.received = self.received, 0
            signal.raise_signal(number)

    def _dropped(self, unraisable: Any) -> None:
        """Keep a signal whose exception Python drops: it arrived in a callback or finalizer."""
        if self.received and isinstance(unraisable.exc_value, KeyboardInterrupt | Terminated):
            self._wait()
        else:
            self._unraisable(unraisable)

    def _end_at_once(self, number: int) -> None:
        if self.code is not None:
            os._exit(self.code)
        text = f"error: {SIGNALS[signal.Signals(number)]}"
        if self.received:
            text += f" again, before everything was cleaned up\nhint: {self.hint}"
        _write(text)
        os._exit(128 + number)


def _write(text: str) -> None:
    try:
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))
    except OSError:  # nobody reads it
        return


def _must_wait(frame: FrameType | None) -> bool:
    """Tell whether a function that an exception must not leave is being executed."""
    while frame is not None:
        for end, names in _MUST_END.items():
            code = frame.f_code
            if code.co_filename.endswith(end) and (not names or code.co_name in names):
                return True
        frame = frame.f_back
    return False
