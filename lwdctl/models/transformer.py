"""The time-series diffusion transformer of Diffusion Policy (Chi et al. 2023), reimplemented.

It is an encoder-decoder: the sequence attends to itself and to a memory of condition tokens, the
timestep first, then one token per observation. The memory is encoded by a position-wise MLP;
decoder layers normalize first and use GELU; positions are learned; weights are initialized with
standard deviation 0.02.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwdctl.models.denoiser import Denoiser, DenoiserSpec, StepEmbedding, in_parts

INITIAL_STD = 0.02


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
        causal: Whether step `t` attends only to steps and observations up to `t`, as in Diffusion
            Policy, where chunks begin at the oldest observation.
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
        # The published network embeds the timestep with the width of its layers.
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
        # The first memory token is the timestep, which every step attends to.
        memory_mask = torch.arange(1 + tokens) - 1 > steps if causal else None
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("memory_mask", memory_mask, persistent=False)
        self.apply(_initialize)
        nn.init.normal_(self.position, std=INITIAL_STD)
        nn.init.normal_(self.memory_position, std=INITIAL_STD)

    def forward(self, sequence: Tensor, step: Tensor, observations: Tensor) -> Tensor:
        """Denoise a sequence (batch, time, channel).

        The step embedding is (batch, step_embedding), the observations (batch, token, component),
        oldest first.
        """
        return self.denoise(sequence, self.memory(step, observations))

    def memory(self, step: Tensor, observations: Tensor, rows: int | None = None) -> Tensor:
        """Return the encoded condition tokens (batch, 1 + token, width).

        With `rows`, the numbers are those of batches of that many rows; see `in_parts`.
        """
        tokens = in_parts(self.step, step, rows).unsqueeze(1)
        if self.observe is not None:
            tokens = torch.cat([tokens, in_parts(self.observe, observations, rows)], dim=1)
        return in_parts(self.remember, tokens + self.memory_position, rows)

    def denoise(self, sequence: Tensor, memory: Tensor) -> Tensor:
        """Denoise a sequence (batch, time, channel) with what `memory` returned."""
        hidden = self.decoder(
            self.enter(sequence) + self.position,
            memory,
            tgt_mask=self.mask,
            memory_mask=self.memory_mask,
            tgt_is_causal=self.mask is not None,  # otherwise torch compares the mask on the host
        )
        return self.leave(hidden)  # type: ignore[no-any-return]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INITIAL_STD)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=INITIAL_STD)
        nn.init.zeros_(module.in_proj_bias)


class LatentTransformer(Denoiser):
    """The transformer of Diffusion Policy over a latent laid out as (length, channels)."""

    uses_layout = True

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

    def context(
        self, step: Tensor, condition: Tensor, rows: int | None = None
    ) -> tuple[Tensor, ...]:
        """Return the memory (batch, 1 + token, width) that the sequence attends to."""
        own = condition.shape[1] - self.shared
        tokens = condition.new_zeros(len(condition), 0, 0)
        if self.tokens:
            parts = condition[:, :own].reshape(len(condition), self.tokens, own // self.tokens)
            shared = condition[:, None, own:].expand(-1, self.tokens, -1)
            tokens = torch.cat([parts, shared], dim=2)
        return (self.network.memory(self.embedding(step), tokens, rows),)

    def predict(self, latent: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Return the prediction (batch, latent)."""
        (memory,) = context
        return self.network.denoise(latent.view(-1, *self.layout), memory).flatten(1)
