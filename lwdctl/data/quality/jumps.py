"""Search for places where two episodes follow each other without an end being marked.

There, most components move in one step by many times what they move otherwise, and by many times
what they move in the steps before and after. Fast motions last several steps, a wrapped angle
concerns one component, and a quaternion that changes its sign is the same orientation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lwdctl.core.records import FloatArray
from lwdctl.data.quality.step_sample import Steps

TIMES = 5.0
"""A jump is so many times as large as 90 % of all steps, and as its neighbors. On demonstrations of
robosuite, PushT and the Adroit hand at most 17 % of the components ever do that at once; where two
of their episodes meet, 55 to 90 % do."""
USUAL = 0.9
"""Quantile of the steps' sizes: up to a tenth of all steps may be jumps."""
FRACTION = 0.5
"""Fraction of the smooth components that must jump at once."""
SMOOTH = 0.5
"""Components whose usual step is below half of their standard deviation are searched."""
FEWEST = 2
"""Number of components that must jump: one alone may be a switch or an angle."""
SMALLEST = 0.01
"""Steps below a hundredth of a standard deviation count as rest."""
CANDIDATES = 256
"""Steps that are kept at least; of an episode a sixteenth of these are looked at."""
TURN_SLACK = 0.5
"""Radians; a wrapped angle steps by a full turn less its motion."""
SIGN_SLACK = 0.1


class Jump(NamedTuple):
    """One step that may be a jump.

    Attributes:
        source: The episode.
        row: Row of the episode after the jump.
        step: (obs,) size of the step per component; 0 where the component wrapped or turned sign.
        beside: (obs,) largest size of the neighboring steps.
    """

    source: str
    row: int
    step: FloatArray
    beside: FloatArray


class JumpSearch:
    """Keeps the steps that stand out most, in constant memory.

    Args:
        size: Components of all observations.

    Attributes:
        is_cut: Whether there were more steps that stand out than are kept.
    """

    def __init__(self, size: int) -> None:
        self._found: list[tuple[int, Jump]] = []
        self._sum: npt.NDArray[np.float64] = np.zeros(size)
        self._count = 0
        self.is_cut = False

    def add(self, source: str, observations: FloatArray) -> None:
        """Search an episode's observations (time, obs)."""
        if len(observations) < 3:
            return
        step = observations[1:] - observations[:-1]
        np.abs(step, out=step)
        self._sum += step.sum(axis=0)
        self._count += len(step)
        usual = (self._sum / self._count).astype(np.float32)
        standing_out = np.flatnonzero(step > TIMES * usual)
        counts = np.bincount(standing_out // step.shape[1])
        rows = np.flatnonzero(counts >= FEWEST)
        for row in rows[np.argsort(-counts[rows], kind="stable")][: CANDIDATES // 16].tolist():
            near = step[max(row - 1, 0) : row + 2].copy()
            near[min(row, 1)] = 0
            beside = near.max(axis=0)
            number = int(np.count_nonzero(step[row] > TIMES * np.maximum(beside, usual)))
            if number >= FEWEST:
                size = _without_wraps(observations[row], observations[row + 1], step[row])
                self._found.append((number, Jump(source, row + 1, size, beside)))
        if len(self._found) > 2 * CANDIDATES:
            self._found.sort(key=lambda item: -item[0])
            del self._found[CANDIDATES:]
            self.is_cut = True

    def jumps(self, steps: Steps) -> list[Jump]:
        """Return the jumps, by episode and row.

        Args:
            steps: A sample of all steps, which says what is usual.
        """
        if not self._found or not len(steps.after):
            return []
        deviation = steps.after.std(axis=0)
        usual = np.quantile(np.abs(steps.after - steps.before), USUAL, axis=0)
        smooth = (deviation > 0) & (usual <= SMOOTH * deviation)
        scale = np.maximum(usual, SMALLEST * deviation)[smooth]
        needed = max(FEWEST, FRACTION * int(smooth.sum()))
        found = []
        for _, jump in self._found:
            bound = TIMES * np.maximum(scale, jump.beside[smooth])
            if np.count_nonzero(jump.step[smooth] > bound) >= needed:
                found.append(jump)
        return sorted(found, key=lambda item: (item.source, item.row))


def _without_wraps(before: FloatArray, after: FloatArray, step: FloatArray) -> FloatArray:
    """Return the sizes of a step with 0 where an angle wrapped or a number changed its sign."""
    sign = np.abs(before + after) < SIGN_SLACK * np.maximum(np.abs(before), np.abs(after))
    turn = np.abs(step - math.tau) < TURN_SLACK
    return np.where(sign | turn, np.float32(0), step)
