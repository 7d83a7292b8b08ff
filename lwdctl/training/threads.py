"""What training takes of a CPU: threads, by a short measurement, and memory that it keeps."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

SHORTEST = 0.1
"""Seconds of one measurement: many time slices of the scheduler, whatever else runs."""
WORTHWHILE = 0.9
"""Fraction of the time that must be left for more threads to be taken."""

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Numbers of the settings in glibc's `malloc.h`."""


def keep_freed_memory() -> None:
    """Let the process keep freed memory, instead of asking the system for it in every step.

    Both settings of glibc get the largest values to which it raises them by itself, for as long as
    the process lives. Without them the gradients of each training step are new pages, which the
    system clears. Does nothing where the environment sets one of them, or without glibc.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 64 << 20)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory inside the context, and give it back at its end."""
    keep_freed_memory()
    try:
        yield
    finally:
        trim = _of_glibc("malloc_trim")
        if trim is not None:
            trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """Return a function of glibc, None where there is none or the environment sets its memory."""
    set_by_user = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or os.environ.keys() & {
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TRIM_THRESHOLD_",
    }
    if sys.platform != "linux" or set_by_user:
        return None
    return getattr(ctypes.CDLL(None), name, None)


@dataclass(frozen=True)
class Calibration:
    """The number of threads that a measurement chose.

    Attributes:
        threads: The number.
        rates: Number of threads to how often a second the work was done with it; empty where
            there was one number to choose.
    """

    threads: int
    rates: Mapping[int, float]

    def describe(self) -> str:
        """Return what was measured, for a log."""
        if not self.rates:
            return "torch may use no more"
        numbers = (f"{rate:.4g} with {count}" for count, rate in self.rates.items())
        return f"measured training steps per second: {', '.join(numbers)}"


def calibrate(
    work: Callable[[], object],
    *,
    most: int | None = None,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure with how many threads of torch some work is done fastest.

    Runs the work with 1, 2, 4, ... threads in turn, because the load of the machine changes. More
    threads are taken only where they save a tenth of the time. Leaves torch's number of threads
    as it was.

    Args:
        work: What to measure, such as one training step. Each call must cost the same. It is not
            run at all where there is only one thread to choose.
        most: Largest number of threads. None takes as many cores as this process may use (its
            affinity and the CPU quota of its cgroup), and no more threads than torch has now,
            which `OMP_NUM_THREADS` sets.
        seconds: Time to measure for. Slow work is run at least twice with each number.
        clock: Returns seconds.

    Returns:
        The number of threads, and the rate with each number that was tried.
    """
    from joblib import cpu_count

    before = torch.get_num_threads()
    limit: int = min(cpu_count(), before) if most is None else most
    counts = [1 << power for power in range(limit.bit_length())]
    if counts[-1] < limit:
        counts.append(limit)
    if len(counts) == 1:
        return Calibration(counts[0], {})

    def measure(count: int, times: int) -> float:
        torch.set_num_threads(count)
        started = clock()
        for _ in range(times):
            work()
        return (clock() - started) / times

    end = clock() + seconds
    try:
        # The first call with a number of threads starts them and chooses kernels.
        first = [measure(count, 1) for count in counts]
        times = math.ceil(SHORTEST / max(min(first), 1e-6))
        rounds = [[measure(count, times) for count in counts]]
        while clock() < end:
            rounds.append([measure(count, times) for count in counts])
    finally:
        torch.set_num_threads(before)
    best, least, rates = counts[0], math.inf, dict[int, float]()
    for count, taken in zip(counts, zip(*rounds, strict=True), strict=True):
        rates[count] = 1.0 / max(median(taken), 1e-9)
        if median(taken) < WORTHWHILE * least:
            best, least = count, median(taken)
    return Calibration(best, rates)
