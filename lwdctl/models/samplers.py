"""The noise schedule and the samplers, as coefficients that are computed once.

Every coefficient comes from the single-precision operations of diffusers' schedulers in their
order, and so do the samples: they equal those of diffusers bit for bit on a CPU. No thresholding,
because latents are not images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final, TypeVar, get_args

import torch
from torch import Tensor

from lwdctl.configs import Sampler
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean

SAMPLERS = get_args(Sampler)
FLOW: Final = "flow"
GUIDANCE_LIMIT: Final = 5.0
"""Bound of the guidance towards known latents, as a factor of the noise's standard deviation: with
few denoising steps it diverges without one (Black, Galliker and Levine 2025 take 5)."""

Context = TypeVar("Context")


@dataclass(frozen=True)
class SamplingStep:
    """The numbers of one denoising step: from a noisy latent to a less noisy one.

    Attributes:
        timestep: The training timestep of the noisy latent.
        signal: Factor of the clean latent in the noisy one.
        std: Standard deviation of the noise in it.
        clean: Factor of the predicted clean latent in the result.
        carried: Factor of what is carried over: the noisy latent, or the direction of its noise.
        direction: Signal and standard deviation from which that direction is computed; None where
            the noisy latent itself is carried over.
        change: Two factors of the change since the previous clean latent (second order), or None.
        noise: Factor of fresh noise, or None.
    """

    timestep: int
    signal: float
    std: float
    clean: float
    carried: float
    direction: tuple[float, float] | None = None
    change: tuple[float, float] | None = None
    noise: float | None = None


def training_schedule(num_train_timesteps: int) -> Tensor:
    """Return the squared-cosine schedule (Nichol and Dhariwal 2021): `alphas_cumprod` (timestep,).

    It is `"squaredcos_cap_v2"` of diffusers to the last bit, and always on the CPU.
    """

    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    times = [step / num_train_timesteps for step in range(num_train_timesteps + 1)]
    betas = [min(1 - signal(end) / signal(start), 0.999) for start, end in pairwise(times)]
    return torch.cumprod(1.0 - torch.tensor(betas, dtype=torch.float32, device="cpu"), dim=0)


def noise_levels(num_train_timesteps: int, prediction: str) -> tuple[Tensor, Tensor]:
    """Return the factor of the clean latent and the noise's standard deviation, each (timestep,).

    Flow matching goes straight from the clean latent to noise (Lipman et al. 2023, section 4.1):
    both add up to 1, where they do so in squares otherwise.
    """
    if prediction == FLOW:
        std = torch.arange(1, num_train_timesteps + 1, device="cpu") / num_train_timesteps
        return 1.0 - std, std
    alphas = training_schedule(num_train_timesteps)
    return alphas**0.5, (1.0 - alphas) ** 0.5


@lru_cache(maxsize=64)
def sampling_steps(
    sampler: str,
    num_train_timesteps: int,
    timesteps: tuple[int, ...],
    *,
    clipped: bool,
    flow: bool = False,
) -> tuple[SamplingStep, ...]:
    """Return the denoising steps of a sampler.

    `"ddim"` is the first-order DPM-Solver++, which is the same map as DDIM without noise (Lu et
    al. 2022, section 4): any number of steps will do, not only divisors of the training timesteps.
    With clipping it is that of Diffusion Policy: the clean latent is clipped, the direction of the
    noise comes from the unclipped one. For flow matching the same map is a step of Euler's method.

    Args:
        sampler: One of `SAMPLERS`.
        num_train_timesteps: Timesteps of the forward process.
        timesteps: Inference timesteps from the noisiest to the cleanest.
        clipped: Whether the predicted clean latent is clipped.
        flow: Whether the latent's path is that of flow matching.

    Raises:
        ConfigError: No sampler has that name, or it is not one for flow matching.
    """
    check_sampler(sampler, flow=flow)
    if flow:
        return _straight(num_train_timesteps, timesteps)
    alphas = training_schedule(num_train_timesteps)
    if sampler == "ddpm":
        return _ancestral(alphas, timesteps)
    if sampler == "ddim" and clipped:
        return _directed(alphas, timesteps)
    return _multistep(alphas, timesteps, 1 if sampler == "ddim" else 2, clipped=clipped)


def check_sampler(sampler: str, *, flow: bool) -> None:
    """Check that there is such a sampler, for diffusion or for flow matching.

    Raises:
        ConfigError: There is none.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"no sampler is called '{sampler}'", did_you_mean(sampler, SAMPLERS))
    if flow and sampler != "ddim":
        raise ConfigError(
            f"the model was trained by flow matching, which '{sampler}' does not sample",
            "use --sampler ddim, which is Euler's method there",
        )


