"""The specification that every denoiser is built from, their base class, and the residual MLP.

A denoiser is an `nn.Module` that is built from a `DenoiserSpec` and maps (noisy latent
(batch, latent), timestep (batch,), condition (batch, condition)) to a prediction
(batch, latent). Its class attribute `uses_layout` tells whether it sees the latent as a sequence.
One that extends `Denoiser` is sampled faster. One with a method `training_loss`, which maps
normalized clean latents (batch, latent), conditions (batch, condition) and standard normal noise
(batch, latent) to a scalar, is trained by it in the place of its predictions' error: a normalizing
flow by its likelihood, for example. What its outputs mean in sampling is still what `--prediction`
says: clean latents are `sample`, the default of `train-diffusion` and `ldp`, not of `dp`. As it
sees no padding, `dp` takes it with `--padding counted`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from lwdctl.configs import DenoiserSize
from lwdctl.models import DENOISERS
from lwdctl.models.files import Count, Size, Spec

LONGEST_LAYOUT = 20_000
"""Steps of a layout: the masks of a transformer take their square in bytes."""
MOST_ROWS = 512
"""Rows whose contexts are computed at once: more would take memory and save no time."""


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
    latent_size: Size
    condition_size: Count
    layout: tuple[Size, Size]
    unet_size: DenoiserSize
    width: Annotated[int, Meta(ge=2, le=10**6)]
    blocks: Annotated[int, Meta(ge=1, le=1000)]
    dropout: Annotated[float, Meta(ge=0, lt=1)]
    transformer_size: DenoiserSize = "m"
    observation_tokens: Annotated[int, Meta(ge=1, le=10_000)] = 1
    shared_condition: Count = 0
    causal: bool = False

    def check(self) -> None:
        """Check that layout and tokens fit the sizes."""
        if self.architecture in DENOISERS.rows and DENOISERS.load(self.architecture).uses_layout:
            length, channels = self.layout
            if length * channels != self.latent_size:
                raise ValueError(f"layout: {length}x{channels} is not the latent's size")
            if length > LONGEST_LAYOUT:
                raise ValueError(f"layout: more than {LONGEST_LAYOUT} steps")
        own = self.condition_size - self.shared_condition
        if own < 0 or own % self.observation_tokens:
            raise ValueError("shared_condition: it does not leave whole tokens of the condition")

    def build(self) -> nn.Module:
        """Return the network with fresh weights.

        Raises:
            ConfigError: An unknown architecture, or sizes that do not fit it.
        """
        network: nn.Module = DENOISERS.load(self.architecture)(self)
        return network


class Denoiser(nn.Module):
    """A denoiser that tells apart what depends on the noisy latent and what does not.

    All that depends on timestep and condition alone is its context, a tuple of tensors
    (batch, ...), which sampling computes for many timesteps at once.
    """

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction (batch, latent)."""
        return self.predict(latent, self.context(step, condition))

    @abstractmethod
    def context(
        self, step: Tensor, condition: Tensor, rows: int | None = None
    ) -> tuple[Tensor, ...]:
        """Return the context of timesteps (batch,) and conditions (batch, condition).

        With `rows`, the numbers are those of batches of that many rows; see `in_parts`.
        """

    @abstractmethod
    def predict(self, latent: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Return the prediction (batch, latent)."""

    def contexts(self, timesteps: Tensor, condition: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Return the context of every timestep (timestep,), each for all conditions.

        With one thread of a CPU the numbers are those of `context`, bit for bit.
        """
        rows = len(condition)
        alone = rows if condition.device.type == "cpu" else None
        for block in torch.split(timesteps, max(1, MOST_ROWS // rows)):
            step = block.unsqueeze(1).expand(-1, rows).reshape(-1)
            repeated = condition.repeat(len(block), 1)
            parts = self.context(step, repeated, alone)
            yield from zip(*(part.view(-1, rows, *part.shape[1:]) for part in parts), strict=True)


def in_parts(module: nn.Module, values: Tensor, rows: int | None) -> Tensor:
    """Return `module(values)`, computed for `rows` rows at a time (None for all at once).

    The rows of a matrix product depend on their number in the last digits. One module after
    the other for all parts keeps its weights in the cache.
    """
    if rows is None:
        return module(values)  # type: ignore[no-any-return]
    return torch.cat([module(part) for part in torch.split(values, rows)])


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
    """Residual block whose hidden activations are scaled and shifted by `film` of the context."""

    def __init__(self, width: int, context: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, width)
        self.film = nn.Linear(context, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, hidden: Tensor, film: Tensor) -> Tensor:
        """Return (batch, width); the scales and shifts are (batch, 2 * width)."""
        scale, shift = film.chunk(2, dim=1)
        inner = self.enter(self.norm(hidden)) * (1.0 + scale) + shift
        change: Tensor = self.leave(self.dropout(nn.functional.silu(inner)))
        return hidden + change


class ResidualMlp(Denoiser):
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

    def context(
        self, step: Tensor, condition: Tensor, rows: int | None = None
    ) -> tuple[Tensor, ...]:
        """Return scales and shifts (batch, 2 * width) of every block."""
        joined = torch.cat([self.embedding(step), condition], dim=1)
        context = in_parts(self.condition, joined, rows)
        films = (block.get_submodule("film") for block in self.blocks)
        return tuple(in_parts(film, context, rows) for film in films)

    def predict(self, latent: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Return the prediction (batch, latent)."""
        hidden = self.enter(latent)
        for block, film in zip(self.blocks, context, strict=True):
            hidden = block(hidden, film)
        return self.leave(hidden)  # type: ignore[no-any-return]
