"""Counts made without weights equal those of real networks."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from lwdctl.bench.flops import Count, Sizes, count_all
from lwdctl.cli.main import main
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.flops import matmul_flops
from lwdctl.models.unet import UNET_SIZES

SIZES = Sizes(observation=5, action=2, tasks=1, episode=100, num_inference_steps=4)


@functools.cache
def counted() -> list[Count]:
    return count_all(SIZES)


def rows(policy: str) -> list[Count]:
    return [row for row in counted() if row.policy == policy]


@pytest.mark.slow
def test_a_real_unet_has_the_counted_parameters() -> None:
    for row, chunk in zip(rows("dp")[:4], (32, 128, 32, 128), strict=True):
        size = row.network.split()[1].rstrip(",")
        spec = DenoiserSpec("unet", chunk * 2, 10, (chunk, 2), size, 0, 0, 0.0)
        assert row.parameters == sum(p.numel() for p in spec.build().parameters())


@pytest.mark.slow
def test_a_real_mlp_has_the_counted_flops() -> None:
    small = rows("mlp")[0]
    network = torch.nn.Sequential(
        torch.nn.Linear(5, 128), torch.nn.Linear(128, 128), torch.nn.Linear(128, 2)
    )
    assert small.per_step == matmul_flops(network)


def test_replans_are_spread_over_the_episode() -> None:
    short, long = rows("dp")[:2]
    assert short.per_step == 7 * 4 * short.denoiser / 100  # every 16 of 100 steps
    assert long.per_step == 2 * 4 * long.denoiser / 100
    lwd = rows("lwd")[0]
    assert lwd.per_step == pytest.approx(
        (4 * lwd.denoiser + 2 * (50 * 256 + 50 * 50 + 50 * lwd.control_parameters)) / 100
        + 2 * (5 * 128 + 128 * 128 + 128 * 2),
        rel=1e-3,
    )


@pytest.mark.slow
def test_the_command_lists_every_size(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--flops", "--json"]) == 0
    counts = json.loads(capfd.readouterr().out)["summary"]["counts"]
    assert {
        row["network"].split()[1].rstrip(",") for row in counts if row["policy"] == "dp"
    } == set(UNET_SIZES)
