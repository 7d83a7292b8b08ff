"""Variance and modes, on trajectories whose diversity is known."""

from __future__ import annotations

import numpy as np
import pytest

from lwdctl.analysis.diversity_measures import (
    ClusteredModes,
    LabeledModes,
    StateBootstrap,
    chance_total_variation,
    draw_agreement,
    effective_number,
    features,
    mode_fractions,
    similar_agreement,
    total_variation,
)
from lwdctl.core.errors import ConfigError
from lwdctl.core.seeding import generator

STEPS, SIZE = 40, 3


def _walks(count: int, spread: float, key: str, turn: float = 0.0) -> np.ndarray:
    """(trajectory, time, obs): straight lines in directions around `turn`."""
    rng = generator("test diversity", key)
    time = np.linspace(0, 1, STEPS + 1)
    slopes = turn + spread * rng.standard_normal((count, 1, SIZE))
    return slopes * time[None, :, None]


def test_the_variance_is_the_unbiased_variance_and_its_ratio_is_covered() -> None:
    starts = StateBootstrap(200, seed=0)
    groups = {"demonstrated": _walks(200, 1.0, "a"), "narrow": _walks(200, 0.5, "b")}
    found = starts.variances(groups, "demonstrated")
    expected = groups["narrow"].var(axis=0, ddof=1).mean(axis=1)
    np.testing.assert_allclose([one.value for one in found["narrow"].curve], expected, atol=1e-12)
    assert found["narrow"].curve[-1].low < 0.25 < found["narrow"].curve[-1].high
    ratio = found["narrow"].ratio
    assert ratio.low < 0.25 < ratio.high
    assert ratio.low < ratio.value < ratio.high < 0.4
    same = found["demonstrated"].ratio
    assert (same.value, same.low, same.high) == pytest.approx((1.0, 1.0, 1.0))


def test_the_variance_of_each_component_is_kept() -> None:
    demonstrated = _walks(40, 1.0, "a")
    demonstrated[..., 2] *= 1e-3
    moved = demonstrated.copy()
    moved[..., 2] *= 1e5
    spreads = StateBootstrap(40, seed=0).variances(
        {"demonstrated": demonstrated, "moved": moved}, "demonstrated"
    )
    found = spreads["moved"]
    np.testing.assert_allclose(found.components, moved.var(axis=0, ddof=1).mean(axis=0))
    assert np.mean(found.components) == pytest.approx(np.mean([one.value for one in found.curve]))
    assert found.ratio.value > 1000
    assert np.argmax(found.components) == 2
    assert found.components[2] / sum(found.components) > 0.999


@pytest.mark.slow
def test_the_fraction_of_variance_within_initial_states_is_known() -> None:
    rng = generator("test diversity", "within")
    count, draws = 4000, 3
    between = rng.standard_normal((count, 1, 1, 1))
    inside = np.sqrt(3.0) * rng.standard_normal((count, draws, 1, 1))
    values = np.broadcast_to(between + inside, (count, draws, 2, 1)).copy()
    found = StateBootstrap(count, seed=0).within_state_fraction(values)
    assert found.value == pytest.approx(0.75, abs=0.02)
    assert found.low < 0.75 < found.high
    alike = np.broadcast_to(between, (count, draws, 2, 1)).copy()
    assert StateBootstrap(count, seed=0).within_state_fraction(alike).value == pytest.approx(
        0.0, abs=1e-9
    )


@pytest.mark.slow
def test_labeled_modes_are_classified_by_a_forest_not_trained_on_them() -> None:
    rows = features(np.concatenate([_walks(30, 0.2, "l", -1.0), _walks(30, 0.2, "r", 1.0)]))
    category = np.repeat([0, 1], 30)
    modes = LabeledModes(rows, category, ("left", "right"), seed=0)
    assert modes.accuracy == 1.0
    np.testing.assert_array_equal(modes.demonstrated, category)
    fresh = features(_walks(20, 0.2, "fresh", 1.0))
    assert (modes.classify(fresh, np.arange(20)) == 1).all()
    # Random labels are classified at chance level: no forest classifies its training data.
    nonsense = generator("test diversity", "nonsense").permutation(category)
    noise = generator("test diversity", "noise").standard_normal(rows.shape)
    blind = LabeledModes(noise, nonsense, ("left", "right"), seed=0)
    assert blind.accuracy is not None
    assert blind.accuracy < 0.75
    np.testing.assert_array_equal(blind.classify(noise, np.arange(60)), blind.demonstrated)


