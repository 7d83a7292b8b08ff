"""Diffusion over latents, conditioned on state, task and label (paper section 3.3).

Training and sampling work on normalized latents. What has a known range (the actions of Diffusion
Policy) is clipped while sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from lwdctl.artifacts.artifact import Artifact
from lwdctl.configs import Prediction
from lwdctl.core.errors import ConfigError
from lwdctl.models import DENOISERS
from lwdctl.models.cuda_graphs import CudaGraphCache
from lwdctl.models.denoiser import Denoiser, DenoiserSpec
from lwdctl.models.files import CUSTOM, Count, Size, Spec, check_custom, load_model
from lwdctl.models.normalizer import Normalizer, join_condition, normal_like
from lwdctl.models.products import SMALLEST_SIDE, fast_products
from lwdctl.models.samplers import (
    FLOW,
    SamplingStep,
    check_sampler,
    coefficients,
    denoise,
    noise_levels,
    sampling_steps,
    training_schedule,
)

SMALLEST_SIGNAL = 0.05

ConditionPart = Literal["state", "task", "label"]


@dataclass(frozen=True)
class DiffusionSpec(Spec):
    """What is needed to rebuild a latent diffusion model.

    Attributes:
        denoiser: The network.
        prediction: What it predicts: `"sample"`, `"v_prediction"`, `"epsilon"` or `"flow"`.
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
        can_hide: Whether conditions were hidden in training. They then have one component more: 1,
            or 0 like all others where the condition is hidden.
    """

    denoiser: DenoiserSpec
    prediction: Prediction
    num_train_timesteps: Annotated[int, Meta(ge=1, le=100_000)]
    condition: tuple[ConditionPart, ...]
    state_size: Count
    tasks: Count
    labels: Count
    clip: Annotated[float, Meta(ge=0)] = 0.0
    history: Size = 1
    can_hide: bool = False

    def check(self) -> None:
        """Check that the condition is what its parts add up to."""
        self.denoiser.check()
        sizes = {"state": self.state_size, "task": self.tasks, "label": self.labels}
        if {part for part, size in sizes.items() if size} != {*self.condition}:
            raise ValueError(f"condition: it does not have the parts of the sizes {sizes}")
        if self.denoiser.condition_size != sum(sizes.values()) + self.can_hide:
            raise ValueError(f"denoiser.condition_size: it is not the sum of {sizes}")
        if self.state_size % self.history:
            raise ValueError("state_size: it is no multiple of the history")

    def sampling_steps(self, sampler: str, timesteps: Sequence[int]) -> tuple[SamplingStep, ...]:
        """Return the denoising steps of a sampler at these timesteps; see `sampling_steps`."""
        clipped, flow = bool(self.clip), self.prediction == FLOW
        return sampling_steps(
            sampler, self.num_train_timesteps, tuple(timesteps), clipped=clipped, flow=flow
        )


class LatentDiffusion(nn.Module):
    """A denoiser and the normalizers of its latents and states.

    Args:
        spec: Sizes, condition and schedule.
        denoiser: A module of your own: it maps noisy latents (batch, latent), timesteps (batch,)
            and conditions (batch, condition) to predictions (batch, latent). Goes with
            `spec.denoiser.architecture == "custom"`.

    Attributes:
        alphas_cumprod: (timestep,), fraction of signal in the noisy latent, in variance; on the
            CPU. Flow matching does without.
        signal: (timestep,), factor of the clean latent in the noisy one.
        noise_std: (timestep,), standard deviation of the noise in it.
        graphs: CUDA graphs of sampling; set its `mode` to `"off"` to sample eagerly on CUDA.

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
        self.alphas_cumprod = training_schedule(spec.num_train_timesteps)
        signal, std = noise_levels(spec.num_train_timesteps, spec.prediction)
        self.register_buffer("signal", signal, persistent=False)
        self.register_buffer("noise_std", std, persistent=False)
        self.graphs = CudaGraphCache()

    @classmethod
    def load(cls, directory: Path, denoiser: nn.Module | None = None) -> LatentDiffusion:
        """Load what `train_diffusion(...).save` wrote: EMA weights, on the CPU, for inference.

        Raises:
            ConfigError: The module that it was trained with is missing, or there was none.
            ArtifactError: The files are missing, damaged, or not those of a diffusion model.
        """
        spec = DiffusionSpec.load(directory)
        built_in = spec.denoiser.architecture in {*DENOISERS.rows, CUSTOM}
        return load_model(lambda: cls(spec, denoiser), directory, checked_first=built_in)

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
        joined = join_condition(seen, (task, self.spec.tasks), (label, self.spec.labels))
        if not self.spec.can_hide:
            return joined
        return torch.cat([joined, joined.new_ones(len(joined), 1)], dim=1)

    def loss(
        self,
        latent: Tensor,
        condition: Tensor,
        generator: torch.Generator,
        weight: Tensor | None = None,
        condition_dropout: float = 0.0,
    ) -> Tensor:
        """Return the mean squared error of the prediction on one batch, a scalar.

        Latents (batch, latent) are in the encoder's units, conditions are (batch, condition). A
        weight (batch, latent) of 0 leaves a component out of the mean. Each condition is hidden
        with the probability `condition_dropout`, for guidance (Ho and Salimans 2021, algorithm 1).
        A denoiser may have a `training_loss` of its own, which sees no weight.
        """
        if condition_dropout:
            drawn = torch.rand(len(latent), 1, generator=generator, device=latent.device)
            condition = condition * (drawn >= condition_dropout)
        clean = self.latent.normalize(latent)
        noise = normal_like(clean, generator)
        own = getattr(self.denoiser, "training_loss", None)
        if own is not None:
            given: Tensor = own(clean, condition, noise)
            return given
        last, device = self.spec.num_train_timesteps, clean.device
        step = torch.randint(last, (len(clean),), generator=generator, device=device)
        signal, std = self.signal[step].unsqueeze(1), self.noise_std[step].unsqueeze(1)
        noisy = signal * clean + std * noise
        target = clean if self.spec.prediction == "sample" else noise
        if self.spec.prediction == "v_prediction":
            target = signal * noise - std * clean
        elif self.spec.prediction == FLOW:
            target = noise - clean
        predicted = self.denoiser(noisy, step, condition)
        if weight is None:
            return nn.functional.mse_loss(predicted, target)
        error: Tensor = (predicted.float() - target).square() * weight
        return error.sum() / weight.sum().clamp(min=1.0)

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        generators: Sequence[torch.Generator],
        sampler: str = "ddim",
        steps: int = 10,
        start: Tensor | None = None,
        fraction: float = 1.0,
        guidance: float = 1.0,
        kept: Tensor | None = None,
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
            guidance: Factor of the difference that the condition makes to a prediction: 1 as
                trained, 0 without the condition (Ho and Salimans 2021, formula 6, where it is
                1 + w).
            kept: (latent,), weights from 0 to 1. Given, sampling starts from pure noise,
                `fraction` is ignored, and every predicted clean latent is guided towards `start`
                with these weights, by gradients through the denoiser.

        Returns:
            (batch, latent), in the encoder's units.
        """
        if start is not None and kept is not None and torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # gradients need tensors that were made outside of it
                given, begin, weights = condition.clone(), start.clone(), kept.clone()
                how = sampler, steps, begin, fraction, guidance, weights
                return self.sample(given, generators, *how)
        spec, device = self.spec, condition.device
        timesteps = inference_timesteps(spec, steps)
        if start is not None and kept is None:
            timesteps = truncate_schedule(timesteps, fraction)
        table = spec.sampling_steps(sampler, timesteps)
        draws = 1 + sum(step.noise is not None for step in table)
        noise = draw_noise(generators, draws, spec.denoiser.latent_size, device)
        inputs = [noise, condition]
        if start is not None:
            inputs += [start] if kept is None else [start, kept]
        on_cuda = device.type == "cuda"
        upload = _uploaded if on_cuda else torch.tensor
        given = upload(tuple(timesteps), device=device)
        run = partial(self.denoise, table, given, guidance=guidance)
        if on_cuda:
            return self.graphs.run(self, (table, guidance), run, inputs)
        with fast_products() if len(condition) >= SMALLEST_SIDE else nullcontext():
            return run(*inputs)

    def denoise(
        self,
        steps: Sequence[SamplingStep],
        timesteps: Tensor,
        noise: Tensor,
        condition: Tensor,
        start: Tensor | None = None,
        kept: Tensor | None = None,
        *,
        guidance: float = 1.0,
    ) -> Tensor:
        """Sample with noise that is given; nothing in it needs the host.

        Args:
            steps: What to compute.
            timesteps: (step,), their timesteps on the model's device.
            noise: (draw, batch, latent): what to start from, then a draw for every step that adds
                noise.
            condition: (batch, condition).
            start: Latents (batch, latent) to start from or to keep to; see `sample`.
            kept: (latent,), weights with which `start` is kept to; see `sample`.
            guidance: Factor of the difference that the condition makes; see `sample`.

        Returns:
            (batch, latent), in the encoder's units.
        """
        latent, network = noise[0], self.denoiser
        known = None
        if start is not None and kept is not None:
            known = self.latent.normalize(start), kept
        elif start is not None:
            if self.spec.prediction == FLOW:
                signal, std = steps[0].signal, steps[0].std
            else:
                signal, std = coefficients(float(self.alphas_cumprod[steps[0].timestep]))
            latent = signal * self.latent.normalize(start) + std * latent
        is_guided = guidance != 1
        if is_guided:  # the hidden conditions below the others
            condition = torch.cat([condition, torch.zeros_like(condition)])
        contexts: Iterable[Any]
        predict: Callable[[Tensor, Any], Tensor]
        if isinstance(network, Denoiser):
            predict, contexts = network.predict, network.contexts(timesteps, condition)
        else:
            rows = len(condition)

            def predict(noisy: Tensor, step: Tensor) -> Tensor:
                predicted: Tensor = network(noisy, step.expand(rows), condition)
                return predicted

            contexts = timesteps
        if is_guided:
            predict = partial(_guided, predict, guidance)
        latent = denoise(
            predict, contexts, steps, self.spec.prediction, latent, noise[1:], self.spec.clip, known
        )
        return self.latent.restore(latent)


def _guided(
    predict: Callable[[Tensor, Any], Tensor], guidance: float, noisy: Tensor, context: Any
) -> Tensor:
    """Return guided predictions (batch, latent); see `LatentDiffusion.sample`.

    The context is that of all conditions, then of as many hidden ones.
    """
    conditional, unconditional = predict(torch.cat([noisy, noisy]), context).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def draw_noise(
    generators: Sequence[torch.Generator], draws: int, size: int, device: torch.device
) -> Tensor:
    """Return standard normal noise (draw, row, size), row by row from the rows' CPU generators."""
    # A copy from pinned memory does not wait for what the device does.
    noise = torch.empty(draws, len(generators), size, pin_memory=device.type == "cuda")
    for draw in noise:
        for row, generator in zip(draw, generators, strict=True):
            row.normal_(generator=generator)
    return noise.to(device, non_blocking=True)


