"""How well categories are separated in a space, measured without leakage between snippets.

Snippets of one episode resemble each other whatever else the space encodes. So an episode's
points are never classified with the help of its other points: neighbors come from other episodes,
and cross-validation keeps all points of an episode in one fold. The unit of every accuracy,
interval and permutation is the episode; all points of an episode have the same category.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import pairwise_distances, silhouette_score
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lwdctl.analysis.resample import States, Values, mean_estimate
from lwdctl.core.seeding import generator, seed_of_32_bits
from lwdctl.evaluation.results import Estimate, wilson

Index = npt.NDArray[np.int64]

FOLDS = 5
SHUFFLES = 200
"""Label permutations behind the k-NN accuracy of permuted labels."""
SILHOUETTE_SHUFFLES = 10
"""Fewer, because each one is a pass over all pairs of points."""
RIDGE_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
RESAMPLES = 2000


@dataclass(frozen=True)
class Separation:
    """How well categories are separated in one space.

    Attributes:
        silhouette: Mean silhouette coefficient, in [-1, 1].
        silhouette_shuffled: Its mean where categories are permuted over episodes.
        knn: Accuracy of the nearest neighbors' majority vote.
        knn_shuffled: Its mean where categories are permuted over episodes.
        linear: Accuracy of logistic regression, None where it was not requested.
    """

    silhouette: float
    silhouette_shuffled: float
    knn: Estimate
    knn_shuffled: float
    linear: Estimate | None


def has_two_episodes(category: Index, episode: Index) -> npt.NDArray[np.bool_]:
    """Return (point,) whether a point's category has at least two episodes (and is known)."""
    pairs = np.unique(np.stack([category, episode], axis=1), axis=0)
    names, episodes = np.unique(pairs[:, 0], return_counts=True)
    return np.isin(category, names[(episodes > 1) & (names >= 0)])


def separation(
    points: Values, category: Index, episode: Index, neighbors: int, seed: int, *, linear: bool
) -> Separation:
    """Measure how well categories are separated.

    Args:
        points: (point, dim).
        category: (point,), at least two categories of at least two episodes each.
        episode: (point,).
        neighbors: Nearest neighbors that vote.
        seed: Seed of folds and permutations.
        linear: Whether to fit logistic regression too.
    """
    distances = pairwise_distances(points)
    near = nearest_of_others(distances, episode, neighbors)

    def silhouette(categories: Index) -> float:
        return float(silhouette_score(distances, categories, metric="precomputed"))

    def hits(categories: Index) -> npt.NDArray[np.bool_]:
        return np.equal(vote(near, categories), categories)

    def permuted(measure: Callable[[Index], float], count: int) -> float:
        return float(np.mean([measure(s) for s in _shuffles(category, episode, seed, count)]))

    return Separation(
        silhouette=silhouette(category),
        silhouette_shuffled=permuted(silhouette, SILHOUETTE_SHUFFLES),
        knn=accuracy(hits(category), episode),
        knn_shuffled=permuted(lambda one: float(_by_episode(hits(one), episode).mean()), SHUFFLES),
        linear=linear_accuracy(points, category, episode, seed) if linear else None,
    )


def majority_fraction(category: Index, episode: Index) -> float:
    """Return the largest category's fraction of episodes: the accuracy of a constant guess."""
    of_episode = _category_of_episode(category, episode)
    return float((of_episode == np.bincount(of_episode).argmax()).mean())


def nearest_of_others(distances: Values, episode: Index, count: int) -> Index:
    """Return the nearest points of other episodes: (point, neighbor), nearest first.

    Args:
        distances: (point, point).
        episode: (point,), at least two different ones.
        count: Neighbors per point; fewer where other episodes have fewer points.
    """
    largest = np.unique(episode, return_counts=True)[1].max()
    count = min(count, len(episode) - int(largest))
    near = np.empty((len(episode), count), np.int64)
    for own in np.unique(episode):
        rows = np.flatnonzero(episode == own)
        others = np.flatnonzero(episode != own)
        order = np.argsort(distances[np.ix_(rows, others)], axis=1, kind="stable")
        near[rows] = others[order[:, :count]]
    return near


