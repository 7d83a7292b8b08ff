"""What runs on a node of the cluster: one command of `lwdctl`, which survives preemption.

    python -m lwdctl.pipeline.slurm_job RECORD COMMAND...

Slurm takes a job's node away in two ways. For preemption, `scontrol requeue` and `scancel` it sends
SIGTERM to every process of the job: the command writes a checkpoint and ends, and where Slurm
requeues the job, the same command goes on from that checkpoint. Before the time limit Slurm sends
the signal that the job asked for (SIGUSR2) and does not requeue: this module ends the command and
requeues the job.

How the command ended is written to the file RECORD, since a cluster without an accounting database
forgets a job a few minutes after its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

WARNING = signal.SIGUSR2
"""What Slurm sends before the time limit."""
WARNING_SECONDS = 120
"""How long before the time limit a job writes its checkpoint and is requeued."""
ALWAYS: Mapping[str, str | bool] = {
    "kill-on-invalid-dep": "yes",
    "ntasks": "1",
    "requeue": True,
}
"""Options of sbatch that every job has."""
TERMINATED = 143
LONGEST_LAG_SECONDS = 90.0
"""How long a file that another machine wrote may stay unseen: NFS keeps listings for a minute."""
_POLL_SECONDS = 0.1


class StageJob:
    """Runs a command as a job; submitit stores it and calls it on the node.

    Args:
        command: The command and its arguments.
        record: Where to write how it ended.
    """

    def __init__(self, command: Sequence[str], record: str) -> None:
        self.command, self.record = list(command), record

    def __call__(self) -> int:
        """Run the command and return 0.

        Raises:
            SystemExit: It ended with another exit status, which becomes that of the job.
        """
        code = run_job(self.command, Path(self.record))
        if code:
            raise SystemExit(code)
        return code


def run_job(command: Sequence[str], record: Path) -> int:
    """Run a command to its end, or until Slurm takes the node away, and return its exit status.

    Args:
        command: The command and its arguments.
        record: Where to write how it ended.
    """
    out_of_time, passes_on = False, "SLURM_JOB_ID" not in os.environ

    # Slurm signals every process of the job. The command must not die of the warning, so it begins
    # with that signal blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, [WARNING])
    # The signals are handled before the command exists: it is `process[0]` from then on.
    process: list[subprocess.Popen[bytes]] = []

    def terminate() -> None:
        for item in process:
            with contextlib.suppress(ProcessLookupError):
                item.send_signal(signal.SIGTERM)

    def warned(number: int, frame: FrameType | None) -> None:
        nonlocal out_of_time
        del number, frame
        out_of_time = True
        terminate()

    def terminated(number: int, frame: FrameType | None) -> None:
        del number, frame
        if passes_on:  # nobody but this process was told
            terminate()

    before = {number: signal.signal(number, handler) for number, handler in
              ((signal.SIGTERM, terminated), (WARNING, warned))}  # fmt: skip
    try:
        process.append(subprocess.Popen(command))  # noqa: S603 - lwdctl itself
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [WARNING])
        while (code := process[0].poll()) is None:
            time.sleep(_POLL_SECONDS)
        code = code if code >= 0 else 128 - code
        write_record(record, code)
        if out_of_time and code == TERMINATED:
            _requeue()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code


def patience() -> float:
    """Return how many seconds to wait for what other machines have made; 0 outside of a job."""
    return LONGEST_LAG_SECONDS if job_id() else 0.0


def job_id() -> str:
    """Return the number of the job that this process belongs to, or "" outside of Slurm."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def write_record(path: Path, code: int) -> None:
    """Write how a job's command ended: its exit status, the job, the node, the restarts."""
    content = {
        "code": code,
        "job": job_id(),
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    }
    fresh = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a full disk: the job's own state still tells
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(content), encoding="utf-8")
        fresh.replace(path)


def _requeue() -> None:
    """Let Slurm run this job again."""
    sys.stderr.write("the time limit is near: the job is requeued and goes on\n")
    sys.stderr.flush()
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    subprocess.run(command, check=True)  # noqa: S603 - no words of a user


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[2:], Path(sys.argv[1])))
