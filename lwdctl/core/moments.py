"""Mean, variance and range of data, merged from the moments of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Moments:
    """First two moments and range per component.

    Attributes:
        count: Number of rows.
        mean: (dim,).
        variance: (dim,), of the population (divided by `count`).
        minimum: (dim,).
        maximum: (dim,).
    """

    count: int
    mean: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]
    minimum: npt.NDArray[np.float64]
    maximum: npt.NDArray[np.float64]

    @property
    def deviation(self) -> npt.NDArray[np.float64]:
        """Standard deviation (dim,)."""
        return np.sqrt(self.variance)

    @classmethod
    def of_rows(cls, rows: npt.ArrayLike) -> Moments:
        """Return the moments of the rows (row, dim)."""
        values = np.asarray(rows, np.float64)
        return cls(
            count=len(values),
            mean=values.mean(axis=0),
            variance=values.var(axis=0),
            minimum=values.min(axis=0),
            maximum=values.max(axis=0),
        )

    @classmethod
    def merge(
        cls,
        counts: npt.NDArray[np.int64],
        mean: npt.NDArray[np.float64],
        m2: npt.NDArray[np.float64],
        minimum: npt.NDArray[np.float64],
        maximum: npt.NDArray[np.float64],
    ) -> Moments:
        """Merge the moments of parts.

        Args:
            counts: (part,) rows in each.
            mean: (part, dim).
            m2: (part, dim) sum of squared distances from the part's own mean.
            minimum: (part, dim).
            maximum: (part, dim).

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
        computing sample variances", 1979.
        """
        weight = counts.astype(np.float64)[:, None]
        total = weight.sum()
        center = (weight * mean).sum(axis=0) / total
        spread = m2.sum(axis=0) + (weight * (mean - center) ** 2).sum(axis=0)
        return cls(int(total), center, spread / total, minimum.min(axis=0), maximum.max(axis=0))

    @classmethod
    def concatenate(cls, parts: Sequence[Moments]) -> Moments:
        """Put the components of several keys side by side; all have the same count."""
        return cls(
            count=parts[0].count,
            mean=np.concatenate([part.mean for part in parts]),
            variance=np.concatenate([part.variance for part in parts]),
            minimum=np.concatenate([part.minimum for part in parts]),
            maximum=np.concatenate([part.maximum for part in parts]),
        )


STATISTICS = ("mean", "m2", "minimum", "maximum")
"""The rows of what `statistics_of` returns; m2 is the sum of squared distances from the mean."""


def statistics_of(rows: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return `STATISTICS` (statistic, dim) of at least one row (row, dim), in double precision."""
    exact = rows.astype(np.float64)
    mean = exact.mean(axis=0)
    exact -= mean
    exact *= exact
    return np.stack([mean, exact.sum(axis=0), rows.min(axis=0), rows.max(axis=0)])


class RunningMoments:
    """Moments of rows that arrive in batches, in constant memory.

    Args:
        size: Number of components.
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean: npt.NDArray[np.float64] = np.zeros(size)
        self._m2: npt.NDArray[np.float64] = np.zeros(size)

    def add(self, rows: npt.ArrayLike) -> None:
        """Add rows (row, dim)."""
        values = np.asarray(rows, np.float64)
        if len(values):
            mean, m2, _, _ = statistics_of(values)
            self.merge(len(values), mean, m2)

    def merge(self, count: int, mean: npt.NDArray[np.float64], m2: npt.NDArray[np.float64]) -> None:
        """Add rows of which only the moments are known.

        Args:
            count: Number of rows, at least 1.
            mean: (dim,).
            m2: (dim,) sum of squared distances from the mean.
        """
        total = self.count + count
        step = mean - self.mean
        self._m2 = self._m2 + m2 + step**2 * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        """Population variance (dim,)."""
        return self._m2 / max(self.count, 1)
