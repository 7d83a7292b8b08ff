"""Side-by-side timing: rounds alternate, medians are compared, only the ratio is claimed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Work = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Two ways to do the same work.

    Attributes:
        name: What was done.
        ours: What our side is.
        reference: What the other side is.
        ours_seconds: Median time of one repetition.
        reference_seconds: Median time of one repetition.
        speedup: Reference time over ours; above 1 ours is faster.
        rounds: How often each side ran.
    """

    name: str
    ours: str
    reference: str
    ours_seconds: float
    reference_seconds: float
    speedup: float
    rounds: int


def compare(
    name: str, ours: tuple[str, Work], reference: tuple[str, Work], rounds: int
) -> Comparison:
    """Time both sides in alternation after one warm-up each.

    Args:
        name: What is done.
        ours: Title and function of our side.
        reference: Title and function of the other.
        rounds: Repetitions of each side.
    """
    _once(ours[1])
    _once(reference[1])
    times = [(_once(ours[1]), _once(reference[1])) for _ in range(rounds)]
    mine = median(pair[0] for pair in times)
    theirs = median(pair[1] for pair in times)
    return Comparison(name, ours[0], reference[0], mine, theirs, theirs / mine, rounds)


def _once(work: Work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
