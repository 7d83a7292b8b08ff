"""Diffusion over latents, conditioned on state, task and label (paper section 3.3).

Schedulers are diffusers', with clipping and thresholding switched off, because latents are not
images. Training and sampling work on normalized latents. What has a known range (the actions of
Diffusion Policy) is clipped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lwdctl.artifacts.artifact import Artifact
from lwdctl.configs import Sampler
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.models import ddim
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.files import Spec, check_custom, load_spec, load_weights
from lwdctl.models.normalizer import Normalizer, join_condition, normal_like

SAMPLERS = get_args(Sampler)
SMALLEST_SIGNAL = 0.05


@dataclass(frozen=True)
class DiffusionSpec(Spec):
    """What is needed to rebuild a latent diffusion model.

    Attributes:
        denoiser: The network.
        prediction: What it predicts: `"sample"`, `"v_prediction"` or `"epsilon"`.
        num_train_timesteps: Timesteps of the forward process.
        condition: Parts of the condition, out of state, task, label.
        state_size: Components of the state (all observations of its history together), 0 when
            the model is not conditioned on the state.
        tasks: Number of tasks (one-hot), 0 when the model is not conditioned on the task.
        labels: Number of labels (one-hot), 0 when it is not conditioned on the label.
        clip: Bound of the predicted clean sample, in normalized units, while sampling; 0 for
            no bound.
        history: Observations in the state: the current one and those before it. 1 when the
            model is not conditioned on the state.
    """

    denoiser: DenoiserSpec
    prediction: str
    num_train_timesteps: int
    condition: tuple[str, ...]
    state_size: int
    tasks: int
    labels: int
    clip: float = 0.0
    history: int = 1


class LatentDiffusion(nn.Module):
    """A denoiser and the normalizers of its latents and states.

    Args:
        spec: Sizes, condition and schedule.
        denoiser: A module of your own: it maps noisy latents (batch, latent), timesteps (batch,)
            and conditions (batch, condition) to predictions (batch, latent). Goes with
            `spec.denoiser.architecture == "custom"`.

    Attributes:
        alphas_cumprod: (timestep,), fraction of signal in the noisy latent, in variance; on the
            CPU.
        signal: (timestep,), factor of the clean latent in the noisy one.
        noise_std: (timestep,), standard deviation of the noise in it.

    Raises:
        ConfigError: A denoiser is missing or too many, or does not fit its layout.
    """

    signal: Tensor
    noise_std: Tensor

    def __init__(self, spec: DiffusionSpec, denoiser: nn.Module | None = None) -> None:
        super().__init__()
        check_custom(spec.denoiser.architecture, denoiser, "denoiser")
        self.spec = spec
        self.latent = Normalizer(spec.denoiser.latent_size)
        self.state = Normalizer(spec.state_size)
        self.denoiser = denoiser or spec.denoiser.build()
        self.alphas_cumprod = alphas = training_schedule(spec.num_train_timesteps)
        self.register_buffer("signal", alphas**0.5, persistent=False)
        self.register_buffer("noise_std", (1.0 - alphas) ** 0.5, persistent=False)

    @classmethod
    def load(cls, directory: Path, denoiser: nn.Module | None = None) -> LatentDiffusion:
        """Load what `train_diffusion(...).save` wrote: EMA weights, on the CPU, for inference.

        Raises:
            ConfigError: The module that it was trained with is missing, or there was none.
        """
        model = cls(DiffusionSpec.from_mapping(load_spec(directory)), denoiser)
        load_weights(model, directory)
        return model.eval()

    def condition(self, state: Tensor, task: Tensor, label: Tensor) -> Tensor:
        """Build the condition vector.

        Args:
            state: (batch, history * obs), environment units, oldest observation first.
            task: (batch,), task index.
            label: (batch,), label index. Parts that are not in `spec.condition` are ignored.

        Returns:
            (batch, condition).
        """
        size = self.spec.state_size
        seen = self.state.normalize(state) if size else state.new_zeros(len(state), 0)
        return join_condition(seen, (task, self.spec.tasks), (label, self.spec.labels))

    def loss(
        self,
        latent: Tensor,
        condition: Tensor,
        generator: torch.Generator,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return the mean squared error of the prediction on one batch, a scalar.

        Latents (batch, latent) are in the encoder's units, conditions are (batch, condition). A
        weight (batch, latent) of 0 leaves a component out of the mean.
        """
        clean = self.latent.normalize(latent)
        noise = normal_like(clean, generator)
        last, device = self.spec.num_train_timesteps, clean.device
        step = torch.randint(last, (len(clean),), generator=generator, device=device)
        signal, std = self.signal[step].unsqueeze(1), self.noise_std[step].unsqueeze(1)
        noisy = signal * clean + std * noise
        target = clean if self.spec.prediction == "sample" else noise
        if self.spec.prediction == "v_prediction":
            target = signal * noise - std * clean
        predicted = self.denoiser(noisy, step, condition)
        if weight is None:
            return nn.functional.mse_loss(predicted, target)
        error: Tensor = (predicted.float() - target).square() * weight
        return error.sum() / weight.sum().clamp(min=1.0)

    def _clean(self, predicted: Tensor, noisy: Tensor, timestep: int) -> Tensor:
        alpha = self.alphas_cumprod[timestep]
        signal, std = float(alpha.sqrt()), float((1.0 - alpha).sqrt())
        clean: Tensor = ddim.clean_sample(predicted, noisy, self.spec.prediction, signal, std)
        return clean

    def _clip(self, clean: Tensor) -> Tensor:
        return clean.clamp(-self.spec.clip, self.spec.clip)

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        generators: Sequence[torch.Generator],
        sampler: str = "ddim",
        steps: int = 10,
        start: Tensor | None = None,
        fraction: float = 1.0,
    ) -> Tensor:
        """Sample one latent per row of the condition.

        Args:
            condition: (batch, condition).
            generators: One CPU generator per row, so that a row's draw depends on no other.
            sampler: One of `SAMPLERS`.
            steps: Denoising steps, at most `num_train_timesteps`.
            start: Latents (batch, latent) to start from, in the encoder's units: they are
                noised to the level of the truncated schedule's first timestep. None starts from
                pure noise.
            fraction: Fraction of the denoising steps to run from `start`.

        Returns:
            (batch, latent), in the encoder's units.
        """
        size = self.spec.denoiser.latent_size
        rows = [torch.randn(size, generator=generator) for generator in generators]
        latent = torch.stack(rows).to(condition.device)
        timesteps = inference_timesteps(self.spec, steps)
        alphas: Any = self.alphas_cumprod
        if start is not None:
            timesteps = truncate_schedule(timesteps, fraction)
            signal, std = ddim.coefficients(float(alphas[timesteps[0]]))
            latent = signal * self.latent.normalize(start) + std * latent

        def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
            predicted: Tensor = self.denoiser(noisy, timestep.expand(len(noisy)), condition)
            return predicted

        def predict_clean(noisy: Tensor, timestep: int) -> Tensor:
            number = torch.tensor(timestep, device=noisy.device)
            return self._clean(denoise(noisy, number), noisy, timestep)

        if self.spec.clip and sampler == "ddim":
            latent = ddim.sample(predict_clean, latent, timesteps, alphas, self._clip)
            return self.latent.restore(latent)
        schedule = sampling_schedule(sampler, self.spec, timesteps, condition.device)
        noise = {"generator": list(generators)} if sampler == "ddpm" else {}
        for timestep in schedule.timesteps:
            predicted = denoise(latent, timestep)
            if self.spec.clip:
                predicted = self._clip(self._clean(predicted, latent, int(timestep)))
            latent = schedule.step(predicted, timestep, latent, **noise).prev_sample
        return self.latent.restore(latent)


