"""FLOPs of networks; one multiply-add counts as two.

They are counted by torch's FLOP counter. It cannot count fused attention, so attention runs in its
plain form here; tests compare the counts with analytic ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lwdctl.models import generated
from lwdctl.models.behavior_cloning import ClonedPolicy
from lwdctl.models.chunks import ActionDiffusion, LatentChunks
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae


@dataclass(frozen=True)
class PolicyFlops:
    """The cost of acting in one environment.

    Attributes:
        denoiser: FLOPs of one denoiser call.
        decoding: FLOPs of decoding one latent.
        step: FLOPs of one control step.
        control_parameters: Weights of the network that runs at every control step.
        parameters: Trained weights of all networks that are used; generated weights not included.
    """

    denoiser: int = 0
    decoding: int = 0
    step: int = 0
    control_parameters: int = 0
    parameters: int = 0


def lwd_flops(vae: PolicyVae, diffusion: LatentDiffusion | None) -> PolicyFlops:
    """Count the FLOPs of LWD; without a denoiser where latents are not sampled."""
    device = vae.observation.mean.device
    latent = torch.zeros(1, vae.spec.latent_size, device=device)
    seen = torch.zeros(1, vae.spec.observation_size, device=device)
    with torch.no_grad():
        layers = generated.unpack(vae.decoder(latent), vae.spec.policy_shape)
    return PolicyFlops(
        denoiser=denoiser_flops(diffusion) if diffusion else 0,
        decoding=_counted(lambda: vae.decoder(latent)),
        step=_counted(lambda: vae.act(layers, seen, torch.zeros(1, device=device))),
        control_parameters=vae.spec.policy_shape.weight_count,
        parameters=_parameters(vae.decoder) + (_parameters(diffusion.denoiser) if diffusion else 0),
    )


def baseline_flops(model: ActionDiffusion | LatentChunks | ClonedPolicy) -> PolicyFlops:
    """Count the FLOPs of a baseline; chunks run open loop, so that a control step costs nothing."""
    if isinstance(model, ClonedPolicy):
        size, device = model.spec.shape.inputs, model.observation.mean.device
        weights = _parameters(model.network)
        step = _counted(lambda: model.network(torch.zeros(1, size, device=device)))
        return PolicyFlops(step=step, control_parameters=weights, parameters=weights)
    spec, device = model.spec, model.diffusion.latent.mean.device
    latent = torch.zeros(1, spec.diffusion.denoiser.latent_size, device=device)
    state = torch.zeros(1, spec.history * spec.observation_size, device=device)
    decoder = _parameters(model.vae.decoder) if isinstance(model, LatentChunks) else 0
    return PolicyFlops(
        denoiser=denoiser_flops(model.diffusion),
        decoding=_counted(lambda: model.actions(latent, state)),
        parameters=_parameters(model.diffusion.denoiser) + decoder,
    )


def denoiser_flops(model: LatentDiffusion) -> int:
    """Count the FLOPs of one denoiser call for one latent."""
    size = model.spec.denoiser
    device = model.latent.mean.device
    latent = torch.zeros(1, size.latent_size, device=device)
    condition = torch.zeros(1, size.condition_size, device=device)
    step = torch.zeros(1, device=device)
    return _counted(lambda: model.denoiser(latent, step, condition))


def _counted(run: Callable[[], object]) -> int:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
        ):
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def policy_flops(model: PolicyVae) -> dict[str, int]:
    """Count the FLOPs of decoding one latent and of one step of the generated policy."""
    return {
        "decoder_flops": model.decoder.flops,
        "policy_flops": model.spec.policy_shape.flops,
    }


def matmul_flops(network: nn.Module) -> int:
    """Return the FLOPs of a plain MLP on one input: two per weight."""
    return sum(2 * p.numel() for p in network.parameters() if p.dim() > 1)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
