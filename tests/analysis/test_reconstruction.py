"""Errors against recorded states, and their bootstrap over demonstrations."""

from types import SimpleNamespace

import numpy as np
import pytest

from lwdctl.analysis import reconstruction_sections
from lwdctl.analysis.reconstruction import Clusters, squared_errors
from lwdctl.evaluation.results import wilson


def test_errors_by_hand():
    recorded = np.zeros((3, 4, 2))
    recorded[1, 3] = np.nan  # nothing was recorded after its last action
    states = np.ones((4, 2), dtype=np.float32) * np.array([[0.0], [1.0], [2.0], [3.0]])
    errors = squared_errors(
        [states.astype(np.float32), states.astype(np.float32), None],
        recorded,
        np.array([3, 3, 3]),
        np.array([1.0, 2.0]),
    )
    assert errors.squared[0].tolist() == [0.0, 2.0, 8.0, 18.0]
    assert errors.normalized[0].tolist() == [0.0, 0.625, 2.5, 5.625]
    last = errors.last(errors.squared)
    assert last[:2].tolist() == [18.0, 8.0]
    assert np.isnan(last[2])
    average = errors.average(errors.squared)
    assert average[:2].tolist() == pytest.approx([28 / 3, 5.0])
    assert np.isnan(average[2])


def test_padding_does_not_count_and_an_early_end_does():
    recorded = np.zeros((2, 5, 1))
    fallen = np.array([[0.0], [3.0]], dtype=np.float32)
    errors = squared_errors([fallen, fallen], recorded, np.array([4, 2]), np.ones(1))
    assert errors.squared[0].tolist() == [0.0, 9.0, 9.0, 9.0, 9.0]
    assert errors.squared[1, :3].tolist() == [0.0, 9.0, 9.0]
    assert np.isnan(errors.squared[1, 3:]).all()


def test_snippets_of_one_demonstration_are_resampled_together():
    values = np.concatenate([np.zeros(50), np.ones(50)])
    apart = Clusters(np.arange(100)).interval(values)
    together = Clusters(np.repeat([3, 8], 50)).interval(values)
    assert apart.mean == together.mean == 0.5
    assert apart.low == pytest.approx(0.40, abs=0.02)
    assert apart.high == pytest.approx(0.60, abs=0.02)
    assert (together.low, together.high) == (0.0, 1.0)


def test_curves_leave_out_what_is_unknown():
    values = np.array([[1.0, np.nan, np.nan], [9.0, 5.0, np.nan], [2.0, np.nan, np.nan]])
    alone = Clusters(np.zeros(3, dtype=np.int64)).interval(np.arange(3.0))
    assert alone.mean == 1.0
    assert np.isnan([alone.low, alone.high]).all()
    first, second, third = Clusters(np.array([0, 1, 2])).curve(values)
    assert (first.mean, second.mean) == (4.0, 5.0)
    assert (first.median, second.median) == (2.0, 5.0)
    assert (second.low, second.high) == (5.0, 5.0)
    assert np.isnan(third.mean)


def test_snippets_of_two_demonstrations_are_no_fifty_episodes():
    """All of one solved and none of the other says little about a third."""
    episodes = np.repeat([3, 8], 25)
    solved = [SimpleNamespace(success=one == 3, error="", metrics={"x": 0.0}) for one in episodes]
    never = [SimpleNamespace(success=False, error="", metrics={"x": 0.0}) for _ in episodes]
    findings = SimpleNamespace(
        starts=SimpleNamespace(episodes=episodes),
        episodes={"oracle": solved, "sampled": never},
        score="x",
    )
    (row, _) = reconstruction_sections._solved(findings, Clusters(episodes)).table.rows
    assert row[1:3] == (50, 0.5)
    assert row[3:5] == pytest.approx(wilson(1, 2))
    rate, low, high = reconstruction_sections._oracle_difference(findings)
    assert rate == 0.5
    assert low <= 0
    assert high == 1.0
