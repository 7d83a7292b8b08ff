"""Latent diffusion: every prediction and sampler recovers a known distribution."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

import lwdctl
from lwdctl.bench.sampling import scheduler_of
from lwdctl.configs import Prediction
from lwdctl.core.errors import ConfigError
from lwdctl.models.denoiser import DenoiserSpec, ResidualMlp
from lwdctl.models.diffusion import (
    DiffusionSpec,
    LatentDiffusion,
    inference_timesteps,
    truncate_schedule,
)
from lwdctl.models.samplers import SAMPLERS

LATENT = 8
PREDICTIONS = [name for name in get_args(Prediction) if name != "flow"]  # see test_flow.py


def spec_of(prediction: str) -> DiffusionSpec:
    """A small model conditioned on one of two tasks."""
    denoiser = DenoiserSpec("mlp", LATENT, 2, (1, LATENT), "xs", 64, 2, 0.0)
    return DiffusionSpec(denoiser, prediction, 50, ("task",), 0, 2, 0)


def center(task: torch.Tensor) -> torch.Tensor:
    """Mean latent of a task, far from zero and far from each other."""
    return torch.where(task.unsqueeze(1) == 0, 30.0, -10.0).expand(-1, LATENT)


def train(prediction: str) -> LatentDiffusion:
    """Fit latents that are normal around a mean per task."""
    torch.manual_seed(0)
    model = LatentDiffusion(spec_of(prediction))
    model.latent.fit(torch.full((LATENT,), 10.0), torch.full((LATENT,), 20.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    state = torch.zeros(256, 0)
    for update in range(400):
        generator = torch.Generator().manual_seed(update)
        task = torch.randint(2, (256,), generator=generator)
        latent = center(task) + torch.randn(256, LATENT, generator=generator)
        condition = model.condition(state, task, task)
        loss = model.loss(latent, condition, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module", params=PREDICTIONS)
def trained(request: pytest.FixtureRequest) -> LatentDiffusion:
    """One trained model per prediction type."""
    return train(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_steps_come_closer_to_the_true_standard_deviation(
    prediction: str, sampler: str
) -> None:
    """With the optimal denoiser of N(0, 0.1^2), any number of steps must do, not only divisors."""
    model = LatentDiffusion(
        DiffusionSpec(
            DenoiserSpec("mlp", 64, 0, (1, 64), "xs", 16, 1, 0.0), prediction, 100, (), 0, 0, 0
        )
    )
    model.denoiser = Oracle(prediction, model.alphas_cumprod)
    spreads = []
    for steps in (5, 10, 15, 30, 64, 100):
        generators = [torch.Generator().manual_seed(i) for i in range(64)]
        spreads.append(float(model.sample(torch.zeros(64, 0), generators, sampler, steps).std()))
    ratios = [spread / 0.1 for spread in spreads]
    assert ratios[-1] == pytest.approx(1.0, abs=0.15)
    assert all(later > earlier - 0.02 for earlier, later in itertools.pairwise(ratios))
    assert max(ratios) < 1.05


class Oracle(torch.nn.Module):
    """The denoiser that minimizes the loss exactly when latents are N(0, 0.1^2)."""

    def __init__(self, prediction: str, alphas: torch.Tensor) -> None:
        super().__init__()
        self.prediction, self.alphas = prediction, alphas

    def forward(
        self, latent: torch.Tensor, step: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        alpha = self.alphas[step].unsqueeze(1)
        clean = latent * alpha.sqrt() * 0.01 / (alpha * 0.01 + 1 - alpha)
        noise = (latent - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return {"sample": clean, "epsilon": noise, "v_prediction": velocity}[self.prediction]


@pytest.mark.parametrize("steps", [1, 3, 10, 37, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_inference_timesteps_fall_from_the_noisy_end(prediction: str, steps: int) -> None:
    visited = inference_timesteps(spec_of(prediction), steps)
    assert len(set(visited)) == len(visited) <= steps
    assert visited == sorted(visited, reverse=True)
    assert 43 <= visited[0] <= 49
    assert visited[-1] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_fall_on_the_conditioned_mode(trained: LatentDiffusion, sampler: str) -> None:
    task = torch.tensor([0, 1] * 16)
    condition = trained.condition(torch.zeros(32, 0), task, task)
    generators = [torch.Generator().manual_seed(i) for i in range(32)]
    latent = trained.sample(condition, generators, sampler, 25)
    # Modes lie 40 apart; nothing is clipped to [-1, 1] on the way.
    distance = (latent - center(task)).abs().mean(dim=1)
    assert (distance < 20.0).float().mean() >= 0.9
    assert distance.median() < 5.0


def test_a_rows_sample_depends_on_its_own_generator_alone(trained: LatentDiffusion) -> None:
    task = torch.tensor([0, 1, 0, 1])
    condition = trained.condition(torch.zeros(4, 0), task, task)
    for sampler in SAMPLERS:
        one = trained.sample(
            condition, [torch.Generator().manual_seed(i) for i in (1, 2, 3, 4)], sampler, 5
        )
        two = trained.sample(
            condition, [torch.Generator().manual_seed(i) for i in (9, 2, 8, 7)], sampler, 5
        )
        assert torch.equal(one[1], two[1])
        assert not torch.equal(one[0], two[0])


class Calls(torch.nn.Module):
    """A denoiser that knows the one clean sample, and notes the steps and inputs it is given."""

    def __init__(self, prediction: str, alphas: torch.Tensor, clean: torch.Tensor) -> None:
        super().__init__()
        self.prediction, self.alphas, self.clean = prediction, alphas, clean
        self.steps: list[int] = []
        self.seen: list[torch.Tensor] = []

    def forward(
        self, latent: torch.Tensor, step: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        self.steps.append(int(step[0]))
        self.seen.append(latent.clone())
        alpha = self.alphas[step].unsqueeze(1)
        noise = (latent - alpha.sqrt() * self.clean) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * self.clean
        return {"sample": self.clean.expand_as(latent), "epsilon": noise, "v_prediction": velocity}[
            self.prediction
        ]


def known(prediction: str, clip: float = 0.0) -> tuple[LatentDiffusion, Calls]:
    model = LatentDiffusion(replace(spec_of(prediction), clip=clip))
    model.latent.fit(torch.full((LATENT,), 10.0), torch.full((LATENT,), 20.0))
    alphas = model.alphas_cumprod
    model.denoiser = Calls(prediction, alphas, torch.linspace(-0.9, 0.9, LATENT))
    return model, model.denoiser


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("fraction", "calls"), [(0.01, 1), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_a_warm_start_does_the_last_steps_and_ends_among_the_data(
    sampler: str, prediction: str, clip: float, fraction: float, calls: int
) -> None:
    model, denoiser = known(prediction, clip)
    start = model.latent.restore(torch.full((2, LATENT), 0.7))
    sample = model.sample(torch.zeros(2, 2), seeded(2), sampler, 10, start, fraction)
    assert denoiser.steps == inference_timesteps(model.spec, 10)[-calls:]
    wanted = model.latent.restore(denoiser.clean).expand(2, -1)
    torch.testing.assert_close(sample, wanted, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_warm_start_is_noised_as_the_schedulers_do(prediction: str) -> None:
    model, denoiser = known(prediction)
    clean = torch.full((2, LATENT), 0.7)
    noise = torch.stack([torch.randn(LATENT, generator=generator) for generator in seeded(2)])
    model.sample(torch.zeros(2, 2), seeded(2), "ddim", 10, model.latent.restore(clean), 0.5)
    visited = truncate_schedule(inference_timesteps(model.spec, 10), 0.5)
    step = torch.tensor(visited[:1])
    for sampler in SAMPLERS:
        schedule = scheduler_of(sampler, model.spec, visited, torch.device("cpu"))
        expected = schedule.add_noise(clean, noise, step)
        torch.testing.assert_close(denoiser.seen[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_warm_start_over_all_steps_forgets_where_it_began(
    trained: LatentDiffusion, sampler: str
) -> None:
    """The noisiest step holds next to no signal; epsilon-prediction begins where 5 % are left."""
    task = torch.tensor([0, 1] * 8)
    condition = trained.condition(torch.zeros(16, 0), task, task)
    cold = trained.sample(condition, seeded(16), sampler, 10)
    starts = center(task), center(1 - task)
    warm = [trained.sample(condition, seeded(16), sampler, 10, start, 1.0) for start in starts]
    limit = 3.0 if trained.spec.prediction == "epsilon" else 0.2
    for sample in warm:
        assert (sample - cold).abs().mean() < limit
    # Half the steps from the right latent stay with it; the modes lie 40 apart.
    half = trained.sample(condition, seeded(16), sampler, 10, starts[0], 0.5)
    assert (half - starts[0]).abs().mean() < 5.0


@pytest.mark.parametrize(
    ("fraction", "left"), [(0.0, [0]), (0.24, [0]), (0.3, [0]), (0.5, [4, 0]), (1.0, [12, 8, 4, 0])]
)
def test_the_steps_that_remain_are_the_last_ones(fraction: float, left: list[int]) -> None:
    assert truncate_schedule([12, 8, 4, 0], fraction) == left


def clipped(prediction: str) -> LatentDiffusion:
    """A model with random weights whose samples would lie far outside [-1, 1]."""
    torch.manual_seed(3)
    model = LatentDiffusion(replace(spec_of(prediction), clip=1.0))
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clipped_samples_stay_in_the_normalized_range(prediction: str, sampler: str) -> None:
    model = clipped(prediction)
    task = torch.tensor([0, 1, 0])
    condition = model.condition(torch.zeros(3, 0), task, task)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    sample = model.sample(condition, generators, sampler, 10)
    assert sample.abs().max() <= 1.0 + 1e-5
    assert sample.abs().max() > 0.9


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clipped_ddpm_is_the_library_s_own_clip_sample(prediction: str) -> None:
    """Diffusion Policy's sampler: every training step, the predicted sample clipped."""
    model = clipped(prediction)
    task = torch.tensor([0, 1])
    condition = model.condition(torch.zeros(2, 0), task, task)
    ours = model.sample(condition, [torch.Generator().manual_seed(i) for i in (5, 6)], "ddpm", 50)
    schedule = DDPMScheduler(
        num_train_timesteps=50,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_small",
        clip_sample=True,
        prediction_type=prediction,
    )
    schedule.set_timesteps(50)
    generators = [torch.Generator().manual_seed(i) for i in (5, 6)]
    sample = torch.stack([torch.randn(LATENT, generator=g) for g in generators])
    with torch.no_grad():
        for step in schedule.timesteps:
            predicted = model.denoiser(sample, step.expand(2), condition)
            sample = schedule.step(predicted, step, sample, generator=generators).prev_sample
    torch.testing.assert_close(ours, sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [5, 10, 25])
