"""Flow matching: the straight path, Euler's method, and a known distribution recovered."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn

from lwdctl.core.errors import ConfigError
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import (
    DiffusionSpec,
    LatentDiffusion,
    check_sampling,
    inference_timesteps,
)

LATENT, TIMESTEPS = 8, 50


def model_with(network: nn.Module | None = None) -> LatentDiffusion:
    name = "mlp" if network is None else "custom"
    denoiser = DenoiserSpec(name, LATENT, 2, (1, LATENT), "xs", 64, 2, 0.0)
    model = LatentDiffusion(DiffusionSpec(denoiser, "flow", TIMESTEPS, ("task",), 0, 2, 0), network)
    model.latent.fit(torch.full((LATENT,), 10.0), torch.full((LATENT,), 20.0))
    return model


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


class Waves(nn.Module):
    """A velocity that depends on everything, and remembers where it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, int]] = []

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        self.asked.append((latent, int(step[0])))
        return torch.sin(2.0 * latent + condition.sum(1, keepdim=True) + 0.1 * step.unsqueeze(1))


@pytest.mark.parametrize("steps", [1, 2, 4, 10, TIMESTEPS])
def test_samples_are_those_of_the_scheduler_of_diffusers(steps: int) -> None:
    model, condition = model_with(Waves()), torch.randn(2, 2)
    sample = model.latent.normalize(model.sample(condition, seeded(2), "ddim", steps))
    timesteps = inference_timesteps(model.spec, steps)
    scheduler = FlowMatchEulerDiscreteScheduler(TIMESTEPS)
    scheduler.set_timesteps(sigmas=[(step + 1) / TIMESTEPS for step in timesteps])
    latent = torch.stack([torch.randn(LATENT, generator=generator) for generator in seeded(2)])
    for step, named in zip(timesteps, scheduler.timesteps, strict=True):
        velocity = model.denoiser(latent, torch.full((2,), step), condition)
        latent = scheduler.step(velocity, named, latent).prev_sample
    torch.testing.assert_close(sample, latent, rtol=1e-4, atol=1e-5)


def test_a_warm_start_lies_on_the_straight_path() -> None:
    network = Waves()
    model = model_with(network)
    clean = torch.full((2, LATENT), 0.7)
    model.sample(torch.zeros(2, 2), seeded(2), "ddim", 10, model.latent.restore(clean), 0.5)
    latent, step = network.asked[0]
    noise = torch.stack([torch.randn(LATENT, generator=generator) for generator in seeded(2)])
    share = (step + 1) / TIMESTEPS
    assert len(network.asked) == 5
    torch.testing.assert_close(latent, (1 - share) * clean + share * noise, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 4, 25])
def test_samples_fall_on_the_conditioned_mode(steps: int) -> None:
    torch.manual_seed(0)
    model = model_with()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    nothing = torch.zeros(256, 0)
    for update in range(400):
        generator = torch.Generator().manual_seed(update)
        task = torch.randint(2, (256,), generator=generator)
        latent = 30.0 - 40.0 * task.unsqueeze(1) + torch.randn(256, LATENT, generator=generator)
        loss = model.loss(latent, model.condition(nothing, task, task), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    task = torch.tensor([0, 1] * 16)
    condition = model.condition(torch.zeros(32, 0), task, task)
    found = model.eval().sample(condition, seeded(32), "ddim", steps)
    distance = (found - (30.0 - 40.0 * task.unsqueeze(1))).abs().mean(1)
    assert distance.median() < 5.0  # modes lie 40 apart


@pytest.mark.parametrize("sampler", ["ddpm", "dpm-solver"])
def test_samplers_of_diffusion_are_refused(sampler: str) -> None:
    model = model_with(Waves())
    with pytest.raises(ConfigError, match="flow matching") as told:
        check_sampling(model.spec, sampler, 10)
    assert "--sampler ddim" in str(told.value.hint)
    with pytest.raises(ConfigError, match="flow matching"):
        model.sample(torch.zeros(2, 2), seeded(2), sampler, 10)
