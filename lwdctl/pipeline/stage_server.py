"""A process that starts stages: it has imported what they need, and forks workers for them.

Importing torch takes seconds, so that it is done once. The server reads requests as lines of JSON
on stdin, answers with lines of JSON on stdout, has no thread of its own, and uses neither torch nor
a GPU before it forks. A worker runs the command `lwdctl ARGUMENTS`, and after it has succeeded
further ones, unless it was told to end. When the server's parent is gone, it ends, and with it all
that it has started.

Requests: `{"worker": NUMBER, "stage": ID, "arguments": [...], "environment": {...}, "log": PATH,
"reuse": BOOL, "most": NUMBER}` runs a stage in one of at most so many workers, which is forked
where there is none of that number;
`{"worker": NUMBER, "signal": NUMBER}` sends it a signal; `{"import": [...]}` names modules to
import when nothing else is to be done. Answers: `{"worker": NUMBER, "stage": ID}`
when a stage has succeeded and its worker waits for another; `{"worker": NUMBER, "status": NUMBER}`
when the worker has ended, where a negative number is that of a signal.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lwdctl.core.processes import end_with

_BLOCK = 1 << 16
_OPEN = Path("/proc/self/fd")


def main(parent: int, modules: Sequence[str]) -> None:
    """Serve until stdin ends; in a worker, run its stages.

    Args:
        parent: Number of the process that started this one.
        modules: What to import while nothing else is to be done.
    """
    end_with(parent)
    worker = _Server(list(modules)).serve()
    if worker is not None:
        sys.exit(worker.run())


def main_forked(parent: int, modules: Sequence[str], requests: int, answers: int) -> None:
    """Serve in a process that was forked from one that runs a command.

    Args:
        parent: As for `main`.
        modules: As for `main`.
        requests: Descriptor of the requests, which becomes stdin.
        answers: Descriptor for the answers, which becomes stdout.
    """
    os.setsid()  # Ctrl-C reaches the parent alone
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):  # a handler of the parent's
            signal.signal(number, signal.SIG_DFL)
    sys.unraisablehook = sys.__unraisablehook__
    os.dup2(requests, 0)
    os.dup2(answers, 1)
    for item in _OPEN.iterdir():  # not all numbers that are allowed: they may be a billion
        if int(item.name) > 2:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(int(item.name))
    try:
        main(parent, modules)
    finally:
        atexit._run_exitfuncs()  # noqa: SLF001 - multiprocessing leaves them out


class _Worker:
    """The process that runs stages, one after the other.

    Args:
        requests: Descriptor from which it reads further requests.
        answers: Descriptor for the answers of the server.
        first: The first request.
    """

    def __init__(self, requests: int, answers: int, first: Mapping[str, Any]) -> None:
        self._requests, self._answers, self._first = requests, answers, first

    def run(self) -> int:
        """Run stages until one fails or no other comes; return the exit status."""
        command = importlib.import_module("lwdctl.cli.main").main
        request: Mapping[str, Any] | None = self._first
        with open(self._requests, "rb") as requests:  # noqa: PTH123 - of a descriptor
            while request is not None:
                self._redirect(request["log"])
                os.environ.update(request["environment"])
                status: int = command(request["arguments"])
                if status or not request["reuse"]:
                    return status
                _write(self._answers, {key: request[key] for key in ("worker", "stage")})
                line = requests.readline()
                request = json.loads(line) if line else None
        return 0

    def _redirect(self, path: str) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)


class _Server:
    """Reads requests, forks, and reports what has ended."""

    def __init__(self, modules: list[str]) -> None:
        self._modules = modules
        self._workers: dict[int, int] = {}
        self._pipes: dict[int, int] = {}
        self._unread = b""
        self._pid = os.getpid()
        # What is imported may greet on stdout, which belongs to the answers.
        self._answers = os.dup(1)
        os.dup2(2, 1)
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self) -> _Worker | None:
        """Return, in a forked process, the worker to run, and None where all is over."""
        while True:
            ready, _, _ = select.select([0, self._woken], [], [], 0 if self._modules else None)
            if self._woken in ready:
                self._reap()
            if 0 in ready:
                requests = self._read()
                if requests is None:
                    self._kill_all()
                    return None
                for request in requests:
                    worker = self._handle(request)
                    if worker is not None:
                        return worker
            elif not ready and self._modules:
                self._import(self._modules.pop(0))

    def _read(self) -> list[dict[str, Any]] | None:
        """Return the requests that have come; None where nobody will send any more."""
        content = os.read(0, _BLOCK)
        if not content:
            return None
        *lines, self._unread = (self._unread + content).split(b"\n")
        return [json.loads(line) for line in lines]

    def _handle(self, request: Mapping[str, Any]) -> _Worker | None:
        """Do what is asked; return the worker that this process now is, if it was forked."""
        if "import" in request:
            self._modules += request["import"]
            return None
        number = request["worker"]
        if "signal" in request:
            if number in self._workers.values():
                pid = next(pid for pid, worker in self._workers.items() if worker == number)
                os.kill(pid, request["signal"])
            return None
        if number in self._pipes and _write(self._pipes[number], request):
            return None
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(writing)
            self._become()
            return _Worker(reading, self._answers, request)
        os.close(reading)
        self._workers[pid] = number
        if request["reuse"] and len(self._workers) >= request["most"]:
            self._modules.clear()  # no worker would have them
        self._pipes[number] = writing
        return None

    def _become(self) -> None:
        """Make the forked process one that a shell could have started."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_with(self._pid)
        for end in (self._woken, self._wake, *self._pipes.values()):
            os.close(end)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._woken, _BLOCK):
                pass
        for pid, number in list(self._workers.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._workers[pid]
                os.close(self._pipes.pop(number))
                code = os.waitstatus_to_exitcode(status)
                _write(self._answers, {"worker": number, "status": code})

    def _import(self, module: str) -> None:
        # What cannot be imported is reported by the stage that needs it.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
        gc.freeze()  # so that the memory stays shared with the processes of the stages

    def _kill_all(self) -> None:
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _write(descriptor: int, values: Mapping[str, Any]) -> bool:
    """Write a line of JSON; return whether somebody may read it."""
    try:
        os.write(descriptor, json.dumps(values).encode() + b"\n")
    except OSError:
        return False
    return True
