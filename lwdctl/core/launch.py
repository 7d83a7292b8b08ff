"""The processes of one training, as torchrun and other launchers announce them to each process.

The variables are those of torch.distributed: RANK and WORLD_SIZE say which process this is and how
many there are, MASTER_ADDR and MASTER_PORT where they meet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from lwdctl.core.errors import ConfigError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_COUNTS = ("RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Launch:
    """This process among those of one training.

    Attributes:
        rank: Its number; the process of rank 0 writes and reports.
        size: Number of processes, at least 2.
        address: Host at which the processes meet.
        port: Port of that host.
        local_rank: Its number among the processes of this node, None where the launcher says none.
        local_size: Number of processes of this node, None likewise.
    """

    rank: int
    size: int
    address: str
    port: int
    local_rank: int | None
    local_size: int | None

    def command(self, line: str) -> str:
        """Return how to start a command line of `lwdctl` in as many processes on this node."""
        if self.local_size == self.size:
            return f"torchrun --nproc-per-node={self.size} -m {line}"
        return line


def launched() -> Launch | None:
    """Return this process among those that a launcher started; None where it is the only one.

    Raises:
        ConfigError: A variable of the launcher is not set, or is no number.
    """
    given = {name: os.environ.get(name, "") for name in VARIABLES}
    if not any(given[name] for name in _COUNTS) or given["WORLD_SIZE"] == "1":
        return None
    missing = [name for name in VARIABLES if not given[name]]
    if missing:
        found = " and ".join(f"{name}={given[name]}" for name in _COUNTS if given[name])
        raise ConfigError(
            f"{found} announces a training in several processes, but {' and '.join(missing)}"
            f" {'is' if len(missing) == 1 else 'are'} not set",
            "start the processes with torchrun, which sets all of them; for one process alone:"
            " unset RANK WORLD_SIZE",
        )
    rank, size, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if rank >= size:
        raise ConfigError(f"RANK={rank} is no number below WORLD_SIZE={size}", _TORCHRUN)
    local = [_number(name) if os.environ.get(name) else None for name in _LOCAL]
    return Launch(rank, size, given["MASTER_ADDR"], port, *local)


def leads() -> bool:
    """Tell whether this process writes and reports: it is the only one, or that of rank 0."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def check_one_process(what: str) -> None:
    """Check that no launcher started several processes.

    Args:
        what: What would be done once in every process (`"encode"`).

    Raises:
        ConfigError: One did.
    """
    if launched() is not None:
        raise ConfigError(
            f"{what} does its work in one process, but a launcher started several",
            "run it without torchrun; where none was used: unset RANK WORLD_SIZE",
        )


_LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
_TORCHRUN = "start the processes with torchrun, which sets these variables"


def _number(name: str) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name}={text} is no whole number", _TORCHRUN)
    return int(text)
