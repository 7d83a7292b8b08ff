"""Run the PushT grid at toy size with and without `--jobs`: equal results, and how long both take.

    python tests/regression/jobs.py --rounds 3

Both runs take turns in fresh workspaces, with one thread each. Every artifact of both is compared:
names, versions, configurations, numbers and digests of files, times aside. The last line holds the
ratio of the wall times. Run it on cores that nothing else uses: the load is printed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipeline"))
from side_by_side import made, write_buffer

sys.path.pop(0)

ROOT = Path(__file__).resolve().parents[2]
DATA = "pusht_cchi_v7_replay.zarr"


def run(recipe: Path, source: Path, workspace: Path, jobs: int) -> float:
    """Run the recipe once and return its wall time in seconds."""
    command = [
        sys.executable, "-m", "lwdctl", "run", str(recipe), "--smoke", "--jobs", str(jobs),
        "--set", f"ingest.paths={source}", "--workspace", str(workspace), "-q", "--json",
    ]  # fmt: skip
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **one_thread, "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def processor_seconds() -> float:
    """Return the processor time of all processes so far that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Compare and print; return 1 where results differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "pipelines/pusht_grid.toml")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="replay buffer; default: a small made one")
    given = parser.parse_args()
    times: dict[int, list[float]] = {1: [], given.jobs: []}
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        source = given.data or Path(folder) / DATA
        if given.data is None:
            write_buffer(source)
        for number in range(given.rounds):
            results = []
            for jobs, taken in times.items():
                workspace = Path(folder) / f"{number}-{jobs}"
                load, before = os.getloadavg()[0], processor_seconds()
                taken.append(run(given.recipe, source, workspace, jobs))
                results.append(made(workspace))
                used = processor_seconds() - before
                say(f"{jobs} at once: {taken[-1]:.2f} s, processors {used:.2f} s, load {load:.1f}")
            same = results[0] == results[1]
            differ += not same
            say(f"round {number}: {len(results[0])} artifacts, {'equal' if same else 'DIFFERENT'}")
    one, several = (statistics.median(taken) for taken in times.values())
    say(f"median {one:.2f} s and {several:.2f} s: ratio {several / one:.2f}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
