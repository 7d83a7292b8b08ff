"""k-NN, linear separability and silhouette where the truth is known; episodes never leak."""

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from lwdctl.analysis import separability
from lwdctl.analysis.separability import (
    accuracy,
    has_two_episodes,
    linear_accuracy,
    linear_fit,
    majority_fraction,
    nearest_of_others,
    separation,
    vote,
)
from lwdctl.evaluation.results import wilson

EPISODES, SNIPPETS, SIZE = 60, 5, 12

pytestmark = pytest.mark.usefixtures("few_resamples")


def snippets(category_gap, episode_gap, snippet_gap=0.1):
    """Points = category's place + episode's place + noise; three categories."""
    rng = np.random.default_rng(0)
    of_episode = np.arange(EPISODES) % 3
    episode = np.repeat(np.arange(EPISODES), SNIPPETS)
    place = category_gap * rng.normal(size=(3, SIZE))[of_episode]
    place = place + episode_gap * rng.normal(size=(EPISODES, SIZE))
    points = place[episode] + snippet_gap * rng.normal(size=(len(episode), SIZE))
    return points, of_episode[episode], episode


def test_separated_categories_are_distinguished():
    found = separation(*snippets(10, 1), 5, 0, linear=True)
    assert found.knn.value == found.linear.value == 1.0
    assert found.knn.low == wilson(EPISODES, EPISODES)[0]
    assert found.silhouette > 0.8
    assert found.silhouette_shuffled < 0.1
    assert found.knn_shuffled == pytest.approx(1 / 3, abs=0.05)


def test_snippets_of_one_episode_do_not_answer_for_each_other():
    """Episodes are tight clusters, categories mean nothing: only leakage beats chance."""
    points, category, episode = snippets(0, 10)
    leaking = nearest_of_others(pairwise_distances(points), np.arange(len(points)), 3)
    assert (vote(leaking, category) == category).mean() == 1.0
    found = separation(points, category, episode, 3, 0, linear=True)
    for honest in (found.knn, found.linear):
        assert honest.value < 0.55
        assert honest.low < 1 / 3 < honest.high
    assert found.knn_shuffled == pytest.approx(1 / 3, abs=0.05)


def test_position_is_not_read_off_the_own_episode():
    """Each episode has its own offset, which memory would know and a line cannot."""
    points, _, episode = snippets(0, 10)
    rng = np.random.default_rng(1)
    target = rng.normal(size=EPISODES)[episode]
    assert linear_fit(points, target, episode, 0).value < 0.1
    leaking = linear_fit(points, target, np.arange(len(points)), 0)
    assert leaking.value > linear_fit(points, target, episode, 0).value + 0.1


def test_a_linear_position_is_found_and_noise_is_not():
    points, _, episode = snippets(0, 1, 1)
    target = points @ np.linspace(-1, 1, SIZE)
    found = linear_fit(points, target, episode, 0)
    assert found.value > 0.99
    assert found.low <= found.value <= found.high
    noise = linear_fit(points, np.random.default_rng(2).random(len(points)), episode, 0)
    assert noise.value < 0.05


def test_neighbors_come_from_other_episodes_nearest_first():
    points = np.array([[0.0], [0.1], [1.0], [3.0], [3.1]])
    episode = np.array([7, 7, 2, 5, 5])
    near = nearest_of_others(pairwise_distances(points), episode, 9)
    assert near.tolist() == [[2, 3, 4], [2, 3, 4], [1, 0, 3], [2, 1, 0], [2, 1, 0]]


def test_a_vote_goes_to_the_most_frequent_and_then_to_the_nearest():
    category = np.array([0, 1, 2, 1, 2])
    near = np.array([[0, 1, 3], [2, 1, 0], [0, 1, 2]])
    assert vote(near, category).tolist() == [1, 2, 0]
    assert vote(np.array([[2, 1, 3, 4, 0]]), category).tolist() == [2]
    assert vote(np.array([[0, 1, 3, 2, 4]]), category).tolist() == [1]


def test_every_episode_counts_alike():
    hits = np.array([True] * 8 + [False] * 2)
    episode = np.array([0] * 8 + [1, 2])
    found = accuracy(hits, episode)
    assert found.value == pytest.approx(1 / 3)
    assert found.low == 0.0
    assert found.high == 1.0


def test_one_snippet_an_episode_has_wilsons_interval():
    found = accuracy(np.arange(20) < 15, np.arange(20))
    assert (found.low, found.high) == wilson(15, 20)


def test_correlated_snippets_widen_the_interval():
    """Forty episodes that answer as one say as much as forty points, not as four hundred."""
    rng = np.random.default_rng(0)
    right = rng.random(40) < 0.5
    whole = accuracy(np.repeat(right, 10), np.repeat(np.arange(40), 10))
    assert whole.high - whole.low > 0.25


def test_a_category_of_one_episode_cannot_be_tested():
    category = np.array([0, 0, 0, 1, 1, -1, -1, 2, 2])
    episode = np.array([0, 0, 1, 2, 3, 4, 5, 6, 6])
    assert has_two_episodes(category, episode).tolist() == [True] * 5 + [False] * 4
    assert majority_fraction(np.array([0, 0, 0, 1]), np.array([5, 5, 6, 4])) == pytest.approx(2 / 3)


def test_two_episodes_a_category_are_enough():
    category, episode = np.array([0, 0, 1, 1, 0, 1]), np.array([0, 1, 2, 3, 1, 3])
    points = np.array([[0.0], [0.1], [9.0], [9.2], [0.2], [9.1]])
    assert linear_accuracy(points, category, episode, 0).value == 1.0
    found = separation(points, category, episode, 50, 0, linear=False)
    assert found.linear is None
    assert found.silhouette > 0.9


def test_shuffling_keeps_episodes_whole():
    _, category, episode = snippets(1, 1)
    for shuffled in separability._shuffles(category, episode, 0, 3):
        pairs = np.unique(np.stack([episode, shuffled], 1), axis=0)
        assert len(pairs) == EPISODES
        assert np.bincount(shuffled).tolist() == np.bincount(category).tolist()
