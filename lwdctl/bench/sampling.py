"""Sampling of latents beside the loop of commit 123f3ed: a scheduler of diffusers, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from lwdctl.bench.comparisons import Comparison, compare, needs_cuda
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import (
    DiffusionSpec,
    LatentDiffusion,
    inference_timesteps,
    truncate_schedule,
)
from lwdctl.models.samplers import clean_sample, coefficients
from lwdctl.models.unet import Convolution

BATCHES = (1, 32)
LATENT = 256
TASKS = 10
STEPS = 10
ROUNDS = 30
NETWORKS = {"mlp": ("residual MLP 3 x 512", 1), "unet": ("U-Net m", 3)}
"""What each network is called, and how many times fewer rounds it is given on a CPU."""


def sampling(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Sample latents with DDIM in 10 steps, one and 32 at once."""
    for architecture, (title, fewer) in NETWORKS.items():
        model = a_model(architecture).to(device)
        count = rounds or (ROUNDS // fewer if device.type == "cpu" else ROUNDS)
        for batch in BATCHES:
            condition = torch.zeros(batch, TASKS, device=device)
            ours = partial(_sample, model.sample, condition)
            theirs = partial(_sample_as_before, model, condition)
            ours()  # a graph is captured in the second call, which is not timed either
            yield compare(_comparison(title, batch, device.type), ours, theirs, count, device)
            if device.type != "cuda":
                yield needs_cuda(_comparison(title, batch, "cuda"))


def _comparison(title: str, batch: int, device_type: str) -> Comparison:
    cuda = device_type == "cuda"
    return Comparison(
        f"DDIM {STEPS}, {title}, batch {batch}, {device_type}",
        "coefficients computed once, one CUDA graph"
        if cuda
        else "coefficients and contexts computed once",
        "the loop of commit 123f3ed",
        "ms",
        at_least=4.0 if cuda else 1.3,
    )


def a_model(architecture: str, **changes: Any) -> LatentDiffusion:
    """Return a model with random weights."""
    denoiser = DenoiserSpec(architecture, LATENT, TASKS, (16, 16), "m", 512, 3, 0.0)
    spec = DiffusionSpec(denoiser, "sample", 100, ("task",), 0, TASKS, 0)
    torch.manual_seed(0)
    model = LatentDiffusion(replace(spec, **changes))
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    return model.eval()


def _sample(sample: Callable[..., Tensor], condition: Tensor) -> Tensor:
    generators = [torch.Generator().manual_seed(row) for row in range(len(condition))]
    return sample(condition, generators, "ddim", STEPS)


def _sample_as_before(model: LatentDiffusion, condition: Tensor) -> Tensor:
    """Sample with the loop, and torch's convolutions, of commit 123f3ed."""
    rows, Convolution.most_rows = Convolution.most_rows, 0
    try:
        return _sample(partial(scheduler_sample, model), condition)
    finally:
        Convolution.most_rows = rows


@torch.no_grad()
def scheduler_sample(
    model: LatentDiffusion,
    condition: Tensor,
    generators: Sequence[torch.Generator],
    sampler: str = "ddim",
    steps: int = 10,
    start: Tensor | None = None,
    fraction: float = 1.0,
) -> Tensor:
    """Do what `LatentDiffusion.sample` does, as commit 123f3ed did it."""
    spec, device = model.spec, condition.device
    rows = [torch.randn(spec.denoiser.latent_size, generator=row) for row in generators]
    latent = torch.stack(rows).to(device)
    timesteps, alphas = inference_timesteps(spec, steps), model.alphas_cumprod
    if start is not None:
        timesteps = truncate_schedule(timesteps, fraction)
        signal, std = coefficients(float(alphas[timesteps[0]]))
        latent = signal * model.latent.normalize(start) + std * latent

    def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
        predicted: Tensor = model.denoiser(noisy, timestep.expand(len(noisy)), condition)
        return predicted

    def clean_of(predicted: Tensor, noisy: Tensor, timestep: int) -> Tensor:
        alpha = alphas[timestep]
        signal, std = float(alpha.sqrt()), float((1.0 - alpha).sqrt())
        clean: Tensor = clean_sample(predicted, noisy, spec.prediction, signal, std)
        return clean

    def predict_clean(noisy: Tensor, timestep: int) -> Tensor:
        number = torch.tensor(timestep, device=device)
        return clean_of(denoise(noisy, number), noisy, timestep)

    def clip(clean: Tensor) -> Tensor:
        return clean.clamp(-spec.clip, spec.clip)

    if spec.clip and sampler == "ddim":
        listed: Any = alphas
        return model.latent.restore(_clipped_ddim(predict_clean, latent, timesteps, listed, clip))
    schedule = scheduler_of(sampler, spec, timesteps, device)
    noise = {"generator": list(generators)} if sampler == "ddpm" else {}
    for timestep in schedule.timesteps:
        predicted = denoise(latent, timestep)
        if spec.clip:
            predicted = clip(clean_of(predicted, latent, int(timestep)))
        latent = schedule.step(predicted, timestep, latent, **noise).prev_sample
    return model.latent.restore(latent)


def _clipped_ddim(
    predict_clean: Callable[[Tensor, int], Tensor],
    noise: Tensor,
    timesteps: Sequence[int],
    alphas_cumprod: Sequence[float],
    clip: Callable[[Tensor], Tensor],
) -> Tensor:
    """Denoise a batch with DDIM without noise (Song et al. 2021, equation 12 with sigma 0).

    Clipping is that of Diffusion Policy: the clean sample is clipped, the direction of the noise
    comes from the unclipped one.

    Args:
        predict_clean: Returns the clean sample (batch, latent) that the network predicts for a
            noisy one (batch, latent) at a timestep.
        noise: What to start from (batch, latent).
        timesteps: Inference timesteps from the noisiest to the cleanest.
        alphas_cumprod: (timestep,), fraction of signal in the variance after each training
            timestep.
        clip: Clips a clean sample.

    Returns:
        (batch, latent), normalized.
    """
    latent = noise
    # After the cleanest step only signal is left.
    following = [float(alphas_cumprod[step]) for step in timesteps[1:]] + [1.0]
    for step, next_alpha in zip(timesteps, following, strict=True):
        clean = predict_clean(latent, step)
        signal, std = coefficients(float(alphas_cumprod[step]))
        direction = (latent - signal * clean) / std
        next_signal, next_std = coefficients(next_alpha)
        clean = clip(clean)
        latent = next_signal * clean + next_std * direction
    return latent


def scheduler_of(
    sampler: str, spec: DiffusionSpec, timesteps: Sequence[int], device: torch.device
) -> Any:
    """Return diffusers' scheduler for a sampler, with its inference timesteps set."""
    shared = {
        "num_train_timesteps": spec.num_train_timesteps,
        "beta_schedule": "squaredcos_cap_v2",
        # A scheduler is given the clipped clean sample instead of the prediction.
        "prediction_type": "sample" if spec.clip else spec.prediction,
        "thresholding": False,
    }
    schedule: Any
    if sampler == "ddpm":
        schedule = DDPMScheduler(**shared, clip_sample=False, variance_type="fixed_small")
    else:
        schedule = DPMSolverMultistepScheduler(
            **shared,
            algorithm_type="dpmsolver++",
            solver_order=1 if sampler == "ddim" else 2,
            solver_type="midpoint",
            lower_order_final=True,
            final_sigmas_type="zero",
        )
    schedule.set_timesteps(timesteps=list(timesteps), device=device)
    return schedule