@lru_cache(maxsize=64)
def _uploaded(timesteps: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(timesteps, device=device)


def load_diffusion(
    artifact: Artifact, device: torch.device, denoiser: nn.Module | None = None
) -> LatentDiffusion:
    """Return the diffusion model of an artifact for inference; see `LatentDiffusion.load`."""
    artifact.check()
    return LatentDiffusion.load(artifact.path, denoiser).to(device)


def check_sampling(
    spec: DiffusionSpec,
    sampler: str,
    num_inference_steps: int,
    guidance: float = 1.0,
    model: str = "the model",
) -> None:
    """Check that a model can be sampled so.

    Raises:
        ConfigError: The sampler is none for this model, it was trained with fewer timesteps, or
            it cannot be guided.
    """
    check_sampler(sampler, flow=spec.prediction == FLOW)
    if guidance != 1 and not spec.can_hide:
        raise ConfigError(
            f"{model} cannot be guided: its condition was never hidden in training",
            "leave --guidance out, evaluate the models alone that can be guided, or train this one"
            " with --condition-dropout 0.1 (train-diffusion, train-baseline dp and ldp)",
        )
    if num_inference_steps > spec.num_train_timesteps:
        raise ConfigError(
            f"{model} was trained with {spec.num_train_timesteps} denoising steps,"
            f" {num_inference_steps} are too many",
            f"use --num-inference-steps {spec.num_train_timesteps} or fewer",
        )


def inference_timesteps(spec: DiffusionSpec, steps: int) -> list[int]:
    """Return the timesteps to denoise at, evenly spaced from the noisiest to the cleanest.

    The last training timesteps of the squared-cosine schedule hold almost no signal, so an error
    of the predicted noise is amplified when the sample is computed from it: epsilon-prediction
    starts at the noisiest timestep with 5 % of signal, unless the sample is clipped.
    """
    last = spec.num_train_timesteps
    if spec.prediction == "epsilon" and not spec.clip:
        last = _with_signal(last)
    places = torch.linspace(last, 0, min(steps, last) + 1, dtype=torch.float64)[:-1]
    return [int(place) - 1 for place in places.round()]


def truncate_schedule(timesteps: Sequence[int], fraction: float) -> list[int]:
    """Return the last inference timesteps: this fraction of them, at least one."""
    return list(timesteps[-max(1, round(fraction * len(timesteps))) :])


@lru_cache
def _with_signal(num_train_timesteps: int) -> int:
    signal = training_schedule(num_train_timesteps).sqrt()
    return max(1, int((signal >= SMALLEST_SIGNAL).sum()))
