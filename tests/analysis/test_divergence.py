"""The bounded Jensen-Shannon divergence: known distributions, bounds, one grid for all sets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lwdctl.analysis.divergence import (
    MAX_DIVERGENCE,
    MIN_BANDWIDTH,
    SourceDivergence,
    density,
    jensen_shannon,
    kernels,
    make_grid,
)

pytestmark = pytest.mark.usefixtures("few_draws")
PAIR = [(0, 1)]
UNIT = (0.0, 1.0)


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr("lwdctl.analysis.divergence.DRAWS", 50)


def divergence(first, second, grid):
    return jensen_shannon(density(kernels(first, grid)), density(kernels(second, grid)))


def around(center, count, seed=0, spread=0.03):
    points = np.random.default_rng(seed).normal(center, spread, size=(count, len(center)))
    return np.clip(points, 0.0, 1.0)


def test_two_discrete_distributions_by_hand():
    first, second = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    assert jensen_shannon(first, second) == pytest.approx(0.5 * math.log(2))
    assert jensen_shannon(first, first) == 0.0
    tiny = np.array([1.0, 5e-324])
    assert jensen_shannon(tiny, np.array([1.0, 0.0])) == 0.0
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == MAX_DIVERGENCE


def test_two_normal_distributions_have_the_divergence_of_the_integral():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (40_000, 1)), rng.normal(1, 1, (40_000, 1))
    x = np.linspace(-8, 9, 20_001)
    p, q = np.exp(-0.5 * x**2), np.exp(-0.5 * (x - 1) ** 2)
    exact = jensen_shannon(p / p.sum(), q / q.sum())
    found = divergence(first, second, make_grid(first, len(first)))
    assert found == pytest.approx(exact, rel=0.05)


def test_sets_of_one_distribution_reach_the_level_of_the_source_against_itself():
    source, same = around((0.3, 0.6), 128), around((0.3, 0.6), 64, seed=1)
    measured = SourceDivergence(source, 32, PAIR, UNIT)
    level, found = measured.source_vs_source(), measured.of(same)
    assert found.value == pytest.approx(level.value, rel=0.5)
    assert 0.0 < level.value < 0.5 * MAX_DIVERGENCE
    assert found.value <= level.high
    assert level.low <= level.value <= level.high
    assert divergence(source, source, make_grid(source, 32, UNIT)) == 0.0


def test_disjoint_sets_are_ln_2_apart():
    source, far = around((0.1, 0.1), 64), around((0.9, 0.9), 32)
    measured = SourceDivergence(source, 32, PAIR, UNIT)
    found = measured.of(far)
    assert found.value == pytest.approx(MAX_DIVERGENCE, abs=1e-6)
    assert found.high <= MAX_DIVERGENCE
    assert found.value > measured.source_vs_source().high


def test_without_bounds_far_points_are_ln_2_apart_and_constants_do_no_harm():
    source = np.random.default_rng(0).normal(5.0, 1.0, size=(60, 1))
    found = SourceDivergence(source, 30, [(0,)]).of(np.full((30, 1), 1e9))
    assert found.value == pytest.approx(MAX_DIVERGENCE, abs=1e-3)
    constant = np.ones((40, 1))
    measured = SourceDivergence(constant, 20, [(0,)])
    assert measured.source_vs_source().value == 0.0
    assert measured.of(constant).value == 0.0
    assert measured.of(2 * constant).value == pytest.approx(MAX_DIVERGENCE, abs=1e-3)


POINTS = arrays(np.float64, st.tuples(st.integers(1, 8), st.just(2)), elements=st.floats(0, 1))


@settings(max_examples=40, deadline=None)
@given(POINTS, POINTS)
def test_it_is_bounded_and_symmetric_for_any_input(first, second):
    grid = make_grid(first, len(first), UNIT)
    found = divergence(first, second, grid)
    assert 0.0 <= found <= MAX_DIVERGENCE
    assert divergence(second, first, grid) == found
    assert density(kernels(first, grid)).sum() == pytest.approx(1.0)


WILD = arrays(np.float64, st.tuples(st.integers(1, 8), st.just(1)), elements=st.floats(-1e6, 1e6))


@settings(max_examples=40, deadline=None)
@given(WILD, WILD)
def test_it_is_bounded_without_bounds(first, second):
    assert 0.0 <= divergence(first, second, make_grid(first, len(first))) <= MAX_DIVERGENCE


def test_the_grid_is_the_source_s_whatever_is_measured(monkeypatch):
    source = around((0.4, 0.5), 80)
    measured = SourceDivergence(source, 20, PAIR, UNIT)
    before = measured.grids[0]
    measured.of(around((0.9, 0.1), 40, spread=0.3))
    assert measured.grids[0] is before
    low, high = np.quantile(source, (0.25, 0.75), axis=0)
    deviation = np.minimum(source.std(axis=0, ddof=1), (high - low) / 1.349)
    np.testing.assert_allclose(before.bandwidth, deviation * 20 ** (-1 / 6))
    outlying = np.vstack([source, [[1.0, 1.0]]])
    np.testing.assert_allclose(make_grid(outlying, 20, UNIT).bandwidth, before.bandwidth, rtol=0.25)
    assert make_grid(np.full((5, 2), 0.5), 5, UNIT).bandwidth.tolist() == [
        MIN_BANDWIDTH,
        MIN_BANDWIDTH,
    ]
    # Nodes no farther apart than the bandwidth: sums over the grid are integrals.
    assert np.diff(before.axes[0]).max() <= before.bandwidth.min() * (1 + 1e-9)


def test_every_comparison_has_sets_of_one_size(monkeypatch):
    seen = []
    between = SourceDivergence._between

    def noting(self, first, chosen, second, others):
        seen.append((len(chosen), len(others)))
        return between(self, first, chosen, second, others)

    monkeypatch.setattr(SourceDivergence, "_between", noting)
    measured = SourceDivergence(around((0.4, 0.5), 90), 20, PAIR, UNIT)
    assert measured.source_vs_source().n == measured.of(around((0.4, 0.5), 77)).n == 20
    assert set(seen) == {(20, 20)}
    with pytest.raises(ValueError, match="19 points give no set of 20"):
        measured.of(around((0.4, 0.5), 19))
    with pytest.raises(ValueError, match="no two sets"):
        SourceDivergence(around((0.4, 0.5), 39), 20, PAIR, UNIT)


def test_draws_are_those_of_the_key():
    source, other = around((0.4, 0.5), 60), around((0.45, 0.5), 30)
    one, two, three = (SourceDivergence(source, 20, PAIR, UNIT, key=key).of(other) for key in "aab")
    assert one == two != three


def test_more_than_two_feet_are_averaged_over_pairs():
    source = around((0.2, 0.5, 0.8), 60)
    moved = source[:30] + np.array([0.0, 0.0, -0.7])
    views = [(0, 1), (0, 2), (1, 2)]
    alone = [SourceDivergence(source, 30, [view], UNIT).of(moved).value for view in views]
    together = SourceDivergence(source, 30, views, UNIT).of(moved).value
    assert together == pytest.approx(np.mean(alone))


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        divergence(np.array([[np.nan]]), np.zeros((1, 1)), make_grid(np.zeros((1, 1)), 1))
