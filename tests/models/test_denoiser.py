"""Denoisers: shapes, sizes of the published U-Net, and conditioning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lwdctl.models.denoiser import DenoiserSpec

SPEC = DenoiserSpec("mlp", 64, 5, (1, 64), "xs", 32, 2, 0.0)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, architecture="unet", layout=(8, 8)),
        replace(SPEC, architecture="unet", layout=(64, 1)),
    ],
)
def test_keeps_the_latent_shape_and_sees_step_and_condition(spec: DenoiserSpec) -> None:
    torch.manual_seed(0)
    network = spec.build()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    latent, condition = torch.randn(3, 64), torch.randn(3, 5)
    out = network(latent, torch.tensor([0, 5, 9]), condition)
    assert out.shape == (3, 64)
    assert not torch.allclose(out, network(latent, torch.tensor([1, 5, 9]), condition))
    assert not torch.allclose(out, network(latent, torch.tensor([0, 5, 9]), condition + 1))


@pytest.mark.parametrize(
    ("size", "millions"), [("xs", 0.35), ("s", 1.98), ("m", 9.09), ("l", 65.5), ("xl", 261.3)]
)
def test_unet_has_the_published_parameter_count(size: str, millions: float) -> None:
    with torch.device("meta"):
        network = DenoiserSpec("unet", 256, 20, (16, 16), size, 8, 1, 0.0).build()
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.01)
