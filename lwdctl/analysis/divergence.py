"""Jensen-Shannon divergence between two sets of points, bounded by ln 2.

Estimator: both sets become Gaussian kernel densities with one bandwidth, are evaluated on one
grid and normalized there. The divergence of the two discrete distributions lies in [0, ln 2] for
any input. Bandwidth and grid come from the source alone (Scott's rule for the size of the sets,
on the smaller of standard deviation and interquartile range / 1.349, with a floor), so that they
do not depend on the set that is compared with it. The estimate is biased upwards by an amount that
depends on the size of the sets: only values for sets of one size can be compared.

Sources: J. Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on
Information Theory 37 (1991); D. W. Scott, Multivariate Density Estimation (1992);
B. W. Silverman, Density Estimation (1986), section 3.4, for the smaller of the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import rel_entr

from lwdctl.analysis.resample import Indices, Values, percentile_interval
from lwdctl.core.seeding import generator
from lwdctl.evaluation.results import Estimate

Bounds = tuple[float, float]
Kernels = tuple[Values, ...]
"""Per component (point, node): each point's kernel at the nodes of one axis of the grid."""

MAX_DIVERGENCE = math.log(2.0)
"""The divergence of distributions that do not overlap, in nats."""
MIN_BANDWIDTH = 0.005
"""Smallest bandwidth, as a fraction of the given bounds; without bounds, of the source's range or,
if that is larger, of the size of its mean."""
MARGIN = 0.1
"""How far the grid extends beyond given bounds, as a fraction of the range."""
REACH, CLIPPED = 12.0, 8.0
"""How far a grid without bounds extends beyond the source's range, in bandwidths; points farther
out than the second number are moved there, where the source has no density left."""
MIN_DENSITY = 1e-18
"""Nodes where both densities are at most this are left out of the sum."""
DRAWS = 400
"""Random draws of sets that a divergence is averaged over."""


@dataclass(frozen=True)
class DensityGrid:
    """The grid and bandwidth with which densities are estimated.

    Attributes:
        bandwidth: (component,) standard deviation of the kernel.
        axes: Per component the nodes of the grid, at most one bandwidth apart.
        limits: Per component the range that points are clipped to.
    """

    bandwidth: Values
    axes: tuple[Values, ...]
    limits: tuple[Bounds, ...]


def make_grid(source: Values, size: int, bounds: Bounds | None = None) -> DensityGrid:
    """Choose bandwidth and grid for sets of a given size.

    Args:
        source: (point, component), all points of the source; one or two components.
        size: Points per set that will be compared.
        bounds: Range of every component where it is known; None takes the source's.
    """
    scott = _robust_std(source) * size ** (-1.0 / (source.shape[1] + 4))
    bandwidths, axes, limits = [], [], []
    for column, wanted in zip(source.T, scott, strict=True):
        low, high = bounds or (float(column.min()), float(column.max()))
        span = high - low if bounds else max(high - low, abs(float(column.mean())), 1e-9)
        width = max(float(wanted), MIN_BANDWIDTH * span)
        margin = MARGIN * span if bounds else REACH * width
        spacing = MIN_BANDWIDTH * span if bounds else width / 2
        nodes = 1 + round((high - low + 2 * margin) / spacing)
        bandwidths.append(width)
        axes.append(np.linspace(low - margin, high + margin, nodes))
        beyond = 0.0 if bounds else CLIPPED * width
        limits.append((low - beyond, high + beyond))
    return DensityGrid(np.array(bandwidths), tuple(axes), tuple(limits))


def _robust_std(source: Values) -> Values:
    """Return (component,) standard deviations that a few outlying points do not increase."""
    if len(source) < 2:
        return np.zeros(source.shape[1])
    plain = source.std(axis=0, ddof=1)
    low, high = np.quantile(source, (0.25, 0.75), axis=0)
    robust = (high - low) / 1.349  # exact for a normal distribution with these quartiles
    smaller: Values = np.where(robust > 0, np.minimum(plain, robust), plain)
    return smaller


