"""A bounded random sample of the steps of a source, drawn while its episodes pass by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lwdctl.core.records import FloatArray
from lwdctl.core.seeding import generator

SAMPLED_STEPS = 4096
"""Enough for a correlation to be certain to two digits; wide observations get fewer."""
SAMPLED_NUMBERS = 4_000_000
FEWEST_STEPS = 256


class Steps(NamedTuple):
    """Steps that have a following observation in their episode.

    Attributes:
        actions: (step, action).
        before: (step, obs), all observation keys side by side, when the action was taken.
        after: (step, obs), the following observation.
    """

    actions: FloatArray
    before: FloatArray
    after: FloatArray


class StepSample:
    """Every step is kept with the same probability, whatever the number of steps.

    Each step draws a number; those with the smallest numbers are kept.

    Args:
        action_size: Components of an action.
        observation_size: Components of all observations.
    """

    def __init__(self, action_size: int, observation_size: int) -> None:
        width = action_size + 2 * observation_size
        self._size = min(SAMPLED_STEPS, max(FEWEST_STEPS, SAMPLED_NUMBERS // width))
        self._rng = generator("step-sample")
        self._threshold = 1.0
        self._drawn = [np.empty(0)]
        self._parts = [
            Steps(
                np.empty((0, action_size), np.float32),
                np.empty((0, observation_size), np.float32),
                np.empty((0, observation_size), np.float32),
            )
        ]

    def add(self, actions: FloatArray, observations: FloatArray) -> None:
        """Offer the steps of an episode: (time, action) and (time or time + 1, obs)."""
        count = min(len(actions), len(observations) - 1)
        drawn = self._rng.random(max(count, 0))
        rows = np.flatnonzero(drawn < self._threshold)
        if not len(rows):
            return
        self._drawn.append(drawn[rows])
        self._parts.append(Steps(actions[rows], observations[rows], observations[rows + 1]))
        if sum(map(len, self._drawn)) > 2 * self._size:
            self._shrink()

    def steps(self) -> Steps:
        """Return the sampled steps."""
        self._shrink()
        return self._parts[0]

    def _shrink(self) -> None:
        drawn = np.concatenate(self._drawn)
        steps = Steps(*map(np.concatenate, zip(*self._parts, strict=True)))
        if len(drawn) > self._size:
            kept = np.argpartition(drawn, self._size)
            self._threshold = float(drawn[kept[self._size]])
            kept = np.sort(kept[: self._size])
            drawn, steps = drawn[kept], Steps(*(part[kept] for part in steps))
        self._drawn, self._parts = [drawn], [steps]
