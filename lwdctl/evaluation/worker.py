"""Worker processes that hold simulators: asked over a pipe, waited for only so long.

A worker ends with its parent, however the parent dies and whatever the worker does. It imports what
it needs after it has made sure of that, so this module imports little.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from lwdctl.core.errors import ConfigError
from lwdctl.core.processes import killed_with_parent

START_TIMEOUT = 180.0
"""Seconds a worker may take to import and build its simulators (numba compiles in some)."""

_UNGUARDED = 77
"""Exit code of a process that, while it imports the program's script, would start others."""
_DIED = "died"
_LATE = "did not answer in time"
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Worker:
    """The parent's end of one process.

    Args:
        serve: Runs in the process as `serve(connection, *arguments)` and answers requests until
            the connection raises that the parent hung up.
        arguments: What it needs; they are pickled.
        name: Name of the process.
        timeout: Seconds after which a process that does not read a request, or stops in the middle
            of an answer, counts as hung.

    Attributes:
        connection: The pipe to the process.
        lost: Why the process is gone, or "".
    """

    def __init__(
        self, serve: Callable[..., None], arguments: tuple[Any, ...], name: str, timeout: float
    ) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            os._exit(_UNGUARDED)  # the process that waits for this one says why
        context = multiprocessing.get_context("spawn")
        # Pickled apart: what the arguments need is imported once the process is tied to this one.
        content = bytes(ForkingPickler.dumps((serve, arguments)))
        self.connection, child = context.Pipe()
        _limit_waiting(self.connection, socket.SO_SNDTIMEO, START_TIMEOUT + timeout)
        _limit_waiting(self.connection, socket.SO_RCVTIMEO, timeout)
        self._process: BaseProcess = context.Process(
            target=_run, args=(child, content), name=f"lwdctl-simulator-{name}", daemon=True
        )
        with _signals_held_back():
            self._process.start()
        child.close()
        self.lost = ""

    def send(self, message: Any) -> None:
        """Send a request; a dead or deaf process is noticed here or on receipt."""
        self._attempt(lambda: self.connection.send(message))

    def send_by(self, send: Callable[[Connection[Any, Any], int], None]) -> None:
        """Send with a function of the connection and of the process's number."""
        self._attempt(lambda: send(self.connection, self._process.pid or 0))

    def receive(self, deadline: float) -> tuple[Any, str]:
        """Return the answer, and why there is none.

        Raises:
            ConfigError: The process died since the script that it imports starts processes.
        """
        answer = self._attempt(lambda: self._answer(deadline))
        return answer, self.lost

    def give_up(self, reason: str = _LATE) -> None:
        """Kill the process."""
        self.connection.close()
        self._kill()
        self.lost = f"the simulator process {reason}"
        if reason == _DIED:
            if self._process.exitcode == _UNGUARDED:
                raise ConfigError(
                    "worker processes import the program's script, which would start them again",
                    'put what the script does below `if __name__ == "__main__":`, or set workers=0',
                ) from None
            self.lost += f" (exit code {self._process.exitcode})"

    def stop(self, deadline: float = 0.0) -> None:
        """Hang up, wait until the deadline for the process to end, then kill it."""
        self.connection.close()  # upon which a healthy process ends
        self._process.join(timeout=max(0.0, deadline - time.monotonic()))
        self._kill()
        self._process.close()

    def _answer(self, deadline: float) -> Any:
        if not self.connection.poll(max(0.0, deadline - time.monotonic())):
            raise BlockingIOError
        return self.connection.recv()

    def _attempt(self, talk: Callable[[], Any]) -> Any:
        """Return what a call gives; give the process up where the pipe shows that it is lost."""
        if self.lost:
            return None
        try:
            return talk()
        except BlockingIOError:
            self.give_up(_LATE)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.give_up(_DIED)
        return None

    def _kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def _limit_waiting(connection: Connection[Any, Any], option: int, seconds: float) -> None:
    """Let a read, or a write, that makes no progress for so long raise `BlockingIOError`."""
    seconds = max(0.01, seconds)  # the system takes 0 for no limit
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
        pipe.setsockopt(socket.SOL_SOCKET, option, limit)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Deliver no SIGINT and SIGTERM to this thread, nor to a process while it starts.

    A process inherits this: nothing that is meant for its parent ends it half-way into its imports.
    """
    resource_tracker.ensure_running()  # whose start would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(connection: Connection[Any, Any], content: bytes) -> None:
    """Serve in the new process. SIGINT stays blocked: the parent decides what it means."""
    _end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    serve, arguments = ForkingPickler.loads(content)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        serve(connection, *arguments)


def _end_with_parent() -> None:
    """Let this process end when its parent is gone, without a question of its own.

    The system kills it, also where it is stopped or inside a call that holds the interpreter. The
    thread is for other systems than Linux, and for a parent that was gone before.
    """
    killed_with_parent()
    threading.Thread(target=_outlive_parent, name="lwdctl-parent", daemon=True).start()


def _outlive_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # the end of a pipe that only the parent holds; nothing is polled
    os._exit(1)