def test_clipped_ddim_is_the_library_s_own(prediction: str, steps: int) -> None:
    """Where the steps divide evenly, which the library's DDIM asks for."""
    model = clipped(prediction)
    task = torch.tensor([0, 1])
    condition = model.condition(torch.zeros(2, 0), task, task)
    ours = model.sample(
        condition, [torch.Generator().manual_seed(i) for i in (5, 6)], "ddim", steps
    )
    schedule = DDIMScheduler(
        num_train_timesteps=50,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type=prediction,
    )
    schedule.set_timesteps(steps)
    sample = torch.stack(
        [torch.randn(LATENT, generator=torch.Generator().manual_seed(i)) for i in (5, 6)]
    )
    with torch.no_grad():
        for step in schedule.timesteps:
            predicted = model.denoiser(sample, step.expand(2), condition)
            sample = schedule.step(predicted, step, sample).prev_sample
    torch.testing.assert_close(ours, sample, rtol=1e-3, atol=1e-3)


class OwnLoss(torch.nn.Module):
    """A network with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def training_loss(
        self, latent: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        self.seen += [latent, condition, noise]
        return (latent - noise).abs().mean()


def test_a_loss_of_its_own_takes_the_place_of_the_predictions_error() -> None:
    spec = spec_of("sample")
    network = OwnLoss()
    model = LatentDiffusion(
        replace(spec, denoiser=replace(spec.denoiser, architecture="custom")), network
    )
    model.latent.fit(torch.full((LATENT,), 10.0), torch.full((LATENT,), 20.0))
    task = torch.tensor([0, 1])
    condition = model.condition(torch.zeros(2, 0), task, task)
    loss = model.loss(center(task), condition, torch.Generator().manual_seed(0))
    latent, given, noise = network.seen
    assert torch.equal(latent, model.latent.normalize(center(task)))
    assert torch.equal(given, condition)
    assert noise.shape == latent.shape
    assert torch.equal(loss, (latent - noise).abs().mean())
    hidden = model.loss(center(task), condition, torch.Generator().manual_seed(0), None, 1.0)
    assert hidden.isfinite()
    assert not network.seen[4].any()


def test_a_loss_that_sees_no_padding_is_taken_where_padding_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def own(self: ResidualMlp, latent: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        step = torch.zeros(len(latent), dtype=torch.long)
        return self(latent, step, given[0]).square().mean()

    monkeypatch.setattr(ResidualMlp, "training_loss", own, raising=False)
    walks = np.random.default_rng(0).normal(size=(4, 20, 2)).astype(np.float32)
    data = lwdctl.Dataset.from_arrays(observations=[*walks], actions=[*walks])
    small = {"updates": 1, "device": "cpu", "threads": 1, "snippet_length": 4, "width": 16}
    masked = lwdctl.BaselineConfig(method="dp", denoiser="mlp", **small)
    with pytest.raises(ConfigError, match="the denoiser 'mlp' has a loss of its own"):
        lwdctl.train_baseline("dp", data, masked)
    assert lwdctl.train_baseline("dp", data, replace(masked, padding="counted"))


def test_a_loss_of_its_own_that_is_no_scalar_is_refused() -> None:
    class ByRow(torch.nn.Linear):
        def forward(self, latent: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
            return super().forward(latent)

        def training_loss(self, latent: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
            return self(latent).square().mean(1)

    walks = np.random.default_rng(0).normal(size=(4, 20, 2)).astype(np.float32)
    data = lwdctl.Dataset.from_arrays(observations=[*walks], actions=[*walks])
    small = {"updates": 1, "device": "cpu", "threads": 1}
    vae = lwdctl.VaeConfig(
        snippet_length=4, latent_size=LATENT, policy_width=8, decoder="xs", **small
    )
    latents = lwdctl.encode(lwdctl.train_vae(data, vae))
    config = lwdctl.DiffusionConfig(**small)
    with pytest.raises(ConfigError, match="denoiser's training_loss returned tensors"):
        lwdctl.train_diffusion(latents, config, denoiser=ByRow(LATENT, LATENT))
