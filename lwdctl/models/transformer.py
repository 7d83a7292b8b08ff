"""The time-series diffusion transformer of Diffusion Policy (Chi et al. 2023), written anew.

An encoder-decoder: the sequence attends to itself and to a memory of condition tokens, first
the denoising step, then one token per observation. Position-wise MLP for the memory, layers
that normalize first, GELU, learned positions; weights start as normal noise of deviation 0.02.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

INITIAL_DEVIATION = 0.02


@dataclass(frozen=True)
class TransformerSize:
    """One row of the paper's table: step-embedding size, width, layers and heads."""

    step_embedding: int
    width: int
    layers: int
    heads: int


TRANSFORMER_SIZES = {
    "xs": TransformerSize(64, 64, 3, 2),
    "s": TransformerSize(128, 128, 4, 4),
    "m": TransformerSize(256, 256, 6, 8),
    "l": TransformerSize(256, 512, 8, 8),
    "xl": TransformerSize(512, 768, 12, 12),
}


class ConditionalTransformer(nn.Module):
    """Transformer over a sequence, conditioned on a step embedding and observation tokens.

    Args:
        length: Steps of the sequence.
        channels: Channels of the sequence.
        tokens: Observation tokens, 0 for none.
        token_size: Components of an observation token.
        size: Row of the size table.
        dropout: Dropout in the decoder's layers.
        causal: Whether step `t` sees the steps and the observations up to `t` alone, as the
            authors have it for action chunks that begin at the oldest observation.
    """

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(
        self,
        length: int,
        channels: int,
        tokens: int,
        token_size: int,
        size: TransformerSize,
        dropout: float,
        *,
        causal: bool,
    ) -> None:
        super().__init__()
        width = size.width
        # The published network embeds the step in the width itself.
        same = size.step_embedding == width
        self.step = nn.Identity() if same else nn.Linear(size.step_embedding, width)
        self.observe = nn.Linear(token_size, width) if tokens else None
        self.memory_position = nn.Parameter(torch.empty(1 + tokens, width))
        self.remember = nn.Sequential(
            nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        self.enter = nn.Linear(channels, width)
        self.position = nn.Parameter(torch.empty(length, width))
        layer = nn.TransformerDecoderLayer(
            width, size.heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, size.layers, nn.LayerNorm(width))
        self.leave = nn.Linear(width, channels)
        steps = torch.arange(length).unsqueeze(1)
        mask = torch.arange(length) > steps if causal else None
        # The first memory token is the denoising step, which every step sees.
        memory_mask = torch.arange(1 + tokens) - 1 > steps if causal else None
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("memory_mask", memory_mask, persistent=False)
        self.apply(_initialize)
        nn.init.normal_(self.position, std=INITIAL_DEVIATION)
        nn.init.normal_(self.memory_position, std=INITIAL_DEVIATION)

    def forward(self, sequence: Tensor, step: Tensor, observations: Tensor) -> Tensor:
        """Denoise.

        Args:
            sequence: (batch, time, channel).
            step: Step embedding (batch, step_embedding).
            observations: (batch, token, component), oldest first.

        Returns:
            (batch, time, channel).
        """
        tokens = self.step(step).unsqueeze(1)
        if self.observe is not None:
            tokens = torch.cat([tokens, self.observe(observations)], dim=1)
        hidden = self.decoder(
            self.enter(sequence) + self.position,
            self.remember(tokens + self.memory_position),
            tgt_mask=self.mask,
            memory_mask=self.memory_mask,
        )
        return self.leave(hidden)  # type: ignore[no-any-return]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=INITIAL_DEVIATION)
        nn.init.zeros_(module.in_proj_bias)
