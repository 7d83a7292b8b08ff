"""Diffusion over latents, conditioned on state, task and label (paper section 4.2).

Schedulers are diffusers', with their clipping and thresholding off: latents are not images.
Training and sampling work on latents standardized by their total deviation. What has a known
range (the actions of Diffusion Policy) is clipped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor, nn

from lwdctl.core.errors import ConfigError
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.noise import normal_like
from lwdctl.models.normalizer import Normalizer

SAMPLERS = ("ddpm", "ddim", "dpm-solver")
PREDICTIONS = ("sample", "v_prediction", "epsilon")
SMALLEST_SIGNAL = 0.05


@dataclass(frozen=True)
class DiffusionSpec:
    """Everything needed to rebuild a latent diffusion model.

    Attributes:
        denoiser: The network.
        prediction: What it predicts: `"sample"`, `"v_prediction"` or `"epsilon"`.
        num_train_timesteps: Denoising steps of the forward process.
        condition: Parts of the condition, out of state, task, label.
        state_size: Components of the state (of all observations in its history), 0 when
            it is no condition.
        tasks: Number of tasks (one-hot), 0 when the task is no condition.
        labels: Number of labels (one-hot), 0 when the label is no condition.
        clip: Bound of the predicted clean sample, in normalized units, while sampling; 0 for
            none.
        history: Observations in the state, the current one and those before it; 1 when the
            state is no condition.
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

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DiffusionSpec:
        """Rebuild from what `to_mapping` returned, after a trip through JSON."""
        denoiser = DenoiserSpec.from_mapping(values["denoiser"])
        return cls(**{**values, "denoiser": denoiser, "condition": tuple(values["condition"])})


