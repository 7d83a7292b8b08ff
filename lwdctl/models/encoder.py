"""The snippet encoder, and the loss of every VAE whose posterior it gives (paper section 3.2).

The loss that is minimized is `reconstruction + beta_kl * kl`. The reductions are part of its
definition, because `beta_kl` means nothing without them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lwdctl.models.noise import normal_like

REDUCTION = (
    "reconstruction: mean over valid steps of the sum over action components;"
    " kl: sum over latent components of sigma^2 + mu^2 - 1 - log sigma^2 (twice the"
    " divergence, as the paper has it); both averaged over the batch"
)


class SnippetEncoder(nn.Module):
    """MLP from a flattened snippet to the posterior over latents: three hidden layers, two heads.

    Args:
        length: Snippet length in steps.
        step_size: Components per step (observation and action together).
        latent_size: Components of the latent.
        width: Width of the hidden layers.
        initial_log_variance: Initial bias of the log-variance head. With a small posterior
            variance, reconstruction is learned almost without noise at first.
    """

    def __init__(
        self,
        length: int,
        step_size: int,
        latent_size: int = 256,
        width: int = 512,
        initial_log_variance: float = -6.0,
    ) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(length * step_size, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.mean = nn.Linear(width, latent_size)
        self.log_variance = nn.Linear(width, latent_size)
        nn.init.normal_(self.log_variance.weight, std=1e-3)
        nn.init.constant_(self.log_variance.bias, initial_log_variance)

    def forward(self, steps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode snippets.

        Args:
            steps: (batch, time, obs + action), normalized.
            mask: (batch, time), 1 for real steps; padded steps are hidden from the network.

        Returns:
            Mean (batch, latent) and log-variance (batch, latent), the latter in [-20, 4].
        """
        hidden = self.trunk((steps * mask.unsqueeze(-1)).flatten(1))
        return self.mean(hidden), torch.clamp(self.log_variance(hidden), -20.0, 4.0)


def sample_posterior(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a latent (batch, latent) from each Gaussian posterior, differentiably."""
    return mean + torch.exp(0.5 * log_variance) * normal_like(mean, generator)


def vae_terms(
    predicted: Tensor, target: Tensor, mask: Tensor, mean: Tensor, log_variance: Tensor
) -> dict[str, Tensor]:
    """Return both terms of the VAE loss, unweighted scalars.

    Args:
        predicted: Normalized actions of the decoded policy or chunk (batch, time, action).
        target: Normalized actions of the demonstration (batch, time, action).
        mask: (batch, time), 1 for real steps.
        mean: Posterior mean (batch, latent).
        log_variance: Logarithm of the posterior variance (batch, latent).

    Returns:
        `reconstruction`: the squared error, summed over action components, averaged over valid
        steps and over the batch. `kl`: sigma^2 + mu^2 - 1 - log sigma^2 (twice the divergence, as
        the paper writes it), summed over latent components and averaged over the batch.
    """
    squared = (predicted - target).square().sum(-1) * mask
    error = squared.sum(1) / mask.sum(1).clamp(min=1.0)
    kl = torch.sum(log_variance.exp() + mean.square() - 1.0 - log_variance, dim=1)
    return {"reconstruction": error.mean(), "kl": kl.mean()}
