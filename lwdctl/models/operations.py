"""How many operations a network costs; one multiply-add counts as two.

Source: torch's flop counter. Its fast paths hide some layers, so tests compare the counts
with the analytic ones.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae


def denoiser_operations(model: LatentDiffusion) -> int:
    """Count one denoiser call for one latent."""
    size = model.spec.denoiser
    device = model.latent.mean.device
    latent = torch.zeros(1, size.latent_size, device=device)
    condition = torch.zeros(1, size.condition_size, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.denoiser(latent, torch.zeros(1, device=device), condition)
    return int(counter.get_total_flops())


def policy_operations(model: PolicyVae) -> dict[str, int]:
    """Count decoding one latent, and one step of the generated policy."""
    return {
        "decoder_operations": model.decoder.operations,
        "policy_operations": model.spec.policy_shape.operations,
    }
