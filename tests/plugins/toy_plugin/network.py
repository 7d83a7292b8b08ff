"""A denoiser of two layers."""

import torch
from torch import nn


class TwoLayers(nn.Module):
    uses_layout = False

    def __init__(self, spec):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(spec.latent_size + 1 + spec.condition_size, 32),
            nn.ReLU(),
            nn.Linear(32, spec.latent_size),
        )

    def forward(self, latent, step, condition):
        time = step.to(latent.dtype).reshape(-1, 1).expand(len(latent), 1) / 100.0
        return self.layers(torch.cat([latent, time, condition], dim=1))
