"""How far a policy's states lie from those recorded, step by step, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lwdctl.core.records import FloatArray
from lwdctl.core.seeding import generator

Values = npt.NDArray[np.float64]

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over snippets with its 95 % bootstrap interval; NaN without snippets.

    Attributes:
        mean: The mean.
        low: Lower end of its interval.
        high: Upper end.
        median: Of the snippets; far below the mean where a few of them rule it.
    """

    mean: float
    low: float
    high: float
    median: float = float("nan")


@dataclass(frozen=True)
class Errors:
    """Squared errors of one policy.

    Attributes:
        squared: (snippet, time) sum over observation components, in environment units squared.
        normalized: (snippet, time) mean over components, each divided by its deviation over
            the training split. Step 0 is the start, before any action. NaN where nothing was
            recorded, or where the simulator was lost.
    """

    squared: Values
    normalized: Values

    def last(self, values: Values) -> Values:
        """Return (snippet,) each snippet's error at its last recorded step."""
        known = ~np.isnan(values)
        last = values.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
        found: Values = values[np.arange(len(values)), last]
        return found

    def average(self, values: Values) -> Values:
        """Return (snippet,) each snippet's mean error over the steps after its actions."""
        after = values[:, 1:]
        known = ~np.isnan(after)
        total, count = np.where(known, after, 0.0).sum(axis=1), known.sum(axis=1)
        means: Values = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        return means


def squared_errors(
    reached: Sequence[FloatArray | None], recorded: Values, valid: npt.NDArray[np.int64],
    scale: Values,
) -> Errors:  # fmt: skip
    """Compare states reached with states recorded.

    An episode that ended early counts on with the last state that was seen of it.

    Args:
        reached: Per snippet (time, obs), its start first; None where the simulator was lost.
        recorded: (snippet, time, obs), NaN where nothing was recorded.
        valid: (snippet,) actions of each snippet that are real.
        scale: (obs,) deviation of each component.
    """
    count, steps, _ = recorded.shape
    squared, normalized = np.full((2, count, steps), np.nan)
    for row, states in enumerate(reached):
        if states is None or not len(states):
            continue
        held = np.minimum(np.arange(steps), len(states) - 1)
        difference = states[held].astype(np.float64) - recorded[row]
        difference[int(valid[row]) + 1 :] = np.nan
        squared[row] = np.square(difference).sum(axis=1)
        normalized[row] = np.square(difference / scale).mean(axis=1)
    return Errors(squared, normalized)


class Clusters:
    """Bootstraps means over snippets; snippets of one episode are drawn together.

    One episode alone has no interval: its ends are NaN.

    Args:
        episodes: (snippet,) the episode each lies in.
    """

    def __init__(self, episodes: npt.NDArray[np.int64]) -> None:
        _, member = np.unique(episodes, return_inverse=True)
        self._groups = groups = int(member.max()) + 1
        rng = generator("reconstruction bootstrap", groups)
        counts = rng.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
        self._weights = counts[:, member].astype(np.float64)

    def interval(self, values: Values) -> Interval:
        """Return the mean of (snippet,) values and its interval."""
        (found,) = self.curve(values[:, None])
        return found

    def difference(self, first: Values, second: Values) -> Interval:
        """Return the mean of first minus second, paired by snippet, and its interval."""
        return self.interval(first - second)

    def curve(self, values: Values) -> list[Interval]:
        """Return the mean of (snippet, time) values at every step, over what is known there."""
        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)
        return [
            self._of(filled[:, step], known[:, step].astype(np.float64))
            for step in range(values.shape[1])
        ]

    def _of(self, filled: Values, known: Values) -> Interval:
        if not known.any():
            return Interval(np.nan, np.nan, np.nan)
        totals, counts = self._weights @ filled, self._weights @ known
        means = totals[counts > 0] / counts[counts > 0]
        low, high = np.quantile(means, (0.025, 0.975)) if self._groups > 1 else (np.nan, np.nan)
        median = float(np.median(filled[known > 0]))
        return Interval(float(filled.sum() / known.sum()), float(low), float(high), median)
