"""Threads: what is measured, and that waiting ones sleep; memory that is used again."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from lwdctl.training.threads import Calibration, calibrate


class Machine:
    """Work that takes the seconds that a function of the number of threads gives."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds, self.now, self.counts = seconds, 0.0, list[int]()

    def work(self) -> None:
        self.counts.append(torch.get_num_threads())
        self.now += self.seconds(self.counts[-1])

    def choose(self, most: int | None) -> int:
        return self.measured(most).threads

    def measured(self, most: int | None) -> Calibration:
        return calibrate(self.work, most=most, clock=lambda: self.now)


@pytest.mark.parametrize(
    ("seconds", "tried", "chosen"),
    [
        (lambda count: 0.02 / count, [1, 2, 4, 8], 8),
        (lambda count: 0.02 / count, [1, 2, 4, 6], 6),
        (lambda count: 0.02 / min(count, 4), [1, 2, 4, 8], 4),
        (lambda count: 0.02 * count, [1, 2, 4], 1),  # threads that wait for one another
        (lambda count: 0.02 * (1.0 if count == 1 else 0.95), [1, 2], 1),  # too small a gain
        (lambda count: 9.0 / count, [1, 2, 4], 4),  # slower than the time to measure for
    ],
)
def test_the_fewest_threads_that_are_fast_are_chosen(
    seconds: Callable[[int], float], tried: list[int], chosen: int
) -> None:
    before = torch.get_num_threads()
    machine = Machine(seconds)
    assert machine.choose(tried[-1]) == chosen
    assert sorted(set(machine.counts)) == tried
    assert torch.get_num_threads() == before


def test_the_rate_of_every_number_is_said() -> None:
    found = Machine(lambda count: 0.1 / min(count, 2)).measured(4)
    assert found.rates == pytest.approx({1: 10.0, 2: 20.0, 4: 20.0})
    said = "measured training steps per second: 10 with 1, 20 with 2, 20 with 4"
    assert found.describe() == said


def test_a_disturbed_measurement_is_outvoted() -> None:
    calls = itertools.count()
    machine = Machine(lambda count: 0.1 / count + (5.0 if next(calls) == 4 else 0.0))
    found = calibrate(machine.work, most=2, seconds=10.0, clock=lambda: machine.now)
    assert found.threads == 2
    assert next(calls) > 20


def test_one_thread_needs_no_measurement() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        machine = Machine(lambda count: 1.0)
        found = machine.measured(None)
        assert (found.threads, found.describe()) == (1, "torch may use no more")
        assert not machine.counts
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "used"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")]
)
def test_waiting_threads_sleep_unless_the_user_wants_them_to_spin(given, used: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
    done = subprocess.run(
        [sys.executable, "-c", "import lwdctl.training.threads"],
        env=environment | {"OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"OMP_WAIT_POLICY = '{used}'" in done.stderr


PAGES = """
import resource, sys
from pathlib import Path
import torch
from contextlib import nullcontext
from lwdctl.training.threads import freed_memory_kept

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with freed_memory_kept() if sys.argv[1] == "keep" else nullcontext():
    for mib in range(1, 29):  # each is larger than what glibc has learned to keep
        torch.empty(mib << 18).fill_(1.0)
    pages, kept = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, resident()
print(pages, kept - resident())
"""
"""Prints the new pages of allocations in turn, and how many are given back in the end."""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_used_again_and_given_back() -> None:
    """Memory pages are counted in child processes: the settings last as long as a process."""
    own = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}
    environment = {name: value for name, value in os.environ.items() if name not in own}

    def pages(word: str, **chosen: str) -> tuple[int, int]:
        done = subprocess.run(
            [sys.executable, "-c", PAGES, word],
            env={**environment, **chosen, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        new, given_back = map(int, done.stdout.split())
        return new, given_back

    without, _ = pages("leave")
    kept, given_back = pages("keep")
    assert kept < without / 4
    assert given_back > 4000
    for chosen in (
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ):  # what the environment sets stays
        assert pages("keep", **chosen)[0] > without / 2
