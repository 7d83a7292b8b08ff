"""The snippet encoder: a flattened snippet to the posterior over latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SnippetEncoder(nn.Module):
    """MLP with three hidden layers and two linear heads (paper section 4).

    Args:
        length: Snippet length in steps.
        step_size: Components per step (observation and action together).
        latent_size: Components of the latent.
        width: Width of the hidden layers.
        initial_log_variance: Bias of the log-variance head at the start. A small initial
            posterior deviation lets reconstruction start without noise in its way.
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
            mask: (batch, time), 1 for real steps; padded ones are hidden from the network.

        Returns:
            Mean (batch, latent) and log-variance (batch, latent), the latter in [-20, 4].
        """
        hidden = self.trunk((steps * mask.unsqueeze(-1)).flatten(1))
        return self.mean(hidden), torch.clamp(self.log_variance(hidden), -20.0, 4.0)