def kernels(points: Values, grid: DensityGrid) -> Kernels:
    """Evaluate every point's kernel along each axis of the grid.

    Raises:
        ValueError: A point is not finite.
    """
    if not np.isfinite(points).all():
        raise ValueError("points of a density must be finite")
    parts = zip(points.T, grid.axes, grid.bandwidth, grid.limits, strict=True)
    return tuple(
        np.exp(-0.5 * ((axis - np.clip(column, *limits)[:, None]) / width) ** 2)
        for column, axis, width, limits in parts
    )


def density(rows: Kernels, chosen: Indices | slice = slice(None)) -> Values:
    """Return the kernel density of the chosen points on the grid; it sums to 1."""
    if len(rows) == 1:
        summed = rows[0][chosen].sum(axis=0)
    else:
        first, second = rows
        summed = (first[chosen].T @ second[chosen]).ravel()
    normalized: Values = summed / summed.sum()
    return normalized


def jensen_shannon(first: Values, second: Values) -> float:
    """Return the divergence of two discrete distributions on one grid, in nats."""
    dense = (first > MIN_DENSITY) | (second > MIN_DENSITY)  # at most nodes both are almost zero
    first, second = first[dense], second[dense]
    middle = (first + second) / 2
    value = float(rel_entr(first, middle).sum() + rel_entr(second, middle).sum()) / 2
    return min(max(value, 0.0), MAX_DIVERGENCE)  # rounding may exceed either end


class SourceDivergence:
    """Measures the divergence of sets of one size from a source.

    Args:
        source: (point, feature), at least twice `size` points.
        size: Points per set, on both sides of every comparison.
        views: Columns that form one density, one or two each; divergences are averaged over
            views.
        bounds: Range of every feature where it is known.
        key: Fixes the draws, which every comparison with this source shares.

    Raises:
        ValueError: Too few points for two sets.
    """

    def __init__(
        self,
        source: Values,
        size: int,
        views: Sequence[tuple[int, ...]],
        bounds: Bounds | None = None,
        key: str = "",
    ) -> None:
        if not 0 < size <= len(source) // 2:
            raise ValueError(f"{len(source)} points give no two sets of {size}")
        self._views, self._size = views, size
        self.grids = [make_grid(source[:, view], size, bounds) for view in map(list, views)]
        self._key, self._count = key, len(source)
        self._source = self._kernels(source)
        rng = generator("divergence splits", key)
        self._splits = [rng.permutation(len(source))[: 2 * size] for _ in range(DRAWS)]

    def source_vs_source(self) -> Estimate:
        """Return the divergence of two disjoint sets of the source; the interval is over draws."""
        size, source = self._size, self._source
        found = [self._between(source, s[:size], source, s[size:]) for s in self._splits]
        return Estimate(float(np.mean(found)), *percentile_interval(np.array(found)), size)

    def of(self, measured: Values) -> Estimate:
        """Return the divergence of another set from the source, averaged over the same draws.

        The interval is a bootstrap's: both sides are resampled with replacement, and the result
        is shifted to the mean, because repeated points increase the divergence of sets.

        Args:
            measured: (point, feature), at least `size` points.

        Raises:
            ValueError: Too few points.
        """
        size, count = self._size, len(measured)
        if count < size:
            raise ValueError(f"{count} points give no set of {size}")
        rows, source = self._kernels(measured), self._source
        rng = generator("divergence draws", self._key)
        plain = [
            self._between(source, s[:size], rows, rng.permutation(count)[:size])
            for s in self._splits
        ]
        again = [
            self._between(
                source, rng.integers(self._count, size=size), rows, rng.integers(count, size=size)
            )
            for _ in self._splits
        ]
        mean = float(np.mean(plain))
        low, high = np.quantile(again, (0.025, 0.975)) - np.mean(again) + mean
        return Estimate(mean, max(float(low), 0.0), min(float(high), MAX_DIVERGENCE), size)

    def _kernels(self, points: Values) -> list[Kernels]:
        pairs = zip(self._views, self.grids, strict=True)
        return [kernels(points[:, list(view)], grid) for view, grid in pairs]

    def _between(
        self, first: list[Kernels], chosen: Indices, second: list[Kernels], others: Indices
    ) -> float:
        pairs = zip(first, second, strict=True)
        values = [jensen_shannon(density(a, chosen), density(b, others)) for a, b in pairs]
        return math.fsum(values) / len(values)
