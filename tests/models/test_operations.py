"""Counted operations agree with the analytic count."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lwdctl.models import generated
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.operations import denoiser_operations, policy_operations
from lwdctl.models.vae import PolicyVae, VaeSpec


def diffusion(architecture: str, layout: tuple[int, int], size: str) -> LatentDiffusion:
    denoiser = DenoiserSpec(architecture, 256, 10, layout, size, 64, 2, 0.0)
    return LatentDiffusion(DiffusionSpec(denoiser, "sample", 10, ("state",), 10, 0, 0))


def test_residual_mlp_costs_two_operations_per_weight() -> None:
    model = diffusion("mlp", (1, 256), "xs")
    matrices = sum(p.numel() for p in model.denoiser.parameters() if p.dim() == 2)
    assert denoiser_operations(model) == pytest.approx(2 * matrices, rel=0.01)


@pytest.mark.parametrize(
    ("layout", "size", "mega"),
    [((256, 1), "xs", 36.6), ((16, 16), "xs", 2.5), ((16, 16), "s", 11.2), ((16, 16), "m", 84.4)],
)
def test_unet_costs_what_the_published_network_costs(
    layout: tuple[int, int], size: str, mega: float
) -> None:
    assert denoiser_operations(diffusion("unet", layout, size)) / 1e6 == pytest.approx(
        mega, rel=0.03
    )


def test_decoder_and_policy_counts_agree_with_the_counter() -> None:
    spec = VaeSpec(8, ("s",), 39, 4, 256, (50, 50), (256, 256), False, "absolute", -1)
    model = PolicyVae(spec)
    counts = policy_operations(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        weights = model.decoder(torch.zeros(1, 256))
    assert counter.get_total_flops() == pytest.approx(counts["decoder_operations"], rel=0.01)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generated.run(generated.unpack(weights, spec.policy_shape), torch.zeros(1, 1, 39))
    assert counter.get_total_flops() == pytest.approx(counts["policy_operations"], rel=0.01)
