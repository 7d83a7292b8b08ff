import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from lwdctl.analysis.resample import (
    Bootstrap,
    Pair,
    States,
    holm,
    mcnemar,
    mean_and_std,
    mean_estimate,
    newcombe,
    paired_permutation,
    success_estimate,
)
from lwdctl.evaluation.results import wilson

COUNTS = st.integers(0, 200)
FEW = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


def ends(estimate):
    return estimate.low, estimate.high


def mean_interval(values, states):
    return ends(mean_estimate(values, states))


def success(values, states):
    return ends(success_estimate(values, states))


def difference(first, second, states, **options):
    return ends(Pair(first, second, states, **options).estimate())


def success_difference(first, second, states, **options):
    return ends(Pair(first, second, states, **options).success_estimate())


def one_stratum(count):
    return States.one_each(np.zeros(count, dtype=np.intp))


def test_mcnemar_by_hand():
    # 1 against 5: twice the chance of at most one head in six throws, (1 + 6) / 64.
    assert mcnemar(1, 5) == pytest.approx(2 * 7 / 64)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)


def test_mcnemar_equals_scipys_on_a_fixed_table():
    # 50 episodes: 20 solved by both, 14 by the first alone, 4 by the second alone, 12 by none.
    expected = binomtest(14, 18, 0.5, alternative="two-sided").pvalue
    assert mcnemar(14, 4) == pytest.approx(expected)
    assert mcnemar(14, 4) == pytest.approx(0.03088379)


@given(COUNTS, COUNTS)
@settings(max_examples=50)
def test_mcnemar_does_not_care_who_is_first(better, worse):
    assert mcnemar(better, worse) == pytest.approx(mcnemar(worse, better))
    assert 0 < mcnemar(better, worse) <= 1


def by_enumeration(differences):
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(total >= abs(sum(differences)) for total in sums) / len(sums)


@given(FEW)
@settings(max_examples=40, deadline=None)
def test_the_permutation_test_equals_enumeration(differences):
    given_ = np.array(differences, dtype=float)
    # scipy doubles the smaller tail; with a symmetric null distribution that is the same.
    assert paired_permutation(given_) == pytest.approx(by_enumeration(differences))


def check_no_side_and_no_order(values):
    expected = paired_permutation(values)
    assert expected == paired_permutation(-values) == paired_permutation(values[::-1])


@given(FEW)
@settings(max_examples=25, deadline=None)
def test_the_permutation_test_has_no_side_and_no_order(differences):
    check_no_side_and_no_order(np.array(differences, dtype=float))


def test_the_permutation_test_of_thirds_that_cancel_finds_nothing():
    """Means of three seeds are thirds, whose sum is not 0 in floating point."""
    thirds = np.array([3, -2, 2, 1, -3, -1]) / 3
    assert np.sort(thirds).sum() != 0
    assert paired_permutation(thirds) == 1.0


def test_the_permutation_test_of_many_pairs_has_no_side_and_no_order():
    values = np.random.default_rng(2).normal(0.2, 1.0, 60)
    check_no_side_and_no_order(values)
    assert paired_permutation(np.append(values, np.zeros(40))) == paired_permutation(values)


def test_the_permutation_test_agrees_with_scipys_two_samples():
    rng = np.random.default_rng(3)
    first, second = rng.normal(0.5, 1.0, 40), rng.normal(0.0, 1.0, 40)
    expected = permutation_test(
        (first, second),
        lambda one, other, axis: one.mean(axis=axis) - other.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9_999,
        random_state=np.random.default_rng(4),
    ).pvalue
    assert paired_permutation(first - second) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("better", "worse"), [(1, 5), (3, 3), (8, 2), (0, 7), (4, 0)])
def test_with_differences_of_one_size_it_is_mcnemars(better, worse):
    differences = np.array([1.0] * better + [-1.0] * worse + [0.0] * 30)
    assert paired_permutation(differences) == pytest.approx(mcnemar(better, worse))


def test_nothing_differs():
    assert paired_permutation(np.zeros(12)) == 1.0
    assert paired_permutation(np.array([0.5])) == 1.0


