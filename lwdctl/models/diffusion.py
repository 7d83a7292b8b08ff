"""Diffusion over latents, conditioned on state, task and label (paper section 4.2).

Schedulers are diffusers'; every field that matters is set here because its defaults clip
samples. Training and sampling work on latents standardised by their total deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor, nn

from lwdctl.models.affine import Affine
from lwdctl.models.denoiser import DenoiserSpec

SAMPLERS = ("ddpm", "ddim", "dpm-solver")
PREDICTIONS = ("sample", "v_prediction", "epsilon")


@dataclass(frozen=True)
class DiffusionSpec:
    """Everything needed to rebuild a latent diffusion model.

    Attributes:
        denoiser: The network.
        prediction: What it predicts: `"sample"`, `"v_prediction"` or `"epsilon"`.
        train_steps: Denoising steps of the forward process.
        condition: Parts of the condition, out of state, task, label.
        state_size: Components of the state (of all observations in its history), 0 when
            it is no condition.
        tasks: Number of tasks (one-hot), 0 when the task is no condition.
        labels: Number of labels (one-hot), 0 when the label is no condition.
    """

    denoiser: DenoiserSpec
    prediction: str
    train_steps: int
    condition: tuple[str, ...]
    state_size: int
    tasks: int
    labels: int

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
        self.latent = Affine(spec.denoiser.latent_size)
        self.state = Affine(spec.state_size)
        self.denoiser = spec.denoiser.build()
        self._training_schedule = scheduler("ddpm", spec)

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
            latent: (batch, latent), as the encoder gave it (not standardised).
            condition: (batch, condition).
            generator: Source of steps and noise.
        """
        clean = self.latent.normalize(latent)
        device = generator.device
        noise = torch.randn(clean.shape, generator=generator, device=device).to(clean.device)
        step = torch.randint(
            self.spec.train_steps, (len(clean),), generator=generator, device=device
        ).to(clean.device)
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

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        generators: Sequence[torch.Generator],
        sampler: str = "ddim",
        steps: int = 10,
    ) -> Tensor:
        """Draw one latent per row of the condition.

        Args:
            condition: (batch, condition).
            generators: One CPU generator per row, so that a row's draw depends on no other.
            sampler: One of `SAMPLERS`.
            steps: Denoising steps, at most the training steps.

        Returns:
            (batch, latent), in the encoder's units.
        """
        schedule = scheduler(sampler, self.spec)
        schedule.set_timesteps(steps, device=condition.device)
        size = self.spec.denoiser.latent_size
        rows = [torch.randn(size, generator=generator) for generator in generators]
        latent = torch.stack(rows).to(condition.device)
        noise = {"generator": list(generators)} if sampler == "ddpm" else {}
        for step in schedule.timesteps:
            predicted = self.denoiser(latent, step.expand(len(latent)), condition)
            latent = schedule.step(predicted, step, latent, **noise).prev_sample
        return self.latent.restore(latent)


def scheduler(sampler: str, spec: DiffusionSpec) -> Any:
    """Make diffusers' scheduler for a sampler name, with nothing left to its defaults."""
    # The last step of the squared-cosine schedule is all but pure noise: dividing the
    # predicted noise's error by its signal blows up, so epsilon starts a little earlier.
    spacing = "leading" if spec.prediction == "epsilon" else "trailing"
    shared = {
        "num_train_timesteps": spec.train_steps,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": spec.prediction,
        "timestep_spacing": spacing,
    }
    if sampler == "ddpm":
        return DDPMScheduler(**shared, clip_sample=False, variance_type="fixed_small")
    if sampler == "ddim":
        return DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=True)
    return DPMSolverMultistepScheduler(**shared, algorithm_type="dpmsolver++", solver_order=2)
