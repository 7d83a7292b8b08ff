"""The specification that every denoiser is built from, and the residual MLP.

A denoiser is an `nn.Module` that is built from a `DenoiserSpec` and maps (noisy latent
(batch, latent), timestep (batch,), condition (batch, condition)) to a prediction
(batch, latent). Its class attribute `uses_layout` tells whether it sees the latent as a sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwdctl.models import DENOISERS
from lwdctl.models.files import Spec


@dataclass(frozen=True)
class DenoiserSpec(Spec):
    """What is needed to rebuild a denoiser.

    Attributes:
        architecture: Name of a row of `DENOISERS`, or `"custom"` for a module that the caller
            brought.
        latent_size: Components of the latent.
        condition_size: Components of the condition.
        layout: How the latent enters a U-Net or a transformer: (length, channels), product =
            latent size.
        unet_size: `"xs"` to `"xl"` of the paper's table.
        width: Width of the residual MLP.
        blocks: Residual blocks of the MLP.
        dropout: Dropout inside the blocks of the MLP or the transformer.
        transformer_size: `"xs"` to `"xl"` of the paper's table.
        observation_tokens: Observations at the beginning of the condition, each of which is a
            token for the transformer.
        shared_condition: Components at the end of the condition that are part of every token.
        causal: Whether the transformer's attention is causal, for sequences in time.
    """

    architecture: str
    latent_size: int
    condition_size: int
    layout: tuple[int, int]
    unet_size: str
    width: int
    blocks: int
    dropout: float
    transformer_size: str = "m"
    observation_tokens: int = 1
    shared_condition: int = 0
    causal: bool = False

    def build(self) -> nn.Module:
        """Return the network with fresh weights.

        Raises:
            ConfigError: An unknown architecture, or sizes that do not fit it.
        """
        network: nn.Module = DENOISERS.load(self.architecture)(self)
        return network


class StepEmbedding(nn.Module):
    """Sinusoidal embedding of the timestep."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        half = size // 2
        rates = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half))
        self.register_buffer("frequencies", rates, persistent=False)

    def forward(self, step: Tensor) -> Tensor:
        """Embed timesteps (batch,) as (batch, size)."""
        angles = step.to(self.frequencies.dtype).unsqueeze(1) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FilmBlock(nn.Module):
    """Residual block whose hidden activations are scaled and shifted by the condition."""

    def __init__(self, width: int, context: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, width)
        self.film = nn.Linear(context, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """Return (batch, width)."""
        scale, shift = self.film(condition).chunk(2, dim=1)
        inner = self.enter(self.norm(hidden)) * (1.0 + scale) + shift
        change: Tensor = self.leave(self.dropout(nn.functional.silu(inner)))
        return hidden + change


class ResidualMlp(nn.Module):
    """Residual MLP with FiLM conditioning; it sees the latent as one vector."""

    STEP_SIZE = 64
    uses_layout = False

    def __init__(self, spec: DenoiserSpec) -> None:
        super().__init__()
        # With the full width the FiLM layers would cost as much as the blocks.
        context = spec.width // 2
        self.embedding = StepEmbedding(self.STEP_SIZE)
        self.condition = nn.Sequential(
            nn.Linear(self.STEP_SIZE + spec.condition_size, spec.width),
            nn.SiLU(),
            nn.Linear(spec.width, context),
            nn.SiLU(),
        )
        self.enter = nn.Linear(spec.latent_size, spec.width)
        self.blocks = nn.ModuleList(
            FilmBlock(spec.width, context, spec.dropout) for _ in range(spec.blocks)
        )
        self.leave = nn.Linear(spec.width, spec.latent_size)

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction (batch, latent)."""
        context = self.condition(torch.cat([self.embedding(step), condition], dim=1))
        hidden = self.enter(latent)
        for block in self.blocks:
            hidden = block(hidden, context)
        return self.leave(hidden)  # type: ignore[no-any-return]