def load_diffusion(
    artifact: Artifact, device: torch.device, denoiser: nn.Module | None = None
) -> LatentDiffusion:
    """Return the diffusion model of an artifact for inference; see `LatentDiffusion.load`."""
    artifact.check()
    return LatentDiffusion.load(artifact.path, denoiser).to(device)


def check_num_inference_steps(
    num_train_timesteps: int, num_inference_steps: int, model: str = "the model"
) -> None:
    """Check that a model was trained with at least as many denoising steps as are to be run.

    Raises:
        ConfigError: It was trained with fewer.
    """
    if num_inference_steps > num_train_timesteps:
        raise ConfigError(
            f"{model} was trained with {num_train_timesteps} denoising steps,"
            f" {num_inference_steps} are too many",
            f"use --num-inference-steps {num_train_timesteps} or fewer",
        )


def inference_timesteps(spec: DiffusionSpec, steps: int) -> list[int]:
    """Return the timesteps to denoise at, evenly spaced from the noisiest to the cleanest.

    The last training timesteps of the squared-cosine schedule hold almost no signal, so an error
    of the predicted noise is amplified when the sample is computed from it: epsilon-prediction
    starts at the noisiest timestep with 5 % of signal, unless the sample is clipped.
    """
    last = spec.num_train_timesteps
    if spec.prediction == "epsilon" and not spec.clip:
        signal = training_schedule(last).sqrt()
        last = max(1, int((signal >= SMALLEST_SIGNAL).sum()))
    places = torch.linspace(last, 0, min(steps, last) + 1, dtype=torch.float64)[:-1]
    return [int(place) - 1 for place in places.round()]