def test_holm_by_hand():
    # 0.01 x 3; then 0.03 x 2; then 0.04 x 1, which may not fall below the one before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_only_raises_and_keeps_the_order(values):
    adjusted = holm(values)
    assert all(q >= p for p, q in zip(values, adjusted, strict=True))
    assert [sorted(adjusted)] == [[q for _, q in sorted(zip(values, adjusted, strict=True))]]
    assert max(adjusted) <= 1


def test_mean_and_standard_deviation():
    assert mean_and_std([0.5]) == (0.5, None)
    mean, spread = mean_and_std([0.2, 0.4, 0.6])
    assert (mean, spread) == (pytest.approx(0.4), pytest.approx(0.2))


def test_the_cluster_bootstrap_is_wider_than_wilsons_where_seeds_differ():
    rng = np.random.default_rng(0)
    values = (rng.random((3, 50)) < np.array([[0.2], [0.5], [0.8]])).astype(float)
    low, high = mean_interval(values, one_stratum(50))
    pooled = wilson(int(values.sum()), values.size)
    assert low < pooled[0] - 0.1
    assert high > pooled[1] + 0.1


def test_with_one_seed_and_many_states_it_is_near_wilsons():
    values = np.array([[1.0] * 60 + [0.0] * 140])
    low, high = mean_interval(values, one_stratum(200))
    assert (low, high) == pytest.approx(wilson(60, 200), abs=0.01)


def covers(seed_spread, rounds=120, seeds=5, states=40):
    """Return how often the bootstrap and Wilson's interval of all episodes hold the truth."""
    rng = np.random.default_rng(7)

    def chances(seed_part, state_part):
        return 1 / (1 + np.exp(-(0.5 + seed_spread * seed_part + 0.7 * state_part)))

    truth = chances(*rng.normal(size=(2, 200_000))).mean()
    held = np.zeros(2)
    for _ in range(rounds):
        level = chances(rng.normal(size=(seeds, 1)), rng.normal(size=(1, states)))
        values = (rng.random(level.shape) < level).astype(float)
        both = mean_interval(values, one_stratum(states)), wilson(int(values.sum()), values.size)
        held += [low <= truth <= high for low, high in both]
    return held / rounds


@pytest.mark.usefixtures("few_resamples")
def test_coverage_on_simulated_training_seeds():
    alike, _ = covers(seed_spread=0.3)
    different, naive = covers(seed_spread=0.8)
    assert alike >= 0.93
    assert different >= 0.85
    assert naive <= 0.75


def test_tasks_are_strata():
    """Between tasks of certain outcome nothing varies, though the tasks differ."""
    values = np.array([[1.0] * 20 + [0.0] * 20])
    tasks = np.repeat([3, 5], 20).astype(np.intp)
    assert mean_interval(values, States.one_each(tasks)) == (0.5, 0.5)
    low, high = mean_interval(values, one_stratum(40))
    assert high - low > 0.2


def labeled(count, labels):
    """Return states that have an episode of every label each."""
    return States(np.zeros(count * labels, np.intp), np.tile(np.arange(count), labels))


def test_labels_without_effect_say_nothing_new():
    values = np.random.default_rng(0).random((1, 30))
    states = labeled(30, 6)
    alone = mean_interval(values, one_stratum(30))
    assert mean_interval(np.tile(values, 6), states) == pytest.approx(alone)
    solved = (values < 0.4).astype(float)
    expected = success(solved, one_stratum(30))
    assert success(np.tile(solved, 6), states) == pytest.approx(expected)
    assert states.means(np.tile(solved, 6)[0]).tolist() == solved[0].tolist()
    none = success_difference(np.tile(solved, 6), np.tile(1 - solved, 6), states, same_models=False)
    assert none[1] - none[0] > 0.3


def test_labels_of_different_skill_are_no_noise():
    rng = np.random.default_rng(1)
    values = np.concatenate([level + 5 * rng.standard_normal(50) for level in (100, 50, 0)])[None]
    low, high = mean_interval(values, labeled(50, 3))
    assert high - low < 3
    assert low < values.mean() < high


def test_success_of_all_episodes_keeps_wilsons_width():
    values = np.ones((3, 50))
    assert mean_interval(values, one_stratum(50)) == (1.0, 1.0)
    assert success(values, one_stratum(50)) == wilson(150, 150)
    assert success(values[:1], one_stratum(50)) == wilson(50, 50)


