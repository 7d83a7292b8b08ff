"""Per-component normalization that travels with the model, and noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lwdctl.artifacts.snippets import Moments

SMALLEST_STD = 1e-4
"""Components that vary less (relative to their size) count as constant: scaled by 1, not 1/0."""


class Normalizer(nn.Module):
    """Maps components to `(x - mean) / scale` and back.

    Args:
        size: Number of components. `mean` is initially 0 and `scale` 1.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def fit(self, mean: Tensor, scale: Tensor) -> None:
        """Take center and scale (component,), where constant components get the scale 1."""
        constant = scale <= SMALLEST_STD * (1.0 + mean.abs())
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, torch.ones_like(scale), scale))

    def standardize(self, moments: Moments) -> None:
        """Map components to zero mean and unit standard deviation."""
        mean, std = (
            torch.as_tensor(value, dtype=torch.float32)
            for value in (moments.mean, moments.deviation)
        )
        self.fit(mean, std)

    def fit_range(self, moments: Moments, repeats: int) -> None:
        """Map components from their range to [-1, 1], for `repeats` vectors side by side."""
        low, high = (
            torch.as_tensor(side, dtype=torch.float32).repeat(repeats)
            for side in (moments.minimum, moments.maximum)
        )
        self.fit((low + high) / 2.0, (high - low) / 2.0)

    def repeat(self, other: Normalizer, count: int) -> None:
        """Take the values of `other`, repeated for `count` vectors side by side."""
        self.mean.copy_(other.mean.repeat(count))
        self.scale.copy_(other.scale.repeat(count))

    def normalize(self, values: Tensor) -> Tensor:
        """Map (..., component) from the data's units to normalized ones."""
        return (values - self.mean) / self.scale

    def restore(self, values: Tensor) -> Tensor:
        """Undo `normalize`."""
        return values * self.scale + self.mean


def join_condition(part: Tensor, *indices: tuple[Tensor, int]) -> Tensor:
    """Append indices (batch,) as one-hot vectors, each of its size, to (batch, component)."""
    hot = [nn.functional.one_hot(index, size).to(part.dtype) for index, size in indices if size]
    return torch.cat([part, *hot], dim=1)


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise in the shape and on the device of `like`."""
    return torch.randn(like.shape, generator=generator, device=like.device)
