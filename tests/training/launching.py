"""Processes of one training, started as a launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SCRIPT = str(Path(__file__).parent / "every_objective.py")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(**more: Any) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**bare, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in more.items()}}


RUNNING: list[subprocess.Popen[Any]] = []


def start_process(command: list[str], **settings: Any) -> subprocess.Popen[Any]:
    """Start a process that does not outlive its test."""
    process = subprocess.Popen(command, **settings)
    RUNNING.append(process)
    return process


def end_what_runs() -> None:
    for process in RUNNING:
        if process.poll() is None:
            process.terminate()  # torchrun ends its processes
            process.communicate(timeout=60)
    RUNNING.clear()


class Started:
    """Processes of one training, by rank, without a launcher that watches them."""

    def __init__(self, arguments: list[str], size: int = 2, **more: Any) -> None:
        port = free_port()
        self.processes = [
            start_process(
                [sys.executable, SCRIPT, *arguments],
                env=environment(
                    RANK=rank, WORLD_SIZE=size, MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
                    LOCAL_RANK=rank, LOCAL_WORLD_SIZE=size, **more,
                ),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(size)
        ]  # fmt: skip

    def end(self, seconds: float = 500.0) -> list[tuple[int, str, str]]:
        """Return exit code, stdout and stderr of every process."""
        try:
            texts = [process.communicate(timeout=seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [
            (process.returncode, *text) for process, text in zip(self.processes, texts, strict=True)
        ]


def torchrun(*arguments: str, size: int = 2, more: tuple[str, ...] = (), **variables: Any) -> Any:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}", *more]
    return start_process(
        [*command, *arguments], env=environment(**variables),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(found: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)