def vote(near: Index, category: Index) -> Index:
    """Return the most frequent category of each point's neighbors (point,).

    Ties go to the category of the nearer neighbors.

    Args:
        near: (point, neighbor), nearest first.
        category: (point,), from 0.
    """
    count = near.shape[1]
    # The tie-breaking bonuses add up to less than one vote.
    weight = 1.0 + np.linspace(1.0, 0.5, count) / (2 * count)
    votes = np.zeros((len(near), int(category.max()) + 1))
    rows = np.arange(len(near))
    for place in range(count):
        votes[rows, category[near[:, place]]] += weight[place]
    winner: Index = votes.argmax(axis=1).astype(np.int64)
    return winner


def linear_accuracy(points: Values, category: Index, episode: Index, seed: int) -> Estimate:
    """Return the accuracy of logistic regression on standardized components.

    Stratified cross-validation over episodes, `FOLDS` folds or as many as the smallest
    category has episodes.
    """
    names = np.unique(episode)
    of_episode = _category_of_episode(category, episode)
    smallest = np.unique(of_episode, return_counts=True)[1].min()
    state = seed_of_32_bits("folds", seed)
    folds = StratifiedKFold(min(FOLDS, int(smallest)), shuffle=True, random_state=state)
    predicted = np.empty_like(category)
    for _, held_out in folds.split(names, of_episode):
        test = np.isin(episode, names[held_out])
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        predicted[test] = model.fit(points[~test], category[~test]).predict(points[test])
    return accuracy(predicted == category, episode)


def linear_fit(points: Values, target: Values, episode: Index, seed: int) -> Estimate:
    """Return the fraction of a number's variance that ridge regression explains (R^2).

    Cross-validation over episodes; predictions of all folds are compared together with the
    overall mean, so that chance level is 0 or slightly less. The interval is a bootstrap over
    episodes.

    Args:
        points: (point, dim); standardized within each fold.
        target: (point,), not constant.
        episode: (point,), at least two different ones.
        seed: Seed of folds and resamples.
    """
    names = np.unique(episode)
    state = seed_of_32_bits("folds", seed)
    folds = GroupKFold(min(FOLDS, len(names)), shuffle=True, random_state=state)
    model = make_pipeline(StandardScaler(), RidgeCV(RIDGE_PENALTIES))
    predicted = cross_val_predict(model, points, target, groups=episode, cv=folds)
    place = np.searchsorted(names, episode)
    residual, total = (
        np.bincount(place, (target - guess) ** 2).astype(np.float64)
        for guess in (predicted, target.mean())
    )

    def r2(residual: Values, total: Values, axis: int = -1) -> Values:
        explained: Values = 1.0 - residual.sum(axis=axis) / total.sum(axis=axis)
        return explained

    interval = bootstrap(
        (residual, total), r2, paired=True, vectorized=True, method="percentile",
        n_resamples=RESAMPLES, batch=200, random_state=generator("bootstrap R2", seed),
    ).confidence_interval  # fmt: skip
    value = float(r2(residual, total))
    return Estimate(value, float(interval.low), float(interval.high), len(names))


def accuracy(correct: npt.NDArray[np.bool_], episode: Index) -> Estimate:
    """Return the fraction of correct points, in which every episode counts equally.

    The interval is Wilson's where every episode has one point, or where all episodes have the
    same accuracy (a bootstrap would see no variation); otherwise a bootstrap over episodes.

    Args:
        correct: (point,).
        episode: (point,).
    """
    fractions = _by_episode(correct, episode)
    value, count = float(fractions.mean()), len(fractions)
    if count == len(correct) or np.ptp(fractions) == 0:
        low, high = wilson(round(fractions.sum()), count)
        return Estimate(value, min(low, value), max(high, value), count)
    found = mean_estimate(fractions[None], States.one_each(np.zeros(count, np.intp)))
    return Estimate(value, found.low, found.high, count)


def _by_episode(correct: npt.NDArray[np.bool_], episode: Index) -> Values:
    """Return (episode,) fractions of correct points."""
    place = np.unique(episode, return_inverse=True)[1]
    fractions: Values = np.bincount(place, correct) / np.bincount(place)
    return fractions


def _category_of_episode(category: Index, episode: Index) -> Index:
    """Return (episode,) the category of each episode, in ascending order of episodes."""
    return category[np.unique(episode, return_index=True)[1]]


def _shuffles(category: Index, episode: Index, seed: int, count: int) -> Iterator[Index]:
    """Yield (point,) categories permuted over whole episodes."""
    place = np.unique(episode, return_inverse=True)[1]
    of_episode = _category_of_episode(category, episode)
    rng = generator("shuffled categories", seed)
    for _ in range(count):
        yield rng.permutation(of_episode)[place]
