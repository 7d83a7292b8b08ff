"""What the latent space knows, as numbers: each grouping and the position, in every space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.analysis.latent_table import Grouping, LatentPoints
from lwdctl.analysis.separability import (
    FOLDS,
    Rate,
    Separation,
    has_two_episodes,
    linear_fit,
    majority_share,
    separation,
)
from lwdctl.analysis.tables import Table

Values = npt.NDArray[np.float64]

LATENT, PCA, TSNE, SNIPPET, STATE = "latent", "pca", "tsne", "snippet", "state"
SPACES = {
    LATENT: "Latent, all dimensions",
    PCA: "Its principal components 1 and 2",
    TSNE: "Its t-SNE, 2-D",
    SNIPPET: "Raw snippet, as the encoder reads it",
    STATE: "Observation at the snippet's first step",
}
"""Spaces that are compared; the last two are what was there before any learning."""
_FITTED = (LATENT, SNIPPET, STATE)
LARGEST_FIT = 4096
"""Logistic regression of more components than these would take minutes."""


@dataclass(frozen=True)
class GroupFindings:
    """How one grouping lies in every space.

    Attributes:
        grouping: What was looked at.
        points: Points whose category has at least two episodes.
        episodes: Their episodes.
        categories: Their categories.
        chance: Share of the largest category among the episodes.
        spaces: Space to numbers.
    """

    grouping: Grouping
    points: int
    episodes: int
    categories: int
    chance: float
    spaces: Mapping[str, Separation]

    def summary(self) -> dict[str, Any]:
        """Return the headline numbers; those of other spaces carry the space's name."""
        latent = self.spaces[LATENT]
        numbers: dict[str, Any] = {
            "categories": self.categories,
            "episodes": self.episodes,
            "points": self.points,
            "chance": self.chance,
            "chance_shuffled": latent.knn_shuffled,
            "silhouette_shuffled": latent.silhouette_shuffled,
        }
        for space, found in self.spaces.items():
            prefix = "" if space == LATENT else f"{space}_"
            numbers[f"{prefix}silhouette"] = found.silhouette
            numbers |= _rate(f"{prefix}knn_accuracy", found.knn)
            if found.linear:
                numbers |= _rate(f"{prefix}linear_accuracy", found.linear)
        return numbers

    def table(self) -> Table:
        """Return one row per space."""
        columns = (
            "space", "silhouette", "silhouette, shuffled", "k-NN accuracy", "95 % interval",
            "k-NN, shuffled", "linear accuracy", "95 % interval of linear", "largest category",
        )  # fmt: skip
        rows = [
            (
                SPACES[space], _round(found.silhouette), _round(found.silhouette_shuffled),
                _round(found.knn.value), _interval(found.knn), _round(found.knn_shuffled),
                _round(found.linear.value) if found.linear else None, _interval(found.linear),
                _round(self.chance),
            )
            for space, found in self.spaces.items()
        ]  # fmt: skip
        return Table(columns, tuple(rows))

    def caption(self, neighbors: int) -> str:
        """Return the numbers of the full space in two lines."""
        latent = self.spaces[LATENT]
        return (
            f"All dimensions: {neighbors}-NN accuracy {latent.knn.value:.2f}"
            f" [{latent.knn.low:.2f}, {latent.knn.high:.2f}], chance"
            f" {max(self.chance, latent.knn_shuffled):.2f}; silhouette {latent.silhouette:.2f}"
            f" (shuffled {latent.silhouette_shuffled:.2f})"
        )


def group_findings(
    grouping: Grouping,
    points: LatentPoints,
    spaces: Mapping[str, Values],
    neighbors: int,
    seed: int,
) -> GroupFindings | None:
    """Measure a grouping in every space; None where fewer than two categories can be tested.

    Args:
        grouping: Categories of the points.
        points: What was drawn.
        spaces: Space to (point, dim).
        neighbors: Neighbors that vote.
        seed: Seed of folds and shuffles.
    """
    use = has_two_episodes(grouping.index, points.episode)
    category, episode = grouping.index[use], points.episode[use]
    categories = len(np.unique(category))
    if categories < 2:
        return None
    found = {
        space: separation(
            values[use], category, episode, neighbors, seed,
            linear=space in _FITTED and values.shape[1] <= LARGEST_FIT,
        )
        for space, values in spaces.items()
    }  # fmt: skip
    return GroupFindings(
        grouping, int(use.sum()), len(np.unique(episode)), categories,
        majority_share(category, episode), found,
    )  # fmt: skip


def position_findings(
    points: LatentPoints, spaces: Mapping[str, Values], seed: int
) -> dict[str, Rate]:
    """Return R^2 of the position in the episode, with no entry where there are too few episodes."""
    if points.episodes < FOLDS:
        return {}
    return {
        space: linear_fit(values, points.position, points.episode, seed)
        for space, values in spaces.items()
        if space in _FITTED
    }


def position_summary(found: Mapping[str, Rate]) -> dict[str, float]:
    """Return R^2 with its interval; those of other spaces carry the space's name."""
    numbers: dict[str, float] = {}
    for space, fit in found.items():
        numbers |= _rate("r2" if space == LATENT else f"{space}_r2", fit)
    return numbers


def position_table(found: Mapping[str, Rate]) -> Table:
    """Return one row per space."""
    rows = [(SPACES[space], _round(fit.value), _interval(fit)) for space, fit in found.items()]
    return Table(("space", "R² of the position", "95 % interval"), tuple(rows))


def _rate(name: str, rate: Rate) -> dict[str, float]:
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}


def _interval(rate: Rate | None) -> str | None:
    return f"{rate.low:.3f} to {rate.high:.3f}" if rate else None


def _round(value: float) -> float:
    return round(value, 3)