def denoise(
    predict: Callable[[Tensor, Context], Tensor],
    contexts: Iterable[Context],
    steps: Sequence[SamplingStep],
    prediction: str,
    latent: Tensor,
    noise: Tensor,
    clip: float = 0.0,
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Denoise a batch of normalized latents; nothing in it needs the host.

    Args:
        predict: The network: maps noisy latents (batch, latent) and the context of a step to
            predictions (batch, latent).
        contexts: What the network is conditioned on, step by step.
        steps: What to compute.
        prediction: What the network predicts; see `clean_sample`.
        latent: What to start from (batch, latent).
        noise: Fresh noise (draw, batch, latent), a draw for every step that adds noise.
        clip: Bound of the clean latents, 0 for none.
        known: Latents (batch, latent) to keep to, and the weights (latent,) with which they guide
            every predicted clean latent, by its gradient.

    Returns:
        (batch, latent), normalized.
    """
    draws, previous = iter(noise.unbind()), latent
    for step, context in zip(steps, contexts, strict=True):
        clean: Tensor
        if known is None:
            predicted = predict(latent, context)
            clean = clean_sample(predicted, latent, prediction, step.signal, step.std)
        else:
            clean = _keeping_to(*known, predict, context, step, prediction, latent, clip)
        carried = latent
        if step.direction:
            signal, std = step.direction
            carried = (latent - signal * clean) / std
        if clip:
            clean = clean.clamp(-clip, clip)
        latent = step.clean * clean + step.carried * carried
        if step.change:
            outer, inner = step.change
            latent = latent + outer * (inner * (clean - previous))
        if step.noise is not None:
            latent = latent + step.noise * next(draws)
        previous = clean
    return latent


def _keeping_to(
    known: Tensor,
    weights: Tensor,
    predict: Callable[[Tensor, Context], Tensor],
    context: Context,
    step: SamplingStep,
    prediction: str,
    latent: Tensor,
    clip: float,
) -> Tensor:
    """Return predicted clean latents (batch, latent) that are guided towards known ones.

    It is the guidance of real-time chunking (Black, Galliker and Levine 2025, equations 2 to 4,
    after Song et al. 2023), which takes the known components for observations of the clean latent:
    the weighted difference from them goes back through the network, so that the other components
    change with those that are known. There the noise is that of flow matching; here any signal and
    noise will do. The difference is that of the clipped latents: from nearly pure noise, an error
    of a predicted noise is a far larger one of the clean latent.
    """
    with torch.enable_grad():
        noisy = latent.detach().requires_grad_()
        predicted = predict(noisy, context)
        clean = clean_sample(predicted, noisy, prediction, step.signal, step.std)
        seen = clean.detach()
        pull = weights * (known - (seen.clamp(-clip, clip) if clip else seen))
        (gradient,) = torch.autograd.grad(clean, noisy, pull)
    factor = (step.signal**2 + step.std**2) / max(step.signal, 1e-6)
    return clean.detach() + min(GUIDANCE_LIMIT * step.std, factor) * gradient


def coefficients(alpha_cumprod: float) -> tuple[float, float]:
    """Return the factor of the clean sample and the standard deviation of the noise.

    `alpha_cumprod` is the fraction of signal in the variance, as in diffusers' `alphas_cumprod`.
    """
    return alpha_cumprod**0.5, (1.0 - alpha_cumprod) ** 0.5


def clean_sample(
    predicted: Tensor, noisy: Tensor, prediction: str, signal: float, std: float
) -> Tensor:
    """Return the clean sample that a network's prediction implies, each (batch, latent).

    `prediction` is what the network predicts: `"sample"`, `"epsilon"`, `"v_prediction"` or `"flow"`
    (the noise less the clean sample). The noisy sample is `signal` times the clean one plus noise
    of the standard deviation `std`.
    """
    if prediction == "sample":
        return predicted
    if prediction == "epsilon":
        return (noisy - std * predicted) / signal
    if prediction == FLOW:
        return noisy - std * predicted
    return signal * noisy - std * predicted


def _levels(alpha: Tensor) -> tuple[float, float]:
    return float(alpha.sqrt()), float((1.0 - alpha).sqrt())


def _directed(alphas: Tensor, timesteps: Sequence[int]) -> tuple[SamplingStep, ...]:
    """DDIM as in Song et al. 2021, equation 12 with sigma 0."""
    # After the cleanest step only signal is left.
    following = [float(alphas[step]) for step in timesteps[1:]] + [1.0]
    return tuple(
        SamplingStep(
            step,
            *_levels(alphas[step]),
            *coefficients(next_alpha),
            direction=coefficients(float(alphas[step])),
        )
        for step, next_alpha in zip(timesteps, following, strict=True)
    )


def _straight(num_train_timesteps: int, timesteps: Sequence[int]) -> tuple[SamplingStep, ...]:
    """Euler's method along the straight paths of flow matching (Lipman et al. 2023)."""
    signal, std = noise_levels(num_train_timesteps, FLOW)
    levels = [(float(signal[step]), float(std[step])) for step in timesteps]
    return tuple(
        SamplingStep(step, *here, *after, direction=here)
        for step, here, after in zip(timesteps, levels, [*levels[1:], (1.0, 0.0)], strict=True)
    )


def _multistep(
    alphas: Tensor, timesteps: Sequence[int], order: int, *, clipped: bool
) -> tuple[SamplingStep, ...]:
    """DPM-Solver++ (Lu et al. 2022), midpoint: `DPMSolverMultistepScheduler` of diffusers."""
    sigmas = [((1.0 - alphas[step]) / alphas[step]) ** 0.5 for step in timesteps]
    sigmas.append(torch.zeros_like(alphas[0]))
    signal = [1.0 / ((sigma**2 + 1.0) ** 0.5) for sigma in sigmas]
    std = [sigma * factor for sigma, factor in zip(sigmas, signal, strict=True)]
    ratio = [s.log() - n.log() for s, n in zip(signal, std, strict=True)]  # half the log-SNR
    steps = []
    # The last sigma is 0, so the last step is of first order.
    for here, timestep in enumerate(timesteps):
        after = here + 1
        width = ratio[after] - ratio[here]
        clean = signal[after] * ((-width).exp() - 1.0)
        change = None
        if order == 2 and 0 < here < len(timesteps) - 1:
            inner = 1.0 / ((ratio[here] - ratio[here - 1]) / width)
            change = (-float(0.5 * clean), float(inner))
        # The clipped clean latent is computed as DDPM does it.
        given = (
            (float(signal[here]), float(std[here])) if not clipped else _levels(alphas[timestep])
        )
        carried = float(std[after] / std[here])
        steps.append(SamplingStep(timestep, *given, -float(clean), carried, change=change))
    return tuple(steps)


def _ancestral(alphas: Tensor, timesteps: Sequence[int]) -> tuple[SamplingStep, ...]:
    """DDPM (Ho et al. 2020, formula 7) with its smaller variance: `DDPMScheduler` of diffusers."""
    steps = []
    for timestep, before in zip(timesteps, [*timesteps[1:], None], strict=True):
        alpha = alphas[timestep]
        next_alpha = torch.ones_like(alpha) if before is None else alphas[before]
        kept = alpha / next_alpha
        clean = (next_alpha**0.5 * (1.0 - kept)) / (1.0 - alpha)
        carried = kept**0.5 * (1.0 - next_alpha) / (1.0 - alpha)
        variance = (1.0 - next_alpha) / (1.0 - alpha) * (1.0 - kept)
        noise = float(variance.clamp(min=1e-20) ** 0.5) if timestep else None
        steps.append(
            SamplingStep(timestep, *_levels(alpha), float(clean), float(carried), noise=noise)
        )
    return tuple(steps)