class LatentDiffusion(nn.Module):
    """Denoiser with the statistics of what it was trained on."""

    def __init__(self, spec: DiffusionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.latent = Normalizer(spec.denoiser.latent_size)
        self.state = Normalizer(spec.state_size)
        self.denoiser = spec.denoiser.build()
        self._training_schedule = _training_schedule(spec)

    def condition(self, state: Tensor, task: Tensor, label: Tensor) -> Tensor:
        """Build the condition vector.

        Args:
            state: (batch, history * obs), environment units; ignored unless a condition.
            task: (batch,) task index; ignored unless a condition.
            label: (batch,) label index; ignored unless a condition.

        Returns:
            (batch, condition).
        """
        parts = []
        if self.spec.state_size:
            parts.append(self.state.normalize(state))
        if self.spec.tasks:
            parts.append(nn.functional.one_hot(task, self.spec.tasks).to(state.dtype))
        if self.spec.labels:
            parts.append(nn.functional.one_hot(label, self.spec.labels).to(state.dtype))
        return torch.cat(parts, dim=1) if parts else state.new_zeros(len(state), 0)

    def loss(self, latent: Tensor, condition: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the prediction on one batch.

        Args:
            latent: (batch, latent), as the encoder gave it (not standardized).
            condition: (batch, condition).
            generator: Source of steps and noise.
        """
        clean = self.latent.normalize(latent)
        noise = normal_like(clean, generator)
        count = (len(clean),)
        step = torch.randint(self.spec.num_train_timesteps, count, generator=generator).to(
            clean.device
        )
        noisy = self._training_schedule.add_noise(clean, noise, step)
        wanted = self._wanted(clean, noise, step)
        return nn.functional.mse_loss(self.denoiser(noisy, step, condition), wanted)

    def _wanted(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        if self.spec.prediction == "sample":
            return clean
        if self.spec.prediction == "epsilon":
            return noise
        velocity: Tensor = self._training_schedule.get_velocity(clean, noise, step)
        return velocity

    def _clean(self, predicted: Tensor, noisy: Tensor, step: Tensor) -> Tensor:
        """Return the clean sample that a prediction stands for."""
        if self.spec.prediction == "sample":
            return predicted
        share = self._training_schedule.alphas_cumprod[int(step)]
        signal, noise = float(share.sqrt()), float((1.0 - share).sqrt())
        if self.spec.prediction == "epsilon":
            return (noisy - noise * predicted) / signal
        return signal * noisy - noise * predicted

    def _clipped_ddim(self, latent: Tensor, condition: Tensor, visited: Sequence[int]) -> Tensor:
        """Run DDIM as Diffusion Policy has it: the sample is clipped, the noise it tells is not.

        A solver given the clipped sample would work the noise out anew from it.
        """
        shares = self._training_schedule.alphas_cumprod
        for step, following in zip(visited, [*visited[1:], -1], strict=True):
            number = torch.tensor(step, device=latent.device)
            predicted = self.denoiser(latent, number.expand(len(latent)), condition)
            clean, now = self._clean(predicted, latent, number), float(shares[step])
            noise = (latent - now**0.5 * clean) / (1.0 - now) ** 0.5
            share = float(shares[following]) if following >= 0 else 1.0
            clipped = clean.clamp(-self.spec.clip, self.spec.clip)
            latent = share**0.5 * clipped + (1.0 - share) ** 0.5 * noise
        return latent

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
        """Draw one latent per row of the condition.

        Args:
            condition: (batch, condition).
            generators: One CPU generator per row, so that a row's draw depends on no other.
            sampler: One of `SAMPLERS`.
            steps: Denoising steps, at most the training steps.
            start: Latents (batch, latent) to begin from, in the encoder's units: they are
                noised as much as the first step of `remaining` says. None begins from noise.
            fraction: Share of the denoising steps to do from `start`.

        Returns:
            (batch, latent), in the encoder's units.
        """
        size = self.spec.denoiser.latent_size
        rows = [torch.randn(size, generator=generator) for generator in generators]
        latent = torch.stack(rows).to(condition.device)
        visited = timesteps(self.spec, steps)
        if start is not None:
            visited = remaining(visited, fraction)
            latent = self._noised(self.latent.normalize(start), latent, visited[0])
        if self.spec.clip and sampler == "ddim":
            return self.latent.restore(self._clipped_ddim(latent, condition, visited))
        schedule = sampling_schedule(sampler, self.spec, visited, condition.device)
        noise = {"generator": list(generators)} if sampler == "ddpm" else {}
        for step in schedule.timesteps:
            predicted = self.denoiser(latent, step.expand(len(latent)), condition)
            if self.spec.clip:
                clean = self._clean(predicted, latent, step)
                predicted = clean.clamp(-self.spec.clip, self.spec.clip)
            latent = schedule.step(predicted, step, latent, **noise).prev_sample
        return self.latent.restore(latent)

    def _noised(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        share = float(self._training_schedule.alphas_cumprod[step])
        noisy: Tensor = share**0.5 * clean + (1.0 - share) ** 0.5 * noise
        return noisy


def check_steps(trained: int, asked: int, model: str = "the model") -> None:
    """Refuse more denoising steps than a model was trained with.

    Raises:
        ConfigError: It was asked for more.
    """
    if asked > trained:
        raise ConfigError(
            f"{model} was trained with {trained} denoising steps, {asked} are too many"
        )


def timesteps(spec: DiffusionSpec, steps: int) -> list[int]:
    """Return the denoising steps to visit, evenly spaced from the noisiest to the cleanest.

    The last steps of the squared-cosine schedule hold next to no signal, so an error of a
    predicted noise blows up when the sample is computed from it: epsilon-prediction starts
    at the noisiest step with 5 % of signal, unless the sample is clipped.
    """
    last = spec.num_train_timesteps
    if spec.prediction == "epsilon" and not spec.clip:
        signal = _training_schedule(spec).alphas_cumprod.sqrt()
        last = max(1, int((signal >= SMALLEST_SIGNAL).sum()))
    places = torch.linspace(last, 0, min(steps, last) + 1, dtype=torch.float64)[:-1]
    return [int(place) - 1 for place in places.round()]


def remaining(visited: Sequence[int], fraction: float) -> list[int]:
    """Return the last steps of a schedule: this fraction of them, at least one."""
    return list(visited[-max(1, round(fraction * len(visited))) :])


def sampling_schedule(
    sampler: str, spec: DiffusionSpec, visited: Sequence[int], device: torch.device
) -> Any:
    """Make diffusers' scheduler for a sampler name, with the steps it visits set.

    DDIM without noise is the first-order DPM-Solver++ (Lu et al. 2022, section 4). It is
    used here because diffusers' DDIM assumes that steps divide the training steps evenly.
    """
    if spec.clip:  # the prediction has become a clipped sample before the scheduler sees it
        spec = replace(spec, prediction="sample")
    if sampler == "ddpm":
        schedule = _training_schedule(spec)
        schedule.set_timesteps(timesteps=list(visited), device=device)
        return schedule
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
    schedule.set_timesteps(timesteps=list(visited), device=device)
    return schedule


def _training_schedule(spec: DiffusionSpec) -> DDPMScheduler:
    return DDPMScheduler(
        **_shared(spec), clip_sample=False, thresholding=False, variance_type="fixed_small"
    )


def _shared(spec: DiffusionSpec) -> dict[str, Any]:
    return {
        "num_train_timesteps": spec.num_train_timesteps,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": spec.prediction,
        "rescale_betas_zero_snr": False,
    }
