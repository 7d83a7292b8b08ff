"""Per-component normalization that travels with the model, and noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lwdctl.core.moments import Moments
from lwdctl.models.files import PolicySpec

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
        """Take center and scale (component,), where constant components get the scale 1.

        Scales above 1 stay in any case: dividing by them makes nothing larger.
        """
        constant = scale <= SMALLEST_STD * (1.0 + mean.abs())
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, scale.clamp(min=1.0), scale))

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


def noisy_observations(
    observations: Tensor,
    scale: Tensor,
    spec: PolicySpec,
    size: float,
    generator: torch.Generator,
) -> Tensor:
    """Add noise to what a policy sees (batch, time, obs), without moving its action's target.

    Each snippet draws a strength u in [0, 1]; the noise is `size * u * (a + b)` with a drawn
    per step and b per snippet, both standard normal: its standard deviation is at most `size`
    times the square root of 2. With relative targets only the components that they are relative to
    get noise (the robot is off its path, the scene is as recorded), so that the policy learns to
    return to the path.

    Args:
        observations: Environment units.
        scale: (obs,), scale of the normalized observations.
        spec: What actions are relative to.
        size: Size of the noise, in units of normalized observations.
        generator: Source of the noise, of the observations' device.
    """
    noise = normal_like(observations, generator) + normal_like(observations[:, :1], generator)
    strength = torch.rand(len(noise), 1, 1, generator=generator, device=noise.device)
    change = size * strength * scale * noise
    start = spec.reference_start
    if start is None:
        return observations + change
    moved = torch.zeros_like(scale)
    moved[start : start + spec.action_size] = 1.0
    return observations + change * moved