def truncate_schedule(timesteps: Sequence[int], fraction: float) -> list[int]:
    """Return the last inference timesteps: this fraction of them, at least one."""
    return list(timesteps[-max(1, round(fraction * len(timesteps))) :])


def sampling_schedule(
    sampler: str, spec: DiffusionSpec, timesteps: Sequence[int], device: torch.device
) -> Any:
    """Return diffusers' scheduler for a sampler, with its inference timesteps set.

    `"ddim"` without clipping is the first-order DPM-Solver++, which is the same map as DDIM
    without noise (Lu et al. 2022, section 4); diffusers' own DDIM assumes that the number of
    inference steps divides the number of training timesteps.

    Raises:
        ConfigError: No sampler has that name.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"no sampler is called '{sampler}'", did_you_mean(sampler, SAMPLERS))
    if spec.clip:  # the scheduler is given the clipped clean sample instead of the prediction
        spec = replace(spec, prediction="sample")
    if sampler == "ddpm":
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        schedule: Any = DDPMScheduler(
            **_shared(spec), clip_sample=False, thresholding=False, variance_type="fixed_small"
        )
    else:
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        schedule = DPMSolverMultistepScheduler(
            **_shared(spec),
            algorithm_type="dpmsolver++",
            solver_order=1 if sampler == "ddim" else 2,
            solver_type="midpoint",
            thresholding=False,
            lower_order_final=True,
            euler_at_final=False,
            final_sigmas_type="zero",
        )
    schedule.set_timesteps(timesteps=list(timesteps), device=device)
    return schedule


def training_schedule(num_train_timesteps: int) -> Tensor:
    """Return the squared-cosine schedule (Nichol and Dhariwal 2021): `alphas_cumprod` (timestep,).

    It is `"squaredcos_cap_v2"` of diffusers to the last bit; training needs no other part of
    diffusers, whose import takes longer than that of torch.
    """

    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    times = [step / num_train_timesteps for step in range(num_train_timesteps + 1)]
    betas = [min(1 - signal(end) / signal(start), 0.999) for start, end in pairwise(times)]
    return torch.cumprod(1.0 - torch.tensor(betas, dtype=torch.float32), dim=0)


def _shared(spec: DiffusionSpec) -> dict[str, Any]:
    return {
        "num_train_timesteps": spec.num_train_timesteps,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": spec.prediction,
        "rescale_betas_zero_snr": False,
    }
