"""Whether the last third of a training gains: the verdict, and the states it stands on."""

from __future__ import annotations

import numpy as np
import pytest

from lwdctl.analysis.convergence import SUCCESS, Curve, curve_of
from lwdctl.core.errors import SimulatorError
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.results import Estimate
from lwdctl.policies.policy import EpisodePlan


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.1, 0.04, "flat"),
        (0.01, 0.05, "flat"),
        (0.01, 0.2, "still gains"),
        (-0.1, 0.2, "undecided"),
    ],
)
def test_the_interval_of_the_gain_decides(low: float, high: float, verdict: str) -> None:
    curve = Curve({}, 0, Estimate((low + high) / 2, low, high, 50))
    assert curve.verdict(0.05) == verdict


def test_where_less_is_better_a_fall_is_a_gain() -> None:
    def verdict(low: float, high: float) -> str:
        gain = Estimate((low + high) / 2, low, high, 50)
        return Curve({}, 0, gain, less_is_better=True).verdict(0.05)

    assert verdict(-0.3, -0.1) == "still gains"
    assert verdict(0.1, 0.3) == verdict(-0.04, 0.1) == "flat"
    assert verdict(-0.2, 0.1) == "undecided"


def episodes(scores: list[float], *, lost: int = -1) -> list[EpisodeResult]:
    return [
        EpisodeResult(
            EpisodePlan(index, 200_000 + index, "t"),
            success=score > 0.9,
            metrics={"overlap": score},
            error="gone" if index == lost else "",
        )
        for index, score in enumerate(scores)
    ]


def test_the_end_is_compared_with_two_thirds_on_the_same_states() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.5, size=40)
    # Every state gains the same, so that the paired interval is narrow however states differ.
    found = {
        step: episodes(list(base + gain))
        for step, gain in ((100, 0.0), (200, 0.2), (300, 0.3), (400, 0.35), (500, 0.4), (600, 0.5))
    }
    curve = curve_of(found, "overlap")
    assert curve.since == 400
    assert curve.gain.value == pytest.approx(0.15)
    assert curve.gain.low == pytest.approx(0.15)
    assert curve.verdict(0.05) == "still gains"
    assert curve.verdict(0.2) == "flat"
    assert list(curve.estimates) == [100, 200, 300, 400, 500, 600]
    assert curve.estimates[100].value == pytest.approx(base.mean())


def test_an_episode_that_was_lost_once_counts_nowhere() -> None:
    found = {
        100: episodes([0.1, 0.5, 0.5]),
        200: episodes([0.1, 0.5, 0.5], lost=0),
        300: episodes([0.9, 0.5, 0.95]),
    }
    curve = curve_of(found, SUCCESS)
    assert curve.estimates[300].value == pytest.approx(0.5)
    assert curve.gain.n == 2


def test_without_an_episode_of_every_snapshot_there_is_no_curve() -> None:
    found = {100: episodes([0.1], lost=0), 200: episodes([0.1]), 300: episodes([0.1])}
    with pytest.raises(SimulatorError, match="every episode"):
        curve_of(found, "overlap")


def test_the_return_of_a_failed_episode_is_that_of_its_steps() -> None:
    """As in evaluations: the worst value of a metric, 0, would be the best return of costs."""
    plan, costs = EpisodePlan(0, 200_000, "t"), {"return": 0.0}
    failed = EpisodeResult(plan, return_=-3.0, metrics=costs, policy_failure="not finite")
    curve = curve_of({100: [failed], 200: [failed], 300: [failed]}, "return")
    assert curve.estimates[300].value == -3.0
