"""A process that starts stages: it has imported what they need, and forks one process for each.

Importing torch takes seconds, so that it is done once. The server reads requests as lines of JSON
on stdin, answers with lines of JSON on stdout, has no thread of its own, and uses neither torch nor
a GPU before it forks. The process of a stage then goes on as `python -m lwdctl` with the stage's
arguments does. When the server's parent is gone, it ends, and with it all that it has started.

Requests: `{"stage": ID, "arguments": [...], "environment": {...}, "log": PATH}` starts a stage,
`{"stage": ID, "signal": NUMBER}` sends a signal to it. Answer: `{"stage": ID, "status": NUMBER}`
when it has ended, where a negative number is that of a signal.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lwdctl.core.processes import end_with

_BLOCK = 1 << 16


def main(parent: int, modules: Sequence[str]) -> None:
    """Serve until stdin ends; in the process of a stage, run its command.

    Args:
        parent: Number of the process that started this one.
        modules: What to import while nothing else is to be done.
    """
    end_with(parent)
    request = _Server(list(modules)).serve()
    if request is not None:
        sys.argv = ["lwdctl", *request["arguments"]]
        runpy.run_module("lwdctl", run_name="__main__", alter_sys=True)


class _Server:
    """Reads requests, forks, and reports what has ended."""

    def __init__(self, modules: list[str]) -> None:
        self._modules = modules
        self._children: dict[int, str] = {}
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

    def serve(self) -> Mapping[str, Any] | None:
        """Return a request in the process that is to run it, and None where all is over."""
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
                    if self._handle(request):
                        return request
            elif not ready and self._modules:
                self._import(self._modules.pop(0))

    def _read(self) -> list[dict[str, Any]] | None:
        """Return the requests that have come; None where nobody will send any more."""
        content = os.read(0, _BLOCK)
        if not content:
            return None
        *lines, self._unread = (self._unread + content).split(b"\n")
        return [json.loads(line) for line in lines]

    def _handle(self, request: Mapping[str, Any]) -> bool:
        """Do what is asked; return whether this is now the process of a stage."""
        if "signal" in request:
            for pid, stage in self._children.items():
                if stage == request["stage"]:
                    os.kill(pid, request["signal"])
            return False
        pid = os.fork()
        if pid:
            self._children[pid] = request["stage"]
            return False
        self._become(request)
        return True

    def _become(self, request: Mapping[str, Any]) -> None:
        """Make the forked process one that a shell could have started."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_with(self._pid)
        for end in (self._answers, self._woken, self._wake):
            os.close(end)
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(log)
        os.environ.update(request["environment"])

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._woken, _BLOCK):
                pass
        for pid, stage in list(self._children.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._children[pid]
                self._answer({"stage": stage, "status": os.waitstatus_to_exitcode(status)})

    def _answer(self, answer: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the parent has gone: stdin says so next
            os.write(self._answers, json.dumps(answer).encode() + b"\n")

    def _import(self, module: str) -> None:
        # What cannot be imported is reported by the stage that needs it.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
        gc.freeze()  # so that the memory stays shared with the processes of the stages

    def _kill_all(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
