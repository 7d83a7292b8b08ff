"""What this machine has for stages that run side by side: cores, memory, GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

STAGE_BYTES = 2 * 2**30
"""Memory that a stage is taken to need; one that trains on a large data set needs more."""
STAGE_GPU_BYTES = 4 * 2**30
"""Memory of a GPU that a stage is taken to need."""
DEVICES = "CUDA_VISIBLE_DEVICES"
CORES = "LOKY_MAX_CPU_COUNT"
"""Environment variable that limits the cores that joblib counts, and so what a stage starts beside
its own thread: environment workers, and the threads that a training tries out."""

_ASK_SECONDS = 20


@dataclass(frozen=True)
class Machine:
    """What stages can use.

    Attributes:
        cores: Processor cores.
        free_bytes: Memory that is free.
        gpus: CUDA devices as `CUDA_VISIBLE_DEVICES` names them.
        gpu_free_bytes: Free memory of all of them; None where it is unknown.
    """

    cores: int
    free_bytes: int
    gpus: tuple[str, ...] = ()
    gpu_free_bytes: int | None = None

    @property
    def jobs(self) -> int:
        """Number of stages that fit beside each other, at least 1."""
        fitting = [self.cores, self.free_bytes // STAGE_BYTES]
        if self.gpu_free_bytes is not None:
            fitting.append(self.gpu_free_bytes // STAGE_GPU_BYTES)
        return max(1, min(fitting))


def this_machine() -> Machine:
    """Return what this process may use of this machine, its affinity and cgroup considered."""
    import psutil
    from joblib import cpu_count

    gpus, free = cuda_devices()
    return Machine(cpu_count(), psutil.virtual_memory().available, gpus, free)


def cuda_devices() -> tuple[tuple[str, ...], int | None]:
    """Return the CUDA devices that this process may use, and their free memory in bytes.

    Asks the driver's own program: torch would open the devices. Without it the devices are those
    that `CUDA_VISIBLE_DEVICES` names, and the memory is None.
    """
    listed = _ask(["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader"])
    found = [[cell.strip() for cell in line.split(",")] for line in listed]
    known = {row[1]: _bytes(row[2]) for row in found if len(row) == 3}
    index = {row[0]: row[1] for row in found if len(row) == 3}
    if DEVICES not in os.environ:
        return (*known,), sum(known.values()) if known else None
    named = _named(os.environ[DEVICES])
    free = [known[index.get(name, name)] for name in named if index.get(name, name) in known]
    return named, sum(free) if free else None


def _named(text: str) -> tuple[str, ...]:
    """Return the devices that a value of `CUDA_VISIBLE_DEVICES` names; -1 ends the list."""
    names: list[str] = []
    for name in text.split(","):
        if name.strip() in ("", "-1", "NoDevFiles"):
            break
        names.append(name.strip())
    return tuple(names)


def _ask(command: Sequence[str]) -> list[str]:
    """Return the lines that a program prints, none where it is missing or fails."""
    program = shutil.which(command[0])
    if program is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own program
            [program, *command[1:]], capture_output=True, text=True, check=True,
            timeout=_ASK_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()]


def _bytes(text: str) -> int:
    """Return the bytes of `"8123 MiB"`; 0 for what has no number."""
    number = text.split(maxsplit=1)[0] if text.split() else ""
    return int(number) * 2**20 if number.isdecimal() else 0
