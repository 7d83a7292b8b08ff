"""Whether the last third of a training gains: the verdict, and the states it stands on."""

from __future__ import annotations

import numpy as np
import pytest

from lwdctl.analysis.convergence import SUCCESS, Curve, curve_of, reasons_of_failures
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


def test_aborted_episodes_are_named_with_their_snapshot() -> None:
    plan = EpisodePlan(0, 200_000, "t")
    failed = EpisodeResult(plan, return_=-3.0, metrics={}, policy_failure="not finite")
    good = EpisodeResult(plan, return_=-9.0, metrics={})
    assert not reasons_of_failures({100: [good], 200: [good]})
    text = reasons_of_failures({100: [good], 200: [failed]})
    assert "after 200: 1 of 1 episodes ended because not finite" in text
    assert "after 100" not in text
