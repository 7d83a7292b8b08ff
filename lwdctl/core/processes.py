"""Processes: whether one exists, and ending with the one that started this, however it dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 1.0


def process_exists(pid: int) -> bool:
    """Tell whether this machine has a process with a number, which may come from a damaged file."""
    import psutil  # here, so that help texts do not wait for it

    try:
        return bool(psutil.pid_exists(pid))
    except OverflowError:  # no process has such a number
        return False


def killed_with_parent() -> None:
    """Let Linux kill this process when the thread that started it is gone.

    It does so also where this process is stopped or inside a call that holds the interpreter.
    On other systems nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with(parent: int) -> None:
    """Let this process end when its parent is gone, on any system.

    Args:
        parent: The parent's process number, as the parent knows it: it may be gone already.
    """
    killed_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    if sys.platform != "linux":
        threading.Thread(target=_outlive, args=(parent,), daemon=True).start()


def _outlive(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)
