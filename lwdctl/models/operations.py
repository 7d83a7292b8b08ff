"""How many operations a network costs; one multiply-add counts as two.

Source: torch's flop counter. It does not see into fused attention, so attention is counted
in its plain form; tests compare the counts with the analytic ones.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae


def denoiser_operations(model: LatentDiffusion) -> int:
    """Count one denoiser call for one latent."""
    size = model.spec.denoiser
    device = model.latent.mean.device
    latent = torch.zeros(1, size.latent_size, device=device)
    condition = torch.zeros(1, size.condition_size, device=device)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
        ):
            model.denoiser(latent, torch.zeros(1, device=device), condition)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def policy_operations(model: PolicyVae) -> dict[str, int]:
    """Count decoding one latent, and one step of the generated policy."""
    return {
        "decoder_operations": model.decoder.operations,
        "policy_operations": model.spec.policy_shape.operations,
    }


def matrix_operations(network: nn.Module) -> int:
    """Return the cost of a plain MLP on one input: two operations per weight."""
    return sum(2 * p.numel() for p in network.parameters() if p.dim() > 1)
