"""How many dimensions latents fill, how each one is used, and two-dimensional projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from lwdctl.core.seeding import derive_seed

Values = npt.NDArray[np.float64]

SHOWN = 4
"""Principal components that figures show."""
VARIANCE_FRACTION = 0.95


@dataclass(frozen=True)
class Components:
    """Principal components of points.

    Attributes:
        coordinates: (point, component), the first `SHOWN` components or fewer.
        fractions: (component,) fraction of the variance, of all components.
        effective_dimension: Participation ratio of the covariance's eigenvalues.
        needed: Number of components for `VARIANCE_FRACTION` of the variance.
    """

    coordinates: Values
    fractions: Values
    effective_dimension: float
    needed: int


def principal_components(points: Values) -> Components:
    """Project points on their principal components.

    The participation ratio, (sum of eigenvalues)^2 / (sum of their squares), is d where d
    dimensions have equal variance and 1 where all points lie on a line.

    Source of the ratio: P. Gao and others, A theory of multineuronal dimensionality, dynamics
    and measurement, bioRxiv 214262 (2017).

    Args:
        points: (point, dim), at least two different ones.
    """
    fitted = PCA(svd_solver="full").fit(points)
    variance = fitted.explained_variance_
    fractions: Values = variance / variance.sum()
    enough = np.cumsum(fractions) >= VARIANCE_FRACTION
    return Components(
        coordinates=fitted.transform(points)[:, :SHOWN],
        fractions=fractions,
        effective_dimension=float(1.0 / (fractions**2).sum()),
        needed=int(np.argmax(enough)) + 1 if enough.any() else len(fractions),
    )


def usable_perplexity(wanted: float, points: int) -> float:
    """Return the perplexity, limited to a third of the other points."""
    return float(min(wanted, max(1.0, (points - 1) / 3)))


def tsne(points: Values, perplexity: float, seed: int) -> Values:
    """Embed points (point, dim) in the plane: (point, 2).

    Distances between distant clusters and the sizes of clusters have no meaning in the result.

    Source: L. van der Maaten and G. Hinton, Visualizing data using t-SNE, JMLR 9 (2008);
    scikit-learn's Barnes-Hut approximation, initialized with the principal components.

    Args:
        points: At least four points.
        perplexity: Effective number of neighbors, below the number of points.
        seed: Seed of the optimization.
    """
    state = derive_seed("t-SNE", seed) % 2**32
    initial = "pca" if points.shape[1] >= 2 else "random"
    embedded = TSNE(perplexity=perplexity, init=initial, random_state=state).fit_transform(points)
    values: Values = embedded.astype(np.float64)
    return values


@dataclass(frozen=True)
class DimensionUse:
    """How each latent dimension is used, over snippets.

    Attributes:
        mean_std: (latent,) standard deviation of the posterior mean over snippets.
        posterior_std: (latent,) posterior standard deviation, mean over snippets; the prior's is 1.
        kl: (latent,) mean KL divergence of the posterior from the prior, in nats.
        active: (latent,) bool, whether the posterior mean varies with the snippet.
        snippets: Number of snippets.
    """

    mean_std: Values
    posterior_std: Values
    kl: Values
    active: npt.NDArray[np.bool_]
    snippets: int

    def summary(self) -> dict[str, Any]:
        """Return the summary numbers."""
        return {
            "active_units": int(self.active.sum()),
            "kl": float(self.kl.sum()),
            "std_of_posterior_mean": float(self.mean_std.mean()),
            "posterior_std": float(self.posterior_std.mean()),
        }


def dimension_use(
    mean: npt.NDArray[Any], log_variance: npt.NDArray[Any], active_variance: float
) -> DimensionUse:
    """Measure how every latent dimension is used.

    Args:
        mean: (snippet, latent) posterior means.
        log_variance: (snippet, latent) logarithms of the posterior variances.
        active_variance: A dimension counts as active when its mean's variance is larger.
    """
    mean_std = mean.std(axis=0).astype(np.float64)
    posterior_std = np.exp(0.5 * log_variance).mean(axis=0).astype(np.float64)
    kl = gaussian_kl(mean, log_variance).mean(axis=0)
    return DimensionUse(mean_std, posterior_std, kl, mean_std**2 > active_variance, len(mean))


def gaussian_kl(mean: npt.NDArray[Any], log_variance: npt.NDArray[Any]) -> Values:
    """Return the KL divergence of N(mean, variance) from N(0, 1) per component, in nats.

    Half of `sigma^2 + mu^2 - 1 - log sigma^2`; the VAE's loss leaves the factor to `beta_kl`.

    Source: Kingma and Welling, Auto-encoding variational Bayes (2014), appendix B.
    """
    center, log_var = mean.astype(np.float64), log_variance.astype(np.float64)
    kl: Values = 0.5 * (np.exp(log_var) + center**2 - 1.0 - log_var)
    return kl
