"""How much of a latent space is used: spread, posterior deviation and KL of every dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LatentHealth:
    """One number per latent dimension, over snippets.

    Attributes:
        spread: (latent,) standard deviation of the posterior mean.
        posterior: (latent,) mean posterior deviation; the prior's is 1.
        kl: (latent,) mean divergence of the posterior from the prior, in nats.
        active: (latent,) bool, whether the dimension varies with the snippet.
        snippets: How many snippets were averaged.
    """

    spread: Values
    posterior: Values
    kl: Values
    active: npt.NDArray[np.bool_]
    snippets: int

    def summary(self) -> dict[str, Any]:
        """Return the headline numbers."""
        return {
            "active_units": int(self.active.sum()),
            "kl": float(self.kl.sum()),
            "mean_spread": float(self.spread.mean()),
            "mean_posterior_deviation": float(self.posterior.mean()),
        }


def latent_health(
    mean: npt.NDArray[Any], log_variance: npt.NDArray[Any], active_variance: float
) -> LatentHealth:
    """Measure every latent dimension.

    Args:
        mean: (snippet, latent) posterior means.
        log_variance: (snippet, latent) logarithms of the posterior variances.
        active_variance: A dimension counts as active when its mean varies by more.
    """
    spread = mean.std(axis=0).astype(np.float64)
    posterior = np.exp(0.5 * log_variance).mean(axis=0).astype(np.float64)
    kl = gaussian_kl(mean, log_variance).mean(axis=0)
    return LatentHealth(spread, posterior, kl, spread**2 > active_variance, len(mean))


def gaussian_kl(mean: npt.NDArray[Any], log_variance: npt.NDArray[Any]) -> Values:
    """Return the divergence of N(mean, variance) from N(0, 1) per component, in nats.

    Half of `sigma^2 + mu^2 - 1 - log sigma^2`. The VAE's loss leaves the half to `beta_kl`.

    Source: Kingma and Welling, Auto-encoding variational Bayes (2014), appendix B.
    """
    center, spread = mean.astype(np.float64), log_variance.astype(np.float64)
    kl: Values = 0.5 * (np.exp(spread) + center**2 - 1.0 - spread)
    return kl