def test_clusters_are_found_and_counted() -> None:
    parts = [_walks(20, 0.1, f"c{turn}", turn) for turn in (-2.0, 0.0, 2.0)]
    rows = features(np.concatenate(parts))
    modes = ClusteredModes(rows, None, seed=0)
    assert modes.names == ("cluster 1", "cluster 2", "cluster 3")
    assert modes.accuracy is None
    assert all(len(set(modes.demonstrated[k : k + 20])) == 1 for k in (0, 20, 40))
    fresh = features(_walks(5, 0.1, "fresh", 2.0))
    assert set(modes.classify(fresh, np.zeros(5, dtype=int))) == {modes.demonstrated[-1]}
    assert len(ClusteredModes(rows, 5, seed=0).names) == 5


def test_rounding_makes_no_clusters() -> None:
    """Components that stand still but for rounding, as the objects that nobody touches do."""
    behavior = np.concatenate([_walks(20, 0.1, f"b{turn}", turn) for turn in (-1.0, 1.0)])
    sign = np.resize([1e-9, -1e-9], 40)[:, None, None]
    still = np.broadcast_to(sign, (40, STEPS + 1, 30))
    modes = ClusteredModes(features(np.concatenate([behavior, still], axis=2)), None, seed=0)
    assert len(modes.names) == 2
    assert len(set(modes.demonstrated[:20])) == len(set(modes.demonstrated[20:])) == 1


def test_numbers_of_fractions() -> None:
    np.testing.assert_allclose(mode_fractions(np.array([0, 0, 2, 2]), 4), [0.5, 0, 0.5, 0])
    assert effective_number(np.array([0.5, 0.0, 0.5])) == pytest.approx(2.0)
    assert effective_number(np.array([1.0, 0.0])) == pytest.approx(1.0)
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0
    assert total_variation(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == 0.25
    level = chance_total_variation(np.full(6, 1 / 6), 60, 0)
    rng = generator("test diversity", "chance")
    drawn = rng.multinomial(60, np.full(6, 1 / 6), 2000) / 60
    beyond = [total_variation(one, np.full(6, 1 / 6)) > level for one in drawn]
    assert 0.02 < np.mean(beyond) < 0.08


def test_pairs_of_draws_by_hand() -> None:
    modes = np.array([[0, 0, 1], [1, 1, 1]])
    same, different = draw_agreement(modes, 2)
    np.testing.assert_allclose(same, [1 / 3, 1])
    assert different == pytest.approx(3 / 9)
    assert same.mean() == pytest.approx((1 + 3) / 6)


def test_demonstrations_from_similar_initial_states() -> None:
    initial = np.concatenate([np.arange(6.0), 100 + np.arange(11.0), [1000]])[:, None]
    modes = np.concatenate([[0] * 6, [1] * 11, [0]])
    found = similar_agreement(initial, modes, np.array([0, 10, 17]))
    # The ten nearest others of the first: the rest of its group, and five of the second.
    np.testing.assert_allclose(found, [0.5, 1, 0])
    np.testing.assert_allclose(similar_agreement(initial[:2], modes[:2], np.array([1])), [1])


def test_large_constants_have_no_variance() -> None:
    starts = StateBootstrap(5, seed=0)
    constant = np.full((5, 4, 2), 1234.5678)
    found = starts.variances({"demonstrated": constant, "moved": constant + 1e-9}, "demonstrated")
    assert np.isnan(found["moved"].ratio.value)
    wide = 1e4 + _walks(200, 1.0, "offset")
    offset = StateBootstrap(200, seed=0).variances({"demonstrated": wide}, "demonstrated")[
        "demonstrated"
    ]
    expected = (wide - 1e4).var(axis=0, ddof=1).mean(axis=1)
    np.testing.assert_allclose([one.value for one in offset.curve], expected, atol=1e-9)


def test_intervals_hold_the_truth() -> None:
    """Over many data sets of twenty initial states each."""
    rng = generator("test diversity", "few")
    covered = []
    for seed in range(60):
        between, inside = rng.standard_normal((20, 1, 1, 1)), rng.standard_normal((20, 4, 1, 1))
        found = StateBootstrap(20, seed).within_state_fraction(
            np.broadcast_to(between + inside, (20, 4, 2, 1)).copy()
        )
        covered.append(found.low <= 0.5 <= found.high)
    assert np.mean(covered) > 0.85


def test_demonstrations_that_do_not_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not differ"):
        ClusteredModes(np.ones((8, 5)), None, seed=0)
