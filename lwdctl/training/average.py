"""Exponential moving average of a model's weights, on torch's own averaged model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float, power: float = 0.0) -> AveragedModel:
    """Wrap a copy of `model` that follows it with the given decay.

    The decay warms up, so that early weights are soon forgotten and a run ended early still
    has a useful average: as (1 + n) / (10 + n), or as Diffusion Policy has it, 1 - n ** -power
    (their update 1 + n, inv_gamma 1). Buffers are copied as they are.

    Args:
        model: The model in training.
        decay: Largest decay, in [0, 1).
        power: Exponent of the warm-up, 0 for the first kind.
    """

    def follow(average: Any, current: Any, count: Tensor | int) -> None:
        made = float(count)
        warm = 1.0 - made**-power if power else (1.0 + made) / (10.0 + made)
        weight = 1.0 - min(decay, warm)
        torch._foreach_lerp_(list(average), list(current), weight)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=False)
