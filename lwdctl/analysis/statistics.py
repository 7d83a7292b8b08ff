"""Intervals and tests for policies that were trained several times and met the same episodes.

Values are arrays (seed, state): training seed by initial state, NaN where an episode was lost.
Seeds and states are crossed, because every trained model meets the same initial states.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lwdctl.core.seeding import generator
from lwdctl.evaluation.scores import wilson

Values = npt.NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 10_000
"""Bootstrap samples per interval."""
PERMUTATIONS = 9_999
"""Random sign flips per test; with fewer possible ones all are enumerated."""


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, None for a single value."""
    mean = math.fsum(values) / len(values)
    return mean, statistics.stdev(values) if len(values) > 1 else None


def mcnemar(better: int, worse: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated
    proportions or percentages, Psychometrika 12 (1947); exact form: the sign test.

    Args:
        better: Pairs that only the first policy solved.
        worse: Pairs that only the second one solved.
    """
    from scipy.stats import binomtest

    if better + worse == 0:
        return 1.0
    return float(binomtest(better, better + worse, 0.5).pvalue)


def sign_flip(differences: Values) -> float:
    """Return the two-sided p-value of the paired permutation test of a mean difference.

    Under the null hypothesis the two policies could be exchanged on any initial state. For
    differences of one size this is McNemar's exact test. All flips are enumerated when there
    are at most `PERMUTATIONS`; otherwise the smallest possible answer is about
    `2 / (PERMUTATIONS + 1)`.

    Args:
        differences: (state,) first policy minus second.
    """
    from scipy.stats import permutation_test

    moved = differences[differences != 0]  # a zero stays zero under every flip
    if moved.size < 2:
        return 1.0
    # The drawn flips must not depend on the order, nor on which policy comes first.
    moved = np.sort(moved if moved.sum() >= 0 else -moved)
    answer = permutation_test(
        (moved,),
        lambda sample, axis: sample.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=1000,
        random_state=generator("sign flips"),
    )
    return float(answer.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the family they form, in the order given.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian
    Journal of Statistics 6 (1979).
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def cluster_interval(values: Values, strata: npt.NDArray[np.intp]) -> Interval:
    """Return the 95 % bootstrap interval of the mean over training seeds and states.

    Training seeds are the clusters. Seeds and initial states are resampled independently of
    each other (the pigeonhole bootstrap): both vary, and they are crossed. Initial states are
    resampled within their stratum, as tasks are fixed. With one training seed only states
    vary, and the interval speaks of that one model. With three seeds and 50 states a simulated
    95 % interval held the truth in 96 to 99 % of the cases where seeds differ little, and in
    75 to 85 % where they differ far more than states do: give the spread of seeds beside it.

    Source: A. B. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007).

    Args:
        values: (seed, state), NaN where lost.
        strata: (state,) index of each state's stratum (its task).
    """
    states = _state_counts(strata)
    return _percentiles(_means(values, _seed_counts(len(values), "first"), states))


def paired_interval(
    first: Values, second: Values, strata: npt.NDArray[np.intp], *, same_models: bool
) -> Interval:
    """Return the 95 % bootstrap interval of a difference of means on the same states.

    As in `cluster_interval`; both sides always share the drawn states.

    Args:
        first: (seed, state).
        second: (seed, state), the states of `first`.
        strata: (state,) index of each state's stratum.
        same_models: Whether row i of both is one trained model, so that seeds are drawn
            once for both; otherwise the seeds of each side are drawn for themselves.
    """
    states = _state_counts(strata)
    seeds = _seed_counts(len(first), "first")
    others = seeds if same_models else _seed_counts(len(second), "second")
    return _percentiles(_means(first, seeds, states) - _means(second, others, states))


def success_interval(values: Values, strata: npt.NDArray[np.intp]) -> Interval:
    """Return the 95 % interval of a success rate.

    Wilson's for one training seed. For several the cluster bootstrap, widened where Wilson's
    interval of all episodes reaches further: where every episode ends alike no resampling
    shows any variation.

    Args:
        values: (seed, state), 1 solved, 0 not, NaN lost.
        strata: (state,) index of each state's stratum.
    """
    known = values[~np.isnan(values)]
    low, high = wilson(int(known.sum()), known.size)
    if len(values) > 1 and known.size:
        below, above = cluster_interval(values, strata)
        low, high = min(low, below), max(high, above)
    return low, high


def newcombe(both: int, first: int, second: int, neither: int) -> Interval:
    """Return the 95 % interval of a difference of success rates on the same episodes.

    Wilson's intervals of the two rates, squared and added with their correlation.

    Source: R. G. Newcombe, Improved confidence intervals for the difference between binomial
    proportions based on paired data, Statistics in Medicine 17 (1998), method 10.

    Args:
        both: Episodes that both policies solved.
        first: Episodes that only the first one solved.
        second: Episodes that only the second one solved.
        neither: Episodes that none solved.
    """
    total = both + first + second + neither
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    product = float(both * neither - first * second)
    if product > 0:  # a correction for continuity
        product = max(0.0, product - total / 2)
    correlation = product / math.sqrt(margins) if margins else 0.0
    return _squared_and_added((both + first, total), (both + second, total), correlation)


def success_difference_interval(
    first: Values, second: Values, strata: npt.NDArray[np.intp], *, same_models: bool
) -> Interval:
    """Return the 95 % interval of a difference of success rates on the same states.

    Newcombe's for one training seed a side. For several the bootstrap of `paired_interval`,
    widened to Wilson's intervals of all episodes squared and added: near 0 and 1 a bootstrap
    is too narrow.

    Args:
        first: (seed, state), 1 solved, 0 not.
        second: (seed, state), the states of `first`.
        strata: (state,) index of each state's stratum.
        same_models: Whether row i of both is one trained model.
    """
    if len(first) == len(second) == 1:
        one, other = first[0] > 0, second[0] > 0
        counts = (one & other, one & ~other, ~one & other, ~one & ~other)
        return newcombe(*(int(mask.sum()) for mask in counts))
    low, high = paired_interval(first, second, strata, same_models=same_models)
    sides = [(int(np.nansum(side)), int((~np.isnan(side)).sum())) for side in (first, second)]
    pooled = _squared_and_added(sides[0], sides[1], 0.0)
    return min(low, pooled[0]), max(high, pooled[1])


def _squared_and_added(
    first: tuple[int, int], second: tuple[int, int], correlation: float
) -> Interval:
    """Combine Wilson's intervals of two (successes, episodes) into one of their difference."""
    rate, other = first[0] / first[1], second[0] / second[1]
    (low, high), (other_low, other_high) = wilson(*first), wilson(*second)

    def length(one: float, two: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * two + two * two))

    gap = rate - other
    below, above = length(rate - low, other_high - other), length(high - rate, other - other_low)
    return gap - below, gap + above


