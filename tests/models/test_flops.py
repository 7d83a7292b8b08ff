"""Counted FLOPs agree with the analytic count."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lwdctl.methods.chunks import chunk_flops
from lwdctl.methods.lwd import lwd_flops
from lwdctl.methods.mlp import mlp_flops
from lwdctl.models import generated
from lwdctl.models.behavior_cloning import ClonedPolicy, ClonedSpec
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, LatentChunks
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.flops import count_flops, denoiser_flops, matmul_flops
from lwdctl.models.unet import GROUPS, KERNEL, UNET_SIZES
from lwdctl.models.vae import PolicyVae, VaeSpec


def diffusion(architecture: str, layout: tuple[int, int], size: str) -> LatentDiffusion:
    denoiser = DenoiserSpec(architecture, 256, 10, layout, size, 64, 2, 0.0)
    return LatentDiffusion(DiffusionSpec(denoiser, "sample", 10, ("state",), 10, 0, 0))


def test_residual_mlp_costs_two_flops_per_weight() -> None:
    model = diffusion("mlp", (1, 256), "xs")
    matrices = sum(p.numel() for p in model.denoiser.parameters() if p.dim() == 2)
    assert denoiser_flops(model) == pytest.approx(2 * matrices, rel=0.01)


@pytest.mark.parametrize(
    ("layout", "size", "mega"),
    [((256, 1), "xs", 36.6), ((16, 16), "xs", 2.5), ((16, 16), "s", 11.2), ((16, 16), "m", 84.4)],
)
def test_unet_costs_what_the_published_network_costs(
    layout: tuple[int, int], size: str, mega: float
) -> None:
    assert denoiser_flops(diffusion("unet", layout, size)) / 1e6 == pytest.approx(mega, rel=0.03)


def test_decoder_and_policy_counts_agree_with_the_counter() -> None:
    spec = VaeSpec(("s",), 39, 4, None, 8, 256, (50, 50), (256, 256), False)
    model = PolicyVae(spec)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        weights = model.decoder(torch.zeros(1, 256))
    assert counter.get_total_flops() == pytest.approx(matmul_flops(model.decoder), rel=0.01)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generated.run(generated.unpack(weights, spec.policy_shape), torch.zeros(1, 1, 39))
    assert counter.get_total_flops() == pytest.approx(spec.policy_shape.flops, rel=0.01)


@pytest.mark.parametrize("architecture", ["mlp", "unet", "transformer"])
def test_the_count_is_that_of_torch(architecture: str) -> None:
    network = diffusion(architecture, (16, 16), "xs").denoiser
    inputs = torch.zeros(3, 256), torch.zeros(3, dtype=torch.long), torch.zeros(3, 10)
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    assert count_flops(lambda: network(*inputs)) == counter.get_total_flops() > 0


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d"])
def test_the_count_of_convolutions_is_that_of_torch(kind: str, groups: int) -> None:
    network = getattr(torch.nn, kind)(4, 6, 3, stride=2, padding=1, groups=groups)
    inputs = torch.zeros(5, 4, *(9,) * int(kind[-2]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(inputs)
    assert count_flops(lambda: network(inputs)) == counter.get_total_flops() > 0


def unet_products(length: int, channels: int, condition: int, size: str) -> int:
    """Multiply-adds of the U-Net, written out resolution by resolution; padding counts as data."""
    row = UNET_SIZES[size]
    context = row.step_embedding + condition

    def block(inputs: int, outputs: int, time: int) -> int:
        skip = inputs * outputs * time if inputs != outputs else 0
        return KERNEL * time * (inputs + outputs) * outputs + context * 2 * outputs + skip

    levels = [channels, *row.channels]
    products = 8 * row.step_embedding**2
    times = [length // 2**number for number in range(len(row.channels))]
    for number, time in enumerate(times):
        inputs, outputs = levels[number : number + 2]
        products += block(inputs, outputs, time) + block(outputs, outputs, time)
        if number + 1 < len(times):
            products += 3 * outputs * outputs * times[number + 1]
    products += 2 * block(levels[-1], levels[-1], times[-1])
    for number in range(len(times) - 1, 0, -1):
        inputs, outputs = levels[number + 1], levels[number]
        products += block(2 * inputs, outputs, times[number])
        products += block(outputs, outputs, times[number])
        products += 4 * outputs * outputs * times[number]
    return products + KERNEL * length * levels[1] ** 2 + levels[1] * channels * length


@pytest.mark.parametrize("layout", [(16, 16), (32, 2)])
@pytest.mark.parametrize("size", ["xs", "s", "m"])
def test_unet_count_is_the_analytic_one(layout: tuple[int, int], size: str) -> None:
    assert GROUPS == 8
    denoiser = DenoiserSpec("unet", layout[0] * layout[1], 10, layout, size, 64, 2, 0.0)
    model = LatentDiffusion(DiffusionSpec(denoiser, "sample", 10, ("state",), 10, 0, 0))
    expected = 2 * unet_products(*layout, 10, size)
    assert denoiser_flops(model) == pytest.approx(expected, rel=0.01)


def test_lwd_costs_its_denoiser_its_decoder_and_its_generated_policy() -> None:
    spec = VaeSpec(("s",), 10, 4, 0, 8, 256, (50, 50), (64, 64), True)
    vae, sampler = PolicyVae(spec), diffusion("mlp", (1, 256), "xs")
    weights = spec.policy_shape.weight_count
    assert weights == (11 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 4
    decoder = 256 * 50 + 50 * 50 + 50 * weights
    found = lwd_flops(vae, sampler)
    assert found.denoiser == denoiser_flops(sampler) > 0
    assert found.decoding == pytest.approx(2 * decoder, rel=0.01)
    assert found.step == pytest.approx(2 * (11 * 64 + 64 * 64 + 64 * 4), rel=0.01)
    assert found.control_parameters == weights
    denoising = sum(p.numel() for p in sampler.denoiser.parameters())
    assert found.parameters == decoder + 100 + weights + denoising
    unsampled = lwd_flops(vae, None)
    assert (unsampled.denoiser, unsampled.parameters) == (0, found.parameters - denoising)
    assert (unsampled.decoding, unsampled.step) == (found.decoding, found.step)


@pytest.mark.parametrize("method", [ActionDiffusion, LatentChunks])
def test_chunks_cost_nothing_between_replans(method: type) -> None:
    denoiser = DenoiserSpec("mlp", 32, 10, (16, 2), "xs", 64, 1, 0.0)
    sampler = DiffusionSpec(denoiser, "sample", 10, ("state",), 10, 0, 0)
    model = method(ChunkSpec(("s",), 5, 2, None, 2, 15, sampler))
    found = chunk_flops(model)
    assert found.denoiser == denoiser_flops(model.diffusion) > 0
    assert (found.step, found.control_parameters) == (0, 0)
    decoder = 32 * 256 + 256 * 256 + 256 * 30 if method is LatentChunks else 0
    assert found.decoding == pytest.approx(2 * decoder, rel=0.01)
    biases = 256 + 256 + 30 if method is LatentChunks else 0
    weights = sum(p.numel() for p in model.diffusion.denoiser.parameters())
    assert found.parameters == weights + decoder + biases


def test_a_cloned_policy_costs_the_same_at_every_step() -> None:
    spec = ClonedSpec(("s",), 5, 2, None, (128, 128), 3, 0)
    found = mlp_flops(ClonedPolicy(spec))
    assert found.step == pytest.approx(2 * (8 * 128 + 128 * 128 + 128 * 2), rel=0.01)
    assert found.step == pytest.approx(spec.shape.flops, rel=0.01)
    assert (found.denoiser, found.decoding) == (0, 0)
    assert found.control_parameters == found.parameters == spec.shape.weight_count
