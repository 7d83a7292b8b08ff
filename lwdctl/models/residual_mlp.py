"""A residual MLP as denoiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lwdctl.models.denoiser import DenoiserSpec, StepEmbedding


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
