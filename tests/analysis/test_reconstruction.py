"""Errors against recorded states, and their bootstrap over demonstrations."""

from types import SimpleNamespace

import numpy as np
import pytest

from lwdctl.analysis import reconstruction
from lwdctl.analysis.reconstruction import Reconstructions, squared_errors
from lwdctl.analysis.resample import Bootstrap
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.results import wilson
from lwdctl.evaluation.traced import TracedEpisodes
from lwdctl.policies.policy import EpisodePlan


def test_errors_by_hand():
    recorded = np.zeros((3, 4, 2))
    recorded[1, 3] = np.nan  # nothing was recorded after its last action
    states = np.ones((4, 2), dtype=np.float32) * np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    episodes = TracedEpisodes([states, states, None], [])
    scale = np.array([1.0, 2.0])
    errors = squared_errors(episodes.padded(3), recorded, np.array([3, 3, 3]), scale)
    assert errors.squared[0].tolist() == [0.0, 2.0, 8.0, 18.0]
    assert errors.normalized[0].tolist() == [0.0, 0.625, 2.5, 5.625]
    found = errors.by_snippet()
    assert found["final_squared"][:2].tolist() == [18.0, 8.0]
    assert np.isnan(found["final_squared"][2])
    assert found["mean_squared"][:2].tolist() == pytest.approx([28 / 3, 5.0])
    assert np.isnan(found["mean_squared"][2])


def test_padding_does_not_count_and_an_early_end_does():
    fallen = np.array([[0.0], [3.0]], dtype=np.float32)
    reached = TracedEpisodes([fallen, fallen], []).padded(4)
    errors = squared_errors(reached, np.zeros((2, 5, 1)), np.array([4, 2]), np.ones(1))
    assert errors.squared[0].tolist() == [0.0, 9.0, 9.0, 9.0, 9.0]
    assert errors.squared[1, :3].tolist() == [0.0, 9.0, 9.0]
    assert np.isnan(errors.squared[1, 3:]).all()


def test_snippets_of_two_demonstrations_are_no_fifty_episodes():
    """All of one solved and none of the other says little about a third."""
    episodes = np.repeat([3, 8], 25)

    def outcomes(solved):
        plan, failed = EpisodePlan(0, 100_000, "t"), {"return": 0.0}
        results = [
            EpisodeResult(plan, success=one, return_=-2.0, metrics=failed)
            for one in solved.tolist()
        ]
        return TracedEpisodes([], results, "return")

    runs = Reconstructions(
        starts=SimpleNamespace(episodes=episodes), split="all", errors={},
        episodes={"oracle": outcomes(episodes == 3), "sampled": outcomes(episodes < 0)},
        snapshots={},
    )  # fmt: skip
    bootstrap = Bootstrap(episodes, ("reconstruction bootstrap", 0))
    (row, _) = reconstruction._success_section(runs, bootstrap).table.rows
    assert row[1:3] == (50, 0.5)
    assert row[3:5] == pytest.approx(wilson(1, 2))
    assert row[5] == -2.0  # of the steps, not what the metric says of a failed episode
    gap = runs.oracle_minus_sampled
    assert gap.value == 0.5
    assert gap.low <= 0
    assert gap.high == 1.0
