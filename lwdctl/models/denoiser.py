"""Denoisers of a latent: a residual MLP, Diffusion Policy's 1-D U-Net and its transformer.

Each maps (noisy latent (batch, latent), step (batch,), condition (batch, condition)) to
(batch, latent).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lwdctl.models.transformer import TRANSFORMER_SIZES, ConditionalTransformer
from lwdctl.models.unet import UNET_SIZES, ConditionalUnet1d


@dataclass(frozen=True)
class DenoiserSpec:
    """Everything needed to rebuild a denoiser.

    Attributes:
        architecture: `"mlp"`, `"unet"` or `"transformer"`.
        latent_size: Components of the latent.
        condition_size: Components of the condition.
        layout: How the latent enters a U-Net or a transformer: (length, channels), product =
            latent size.
        unet_size: `"xs"` to `"xl"` of the paper's table.
        width: Width of the residual MLP.
        blocks: Residual blocks of the MLP.
        dropout: Dropout inside the blocks of the MLP or the transformer.
        transformer_size: `"xs"` to `"xl"` of the paper's table.
        observation_tokens: Observations at the head of the condition, each a token of its own
            for the transformer.
        shared_condition: Components at the end of the condition that every token holds.
        causal: Whether the transformer's attention is causal: for sequences in time.
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

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DenoiserSpec:
        """Rebuild from what `to_mapping` returned, after a trip through JSON."""
        return cls(**{**values, "layout": tuple(values["layout"])})

    def build(self) -> nn.Module:
        """Make the network with fresh weights."""
        if self.architecture == "mlp":
            return ResidualMlp(self)
        return LatentUnet(self) if self.architecture == "unet" else LatentTransformer(self)


class StepEmbedding(nn.Module):
    """Sinusoidal embedding of the denoising step."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        half = size // 2
        rates = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half))
        self.register_buffer("frequencies", rates, persistent=False)

    def forward(self, step: Tensor) -> Tensor:
        """Embed steps (batch,) as (batch, size)."""
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
    """Residual MLP with FiLM conditioning: the latent as one vector, layout (1, latent)."""

    STEP_SIZE = 64

    def __init__(self, spec: DenoiserSpec) -> None:
        super().__init__()
        # Half the width: FiLM layers would otherwise cost as much as the blocks.
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


class LatentUnet(nn.Module):
    """The U-Net of Diffusion Policy over a latent laid out as (length, channels)."""

    def __init__(self, spec: DenoiserSpec) -> None:
        super().__init__()
        size = UNET_SIZES[spec.unet_size]
        self.layout = spec.layout
        self.embedding = StepEmbedding(size.step_embedding)
        self.network = ConditionalUnet1d(spec.layout[1], spec.condition_size, size)

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction (batch, latent)."""
        length, channels = self.layout
        sequence = latent.view(-1, length, channels).transpose(1, 2)
        output = self.network(sequence, self.embedding(step), condition)
        return output.transpose(1, 2).flatten(1)  # type: ignore[no-any-return]


class LatentTransformer(nn.Module):
    """The transformer of Diffusion Policy over a latent laid out as (length, channels)."""

    def __init__(self, spec: DenoiserSpec) -> None:
        super().__init__()
        size = TRANSFORMER_SIZES[spec.transformer_size]
        self.layout, self.shared = spec.layout, spec.shared_condition
        self.tokens = spec.observation_tokens if spec.condition_size else 0
        own = (spec.condition_size - self.shared) // max(1, self.tokens)
        self.embedding = StepEmbedding(size.step_embedding)
        self.network = ConditionalTransformer(
            *spec.layout,
            self.tokens,
            own + self.shared,
            size,
            spec.dropout,
            causal=spec.causal,
        )

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction (batch, latent)."""
        sequence = latent.view(-1, *self.layout)
        own = condition.shape[1] - self.shared
        tokens = condition.new_zeros(len(condition), 0, 0)
        if self.tokens:
            parts = condition[:, :own].reshape(len(condition), self.tokens, own // self.tokens)
            shared = condition[:, None, own:].expand(-1, self.tokens, -1)
            tokens = torch.cat([parts, shared], dim=2)
        output = self.network(sequence, self.embedding(step), tokens)
        return output.flatten(1)  # type: ignore[no-any-return]
