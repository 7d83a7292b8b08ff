"""Per-component normalizer normalization that travels with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALLEST_DEVIATION = 1e-4
"""Components that vary less (relative to their size) are constant: scaled by 1, not 1/0."""


class Normalizer(nn.Module):
    """Standardize components: `(x - mean) / scale`.

    Args:
        size: Number of components. `mean` starts at 0 and `scale` at 1.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Take mean and standard deviation (component,), guarding constant components."""
        constant = deviation <= SMALLEST_DEVIATION * (1.0 + mean.abs())
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, torch.ones_like(deviation), deviation))

    def normalize(self, values: Tensor) -> Tensor:
        """Map (..., component) to zero mean and unit deviation."""
        return (values - self.mean) / self.scale

    def restore(self, values: Tensor) -> Tensor:
        """Undo `normalize`."""
        return values * self.scale + self.mean
