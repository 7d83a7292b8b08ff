"""FLOPs of networks, counted by torch; one multiply-add counts as two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lwdctl.models.diffusion import LatentDiffusion


def count_flops(run: Callable[[], object]) -> int:
    """Count the FLOPs of what `run` computes.

    Torch cannot count fused attention, so attention runs in its plain form here.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def denoiser_flops(model: LatentDiffusion) -> int:
    """Count the FLOPs of one denoiser call for one latent."""
    size, device = model.spec.denoiser, model.latent.mean.device
    latent = torch.zeros(1, size.latent_size, device=device)
    condition = torch.zeros(1, size.condition_size, device=device)
    timestep = torch.zeros(1, dtype=torch.long, device=device)
    return count_flops(lambda: model.denoiser(latent, timestep, condition))


def matmul_flops(network: nn.Module) -> int:
    """Return the FLOPs of a plain MLP on one input: two per weight."""
    return sum(2 * p.numel() for p in network.parameters() if p.dim() > 1)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trained weights."""
    return sum(parameter.numel() for parameter in network.parameters())