def test_lost_episodes_are_left_out():
    values = np.array([[1.0, math.nan, 0.0, math.nan], [1.0, 1.0, math.nan, math.nan]])
    assert success(values[:1], one_stratum(4)) == wilson(1, 2)
    low, high = mean_interval(values, one_stratum(4))
    assert 0 <= low <= high <= 1
    assert success(np.full((2, 3), math.nan), one_stratum(3)) == (0.0, 1.0)


def test_paired_intervals_gain_from_what_is_shared():
    rng = np.random.default_rng(1)
    hard = rng.normal(size=(1, 60))
    first = hard + 0.3 + 0.1 * rng.normal(size=(1, 60))
    second = hard + 0.1 * rng.normal(size=(1, 60))
    low, high = difference(first, second, one_stratum(60), same_models=False)
    alone = mean_interval(first, one_stratum(60))
    assert low < 0.3 < high
    assert high - low < 0.3 * (alone[1] - alone[0])


def test_a_difference_between_conditions_of_the_same_models_ignores_how_models_differ():
    models = np.array([[-3.0], [0.0], [3.0]])
    calm = models + np.zeros((3, 30))
    pushed = calm - 0.5
    same = difference(pushed, calm, one_stratum(30), same_models=True)
    assert same == pytest.approx((-0.5, -0.5))
    low, high = difference(pushed, calm, one_stratum(30), same_models=False)
    assert high - low > 2


SMALL = st.integers(0, 30)


@given(SMALL, SMALL, SMALL, SMALL)
def test_newcombes_interval_holds_the_difference_and_has_no_side(both, first, second, neither):
    total = both + first + second + neither
    if not total:
        return
    low, high = newcombe(both, first, second, neither)
    assert -1 <= low <= (first - second) / total + 1e-12
    assert (first - second) / total - 1e-12 <= high <= 1
    assert low < high
    swapped = newcombe(both, second, first, neither)
    assert (low, high) == pytest.approx((-swapped[1], -swapped[0]))


def test_newcombes_interval_of_his_own_example():
    assert newcombe(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_newcombes_interval_covers():
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(400):
        hard = rng.random(50)
        one, other = hard < 0.8 * rng.random(50) + 0.3, hard < 0.8 * rng.random(50) + 0.1
        counts = one & other, one & ~other, ~one & other, ~one & ~other
        low, high = newcombe(*(int(mask.sum()) for mask in counts))
        held += low <= 0.2 - 0.00625 <= high  # what the first rate loses at 1
    assert held >= 0.93 * 400


def test_a_difference_between_policies_that_never_succeed_is_not_certain():
    never = np.zeros((3, 50))
    low, high = success_difference(never, never, one_stratum(50), same_models=False)
    assert (low, high) == pytest.approx((-wilson(0, 150)[1], wilson(0, 150)[1]))
    one = success_difference(never[:1], never[:1], one_stratum(50), same_models=True)
    assert one == newcombe(0, 0, 0, 50)
    assert one[1] == pytest.approx(wilson(0, 50)[1])


def test_units_are_drawn_with_all_their_observations():
    """Repeating every observation of a unit says nothing new."""
    values = np.random.default_rng(5).normal(size=30)
    alone = Bootstrap(30, ["test"]).estimate(values)
    repeated = Bootstrap(np.repeat(np.arange(30), 4), ["test"]).estimate(np.repeat(values, 4))
    assert ends(repeated) == pytest.approx(ends(alone))
    assert (alone.n, repeated.n) == (30, 120)
    assert alone.low < alone.value < alone.high


def test_the_bootstrap_leaves_out_what_is_unknown():
    bootstrap = Bootstrap(np.array([0, 0, 1]), ["test"])
    first, second = bootstrap.curve(np.array([[1.0, math.nan], [1.0, math.nan], [math.nan] * 2]))
    assert (first.value, first.low, first.high, first.n) == (1.0, 1.0, 1.0, 2)
    assert math.isnan(second.value)
    assert math.isnan(Bootstrap(np.zeros(3), ["test"]).estimate(np.ones(3)).low)
