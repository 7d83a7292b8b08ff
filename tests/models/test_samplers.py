"""Samplers without a scheduler: the numbers of diffusers, and nothing that needs the host."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from lwdctl.bench.sampling import scheduler_sample
from lwdctl.configs import Prediction
from lwdctl.core.errors import ConfigError
from lwdctl.models.denoiser import Denoiser, DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion, draw_noise, inference_timesteps
from lwdctl.models.products import SMALLEST_SIDE, fast_products
from lwdctl.models.samplers import SAMPLERS, sampling_steps, training_schedule

LATENT, TASKS, TIMESTEPS = 64, 3, 50
PREDICTIONS = [name for name in get_args(Prediction) if name != "flow"]  # see test_flow.py
NETWORKS = ("mlp", "unet", "transformer")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Products of several threads depend on where their factors lie in memory."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Waves(nn.Module):
    """A denoiser without matrix products, whose rows have the same bits in every batch."""

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        shift = condition.sum(1, keepdim=True) + 0.1 * step.unsqueeze(1)
        return torch.sin(2.0 * latent + shift)


def a_model(architecture: str, prediction: str = "sample", clip: float = 0.0) -> LatentDiffusion:
    denoiser = DenoiserSpec(
        architecture, LATENT, TASKS, (16, 4), "xs", 32, 2, 0.0, "xs", 1, shared_condition=1
    )
    spec = DiffusionSpec(denoiser, prediction, TIMESTEPS, ("task",), 0, TASKS, 0, clip)
    torch.manual_seed(0)
    model = LatentDiffusion(spec, Waves() if architecture == "custom" else None)
    model.latent.fit(torch.full((LATENT,), 2.0), torch.full((LATENT,), 3.0))
    for parameter in model.denoiser.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


@pytest.mark.parametrize("count", [1, 7, 50, 100, 1000])
def test_the_schedule_is_that_of_diffusers(count: int) -> None:
    theirs = DDPMScheduler(count, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert torch.equal(training_schedule(count), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("steps", "fraction"),
    [(1, None), (2, None), (7, None), (10, None), (TIMESTEPS, None), (10, 0.05), (20, 0.5)],
)
def test_samples_are_those_of_the_schedulers_of_diffusers(
    sampler: str, prediction: str, clip: float, steps: int, fraction: float | None
) -> None:
    """Bit for bit, and the generators have drawn as much."""
    model, condition = a_model("custom", prediction, clip), torch.randn(2, TASKS)
    start = None if fraction is None else torch.randn(2, LATENT)
    arguments = sampler, steps, start, fraction or 1.0
    ours, theirs = seeded(2), seeded(2)
    sample = model.sample(condition, ours, *arguments)
    assert torch.equal(sample, scheduler_sample(model, condition, theirs, *arguments))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rows", [1, 5, 17, 40])
@pytest.mark.usefixtures("one_thread")
def test_contexts_computed_at_once_are_those_of_every_step(network: str, rows: int) -> None:
    model, condition = a_model(network), torch.randn(rows, TASKS)
    timesteps = torch.arange(TIMESTEPS)  # more rows than are computed at once
    denoiser = model.denoiser
    assert isinstance(denoiser, Denoiser)
    found = list(denoiser.contexts(timesteps, condition))
    assert len(found) == TIMESTEPS
    for step, context in zip(timesteps, found, strict=True):
        alone = denoiser.context(step.expand(rows), condition)
        assert all(map(torch.equal, context, alone))
    sample = model.sample(condition, seeded(rows), "ddpm", 20)
    with fast_products() if rows >= SMALLEST_SIDE else nullcontext():
        reference = scheduler_sample(model, condition, seeded(rows), "ddpm", 20)
    assert torch.equal(sample, reference)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["noise", "warm", "kept"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("network", [*NETWORKS, "custom"])
def test_nothing_in_the_loop_needs_the_host(
    network: str, sampler: str, clip: float, start: str
) -> None:
    """On the meta device there are no numbers that the host could read."""
    meta = torch.device("meta")
    model = a_model(network, "epsilon", clip).to(meta)
    timesteps = inference_timesteps(model.spec, 5)
    steps = sampling_steps(sampler, TIMESTEPS, tuple(timesteps), clipped=bool(clip))
    inputs = [torch.empty(6, 2, LATENT, device=meta), torch.empty(2, TASKS, device=meta)]
    if start != "noise":
        inputs.append(torch.empty(2, LATENT, device=meta))
    if start == "kept":
        inputs.append(torch.empty(LATENT, device=meta))
    with torch.no_grad():
        latent = model.denoise(steps, torch.empty(5, dtype=torch.long, device=meta), *inputs)
    assert latent.shape == (2, LATENT)
    assert latent.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        latent.sum().item()


def test_noise_is_drawn_as_the_schedulers_draw_it() -> None:
    noise = draw_noise(seeded(3), 2, 5, torch.device("cpu"))
    rows = seeded(3)
    for draw in noise:
        for row, generator in zip(draw, rows, strict=True):
            assert torch.equal(row, torch.randn(5, generator=generator))


def test_a_copied_model_samples_alike() -> None:
    model, condition = a_model("mlp"), torch.randn(2, TASKS)
    twin = copy.deepcopy(model)
    assert twin.graphs is not model.graphs
    assert torch.equal(twin.sample(condition, seeded(2)), model.sample(condition, seeded(2)))


def test_new_weights_are_used_at_once() -> None:
    """Nothing that depends on the weights outlives a call."""
    model, condition = a_model("mlp"), torch.randn(20, TASKS)
    before = model.sample(condition, seeded(20))
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.mul_(0.5)
    after = model.sample(condition, seeded(20))
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, scheduler_sample(model, condition, seeded(20)))


class Correlated(nn.Module):
    """The best denoiser of pairs of standard normal components with a known correlation."""

    def __init__(self, model: LatentDiffusion, correlation: float) -> None:
        super().__init__()
        self.prediction, levels = model.spec.prediction, (model.signal, model.noise_std)
        self.signal, self.std = levels
        pairs = torch.tensor([[1.0, correlation], [correlation, 1.0]])
        self.covariance = torch.block_diag(*[pairs] * (LATENT // 2))

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        signal, std = self.signal[step[0]], self.std[step[0]]
        noisy = signal**2 * self.covariance + std**2 * torch.eye(LATENT)
        clean = signal * latent @ torch.linalg.solve(noisy, self.covariance)
        noise = (latent - signal * clean) / std
        return {
            "sample": clean,
            "epsilon": noise,
            "v_prediction": signal * noise - std * clean,
            "flow": noise - clean,
        }[self.prediction]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "prediction"),
    [*itertools.product(SAMPLERS, PREDICTIONS), ("ddim", "flow")],
)
def test_what_is_kept_to_conditions_the_other_components(sampler: str, prediction: str) -> None:
    """Every second component is known; the others follow as their correlation says."""
    model = a_model("custom", prediction)
    model.denoiser = Correlated(model, 0.8)
    known = torch.full((40, LATENT), 1.5)
    kept = torch.tensor([1.0, 0.0]).repeat(LATENT // 2)

    def run(weights: Tensor) -> tuple[Tensor, Tensor]:
        start = model.latent.restore(known)
        condition = torch.zeros(40, TASKS)
        given = model.sample(condition, seeded(40), sampler, 40, start=start, kept=weights)
        pairs = model.latent.normalize(given).view(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    first, second = run(kept)
    assert float((first - 1.5).square().mean().sqrt()) < 0.15
    assert abs(float(second.mean()) - 0.8 * 1.5) < 0.2  # 0.5 where predictions are replaced
    assert abs(float(second.std()) - 0.6) < 0.1
    half, follower = run(0.3 * kept)
    assert 0.4 < float(half.mean()) < 1.45
    assert 0.5 < float(follower.mean()) / float(half.mean()) < 1
    free = model.sample(torch.zeros(40, TASKS), seeded(40), sampler, 40)
    nothing = model.sample(
        torch.zeros(40, TASKS), seeded(40), sampler, 40, start=known, kept=torch.zeros(LATENT)
    )
    torch.testing.assert_close(nothing, free, rtol=1e-5, atol=1e-4)


class _Imperfect(Correlated):
    """Predicts a tenth too much noise; the clean sample that it implies is far off at the start."""

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        return 1.1 * super().forward(latent, step, condition)


def test_what_is_kept_to_survives_errors_of_predicted_noise() -> None:
    model = a_model("custom", "epsilon", clip=1.0)
    model.denoiser = _Imperfect(model, 0.8)
    start, kept = torch.full((40, LATENT), 0.5), torch.tensor([1.0, 0.0]).repeat(LATENT // 2)
    start = model.latent.restore(start)
    with torch.inference_mode():
        given = model.sample(torch.zeros(40, TASKS), seeded(40), "ddim", 10, start=start, kept=kept)
    first, second = model.latent.normalize(given).view(-1, 2).unbind(1)
    assert float((first - 0.5).square().mean().sqrt()) < 0.3
    assert abs(float(second.mean()) - 0.8 * 0.5) < 0.15


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(ConfigError, match="no sampler is called 'dimm'") as caught:
        sampling_steps("dimm", 50, (1,), clipped=False)
    assert caught.value.hint == "did you mean 'ddim'?"
