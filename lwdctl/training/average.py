"""Exponential moving average of a model's weights, on torch's own averaged model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Wrap a copy of `model` that follows it with the given decay.

    The decay warms up as (1 + n) / (10 + n), so that early weights are soon forgotten
    and a run ended early still has a useful average. Buffers are copied as they are.

    Args:
        model: The model in training.
        decay: Largest decay, in [0, 1).
    """

    def follow(average: Any, current: Any, count: Tensor | int) -> None:
        made = float(count)
        weight = 1.0 - min(decay, (1.0 + made) / (10.0 + made))
        torch._foreach_lerp_(list(average), list(current), weight)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=False)
