"""Two-dimensional views of latents, and how many dimensions the latents fill."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lwdctl.core.seeding import derive_seed

Values = npt.NDArray[np.float64]

SHOWN = 4
"""Principal components that pictures show."""
VARIANCE_SHARE = 0.95


@dataclass(frozen=True)
class Components:
    """Principal components of points.

    Attributes:
        coordinates: (point, component), the first `SHOWN` components or fewer.
        shares: (component,) share of the variance, of all components.
        effective_dimension: Participation ratio of the covariance's eigenvalues.
        needed: Components for `VARIANCE_SHARE` of the variance.
    """

    coordinates: Values
    shares: Values
    effective_dimension: float
    needed: int


def principal_components(points: Values) -> Components:
    """Project points on their principal components.

    The participation ratio, (sum of eigenvalues)^2 / (sum of their squares), is d where d
    dimensions vary alike and 1 where all lies on a line.

    Source of the ratio: P. Gao and others, A theory of multineuronal dimensionality, dynamics
    and measurement, bioRxiv 214262 (2017).

    Args:
        points: (point, dim), at least two different ones.
    """
    from sklearn.decomposition import PCA

    fitted = PCA(svd_solver="full").fit(points)
    variance = fitted.explained_variance_
    shares: Values = variance / variance.sum()
    enough = np.cumsum(shares) >= VARIANCE_SHARE
    return Components(
        coordinates=fitted.transform(points)[:, :SHOWN],
        shares=shares,
        effective_dimension=float(1.0 / (shares**2).sum()),
        needed=int(np.argmax(enough)) + 1 if enough.any() else len(shares),
    )


def usable_perplexity(wanted: float, points: int) -> float:
    """Return the perplexity, at most a third of the other points."""
    return float(min(wanted, max(1.0, (points - 1) / 3)))


def tsne(points: Values, perplexity: float, seed: int) -> Values:
    """Embed points (point, dim) in the plane: (point, 2).

    Distances between far clusters and the sizes of clusters mean nothing in the result.

    Source: L. van der Maaten and G. Hinton, Visualizing data using t-SNE, JMLR 9 (2008);
    scikit-learn's Barnes-Hut approximation, begun from the principal components.

    Args:
        points: At least four points.
        perplexity: Effective number of neighbors, below the number of points.
        seed: Seed of what is random in it.
    """
    from sklearn.manifold import TSNE

    state = derive_seed("t-SNE", seed) % 2**32
    start = "pca" if points.shape[1] >= 2 else "random"
    embedded: Values = (
        TSNE(perplexity=perplexity, init=start, random_state=state)
        .fit_transform(points)
        .astype(np.float64)
    )
    return embedded
