"""Random numbers that are the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise in the shape of `like`, and put it where `like` is.

    The draw is made on the generator's device (the CPU), so that CPU and GPU runs use the
    same numbers.
    """
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)