@lru_cache(maxsize=16)
def _seed_counts(seeds: int, side: str) -> Values:
    """Return (resample, seed): how often each seed is drawn."""
    rng = generator("bootstrap seeds", side)
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES).astype(np.float64)


def _state_counts(strata: npt.NDArray[np.intp]) -> Values:
    """Return (resample, state): how often each state is drawn."""
    # Only who shares a stratum matters, not what it is called.
    _, names = np.unique(strata, return_inverse=True)
    return _state_counts_of(tuple(names.tolist()))


@lru_cache(maxsize=4)
def _state_counts_of(strata: tuple[int, ...]) -> Values:
    rng = generator("bootstrap states")
    counts = np.zeros((RESAMPLES, len(strata)))
    for stratum in sorted(set(strata)):
        columns = [index for index, item in enumerate(strata) if item == stratum]
        chances = np.full(len(columns), 1 / len(columns))
        counts[:, columns] = rng.multinomial(len(columns), chances, RESAMPLES)
    return counts


def _means(values: Values, seeds: Values, states: Values) -> Values:
    """Return (resample,) the weighted means over what is known."""
    known = ~np.isnan(values)
    total = ((seeds @ np.where(known, values, 0.0)) * states).sum(axis=1)
    weight = ((seeds @ known.astype(np.float64)) * states).sum(axis=1)
    means: Values = np.divide(total, weight, out=np.full(len(total), np.nan), where=weight > 0)
    return means


def _percentiles(means: Values) -> Interval:
    low, high = np.nanquantile(means, (0.025, 0.975))
    return float(low), float(high)
