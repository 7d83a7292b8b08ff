"""Real commands in forked children with limits: exit status, lines, seconds and memory.

`python limited.py WORKSPACE` answers command lines, one of JSON per line; see `Served`.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from lwdctl.cli.main import main
from lwdctl.data.formats import READERS

SECONDS = 20
LINES = 2
MOST_BYTES = 10**9
ADDRESSES = 6 * 10**9
"""Address space that a child may take beyond its parent's, so that a bomb does not take all."""
WRONG = 99
"""Exit status where the command ended well, but what it read is not in the file."""
COUNTED: list[str] = []
"""One line per campaign: injected, survived, lost."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit status, negative for a signal.
        text: What it wrote to stderr.
        peak: Largest resident memory, in bytes.
        seconds: Time it took.
    """

    code: int
    text: str
    peak: int
    seconds: float

    def problem(self) -> str:
        """Return which limit was passed, "" for none."""
        lines = [line for line in self.text.splitlines() if not line.startswith("note:")]
        if self.code == -signal.SIGKILL and self.seconds >= SECONDS:
            return f"longer than {SECONDS} s"
        if self.code not in {0, 1, 2}:
            return f"exit {self.code}"
        if len(lines) > LINES:
            return f"{len(lines)} lines"
        if self.code and not self.text.startswith("error: "):
            return "no error line"
        return f"{self.peak / 1e6:.0f} MB" if self.peak > MOST_BYTES else ""


class Served:
    """Runs commands as `run` does, in children of a new process, which has taken no memory yet."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace

    def __enter__(self) -> Served:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "LWDCTL_WORKSPACE": str(self._workspace), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._server.communicate()

    def __call__(self, words: list[str]) -> Ended:
        """Run a command to its end."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(words) + "\n")
        self._server.stdin.flush()
        return Ended(*json.loads(self._server.stdout.readline()))


def load() -> None:
    """Import what the commands import, once, before the forks."""
    for name in ("stages.ingest", "data.inspection", "envs.table", "cli.commands", "cli.inspect"):
        importlib.import_module(f"lwdctl.{name}")
    for name in READERS:
        READERS.load(name)
    silent = io.StringIO()
    with (
        redirect_stderr(silent),
        redirect_stdout(silent),
    ):  # what parses options is imported with the first one
        main(["inspect", "hdf5", "nowhere", "-q"])


def words_of(options: dict[str, Any]) -> list[str]:
    """Return settings as options of the command line."""
    words = []
    for name, value in options.items():
        text = ",".join(value) if isinstance(value, list | tuple) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    return words


def run(
    words: list[str],
    prepare: Callable[[], object] = lambda: None,
    check: Callable[[], object] = lambda: None,
) -> Ended:
    """Run a command in a child of this process, which has the modules loaded.

    Args:
        words: The command line after `lwdctl`.
        prepare: What the child does before.
        check: What it does after a command that ended with 0; an exception is a wrong result.
    """
    sys.stdout.flush()
    with tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(errors.fileno(), 2)
            # Those of this process may be files of pytest's.
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            code = 98
            try:
                code = _limited(words, prepare, check)
            except BaseException:  # noqa: BLE001 - whatever it is, it is a defect
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        # A signal of its own could be ignored, and would not end a loop in C.
        handle = os.pidfd_open(child)
        if not select.select([handle], [], [], SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
        os.close(handle)
        _, status, used = os.wait4(child, 0)
        seconds = time.monotonic() - began
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), text, used.ru_maxrss * 1024, seconds)


def _limited(words: list[str], prepare: Callable[[], object], check: Callable[[], object]) -> int:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = used + ADDRESSES if most == resource.RLIM_INFINITY else min(used + ADDRESSES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prepare()
    code = main(words)
    if code == 0:
        try:
            check()
        except BaseException:  # noqa: BLE001 - `Ended.problem` shows it
            traceback.print_exc()
            return WRONG
    return code


if __name__ == "__main__":
    load()
    for line in sys.stdin:
        print(json.dumps(astuple(run(json.loads(line)))), flush=True)  # noqa: T201
