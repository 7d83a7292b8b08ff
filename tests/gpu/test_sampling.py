"""Sampling on CUDA: a replayed graph gives what the eager loop gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lwdctl.bench.sampling import TASKS, a_model, scheduler_sample
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.samplers import SAMPLERS

pytestmark = pytest.mark.gpu


def sample(model: LatentDiffusion, rows: int, seed: int = 0, sampler: str = "ddim") -> Tensor:
    generators = [torch.Generator().manual_seed(1000 * seed + row) for row in range(rows)]
    condition = torch.eye(TASKS, device="cuda")[torch.arange(rows) % TASKS]
    return model.sample(condition, generators, sampler, 10)


def eager(model: LatentDiffusion) -> LatentDiffusion:
    twin = copy.deepcopy(model)
    twin.graphs.mode = "off"
    return twin


def captured(model: LatentDiffusion) -> int:
    return sum(graph is not None for graph in model.graphs._graphs.values())


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("network", ["mlp", "unet", "transformer"])
def test_a_graph_samples_as_the_eager_loop_does(network: str, sampler: str, clip: float) -> None:
    model = a_model(network, clip=clip).cuda()
    twin = eager(model)
    for seed in range(4):  # the second call captures, later ones replay with new noise
        torch.testing.assert_close(
            sample(model, 3, seed, sampler), sample(twin, 3, seed, sampler), rtol=1e-3, atol=1e-3
        )
    assert captured(model) == 1
    assert captured(twin) == 0


def test_the_samples_are_those_of_the_schedulers_of_diffusers() -> None:
    model = a_model("mlp").cuda()
    condition = torch.eye(TASKS, device="cuda")
    for _ in range(3):
        ours = model.sample(condition, [torch.Generator().manual_seed(r) for r in range(TASKS)])
    theirs = scheduler_sample(
        model, condition, [torch.Generator().manual_seed(r) for r in range(TASKS)]
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_every_batch_size_and_a_warm_start_have_their_graph() -> None:
    model = a_model("mlp").cuda()
    twin = eager(model)
    for rows in (1, 4, 1, 4, 1, 4):
        torch.testing.assert_close(
            sample(model, rows, rows), sample(twin, rows, rows), rtol=1e-3, atol=1e-3
        )
    assert captured(model) == 2
    start, condition = sample(model, 4), torch.eye(TASKS, device="cuda")[:4]
    for seed in range(3):
        ours, theirs = (
            one.sample(
                condition,
                [torch.Generator().manual_seed(10 * seed + row) for row in range(4)],
                start=start + seed,
                fraction=0.5,
            )
            for one in (model, twin)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert captured(model) == 3


def test_every_guidance_has_its_graph() -> None:
    model = a_model("mlp").cuda()
    twin, condition = eager(model), torch.eye(TASKS, device="cuda")
    for guidance in (1.0, 0.5, 2.0) * 3:
        ours, theirs = (
            one.sample(
                condition,
                [torch.Generator().manual_seed(row) for row in range(TASKS)],
                guidance=guidance,
            )
            for one in (model, twin)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert captured(model) == 3


def test_a_result_is_not_overwritten_by_the_next_one() -> None:
    model = a_model("mlp").cuda()
    results = [sample(model, 2, seed) for seed in (0, 1, 2, 0)]
    torch.testing.assert_close(results[3], results[0], rtol=1e-3, atol=1e-3)
    assert not torch.equal(results[2], results[3])


@pytest.mark.parametrize("moved", [False, True])
def test_new_weights_are_used(moved: bool) -> None:
    model = a_model("mlp").cuda()
    for seed in range(3):
        sample(model, 2, seed)
    old = list(model.denoiser.parameters())
    with torch.no_grad():
        for parameter in old:
            parameter.mul_(0.5)
    if moved:  # the old memory stays taken, so that the new weights lie elsewhere
        kept = [parameter.data for parameter in old]
        for parameter in old:
            parameter.data = parameter.data.clone()
        assert kept[0].data_ptr() != old[0].data_ptr()
    twin = eager(model)
    for seed in range(3):
        torch.testing.assert_close(
            sample(model, 2, seed), sample(twin, 2, seed), rtol=1e-3, atol=1e-3
        )
    assert captured(model) == 1


class Waiting(nn.Module):
    """A denoiser that reads a number back in every call, so that capture must fail."""

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        return latent * float(step[0] + 1) / 1000.0


def test_a_loop_that_cannot_be_captured_runs_eagerly_and_says_why_once() -> None:
    model = a_model("mlp").cuda()
    model.denoiser = Waiting()
    first = sample(model, 2)
    with pytest.warns(UserWarning, match="CUDA graph") as caught:
        later = [sample(model, 2) for _ in range(3)]
    assert len(caught) == 1
    assert all(torch.equal(first, one) for one in later)


def test_a_replay_does_not_wait_for_the_device() -> None:
    model = a_model("mlp").cuda()
    for seed in range(3):
        sample(model, 2, seed)
    condition = torch.eye(TASKS, device="cuda")[:2]
    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.sample(condition, generators)
    finally:
        torch.cuda.set_sync_debug_mode("default")
