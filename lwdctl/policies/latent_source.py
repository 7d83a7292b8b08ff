"""Where a policy's latents come from: sampled by diffusion, or one of the controls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import FloatArray
from lwdctl.core.seeding import derive_seed, generator
from lwdctl.data.batches import SnippetBatches
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.device import upload
from lwdctl.policies.policy import EpisodePlan, condition_indices


@dataclass(frozen=True)
class ReplanRequest:
    """One request for latents, one row per environment.

    Attributes:
        plans: The episodes; None for idle environments.
        numbers: (env,) re-plans of the episode so far.
        steps: (env,) steps of the episode so far.
        state: (env, history * obs), environment units, oldest observation first.
        due: (env,) whether the latent will be used, or None for all.
        previous: (env, latent), the latent of the last re-plan; anything finite before the first
            one. None where nothing can be continued.
    """

    plans: Sequence[EpisodePlan | None]
    numbers: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    state: Tensor
    due: npt.NDArray[np.bool_] | None = None
    previous: Tensor | None = None


class LatentSource(ABC):
    """Gives latents.

    Attributes:
        denoises: Whether a re-plan costs denoiser calls.
        history: Observations in the state of a request.
    """

    denoises = False
    history = 1

    @abstractmethod
    def latents(self, request: ReplanRequest) -> Tensor:
        """Return (env, latent)."""


@dataclass
class SampledLatents(LatentSource):
    """Latents that the diffusion model samples under the current condition.

    Attributes:
        warm_start: Fraction of the denoising steps to run at an episode's later re-plans, starting
            from the re-noised previous latent; 0 always starts from pure noise.
        guidance: Factor of the difference that the condition makes; 1 as trained.
        kept: (latent,), weights with which later latents keep to the previous one; see
            `LatentDiffusion.sample`. None draws them anew.
    """

    denoises = True

    model: LatentDiffusion
    tasks: tuple[str, ...]
    labels: tuple[str, ...]
    sampler: str
    steps: int
    history: int
    warm_start: float = 0.0
    guidance: float = 1.0
    kept: Tensor | None = None

    def latents(self, request: ReplanRequest) -> Tensor:
        """Sample with noise that the episode's seed and the number of re-plans fix."""
        if not (self.warm_start or self.kept is not None) or request.previous is None:
            return self._draw(request)
        # Each part runs all environments, so that a batch always has the same shape.
        later = request.numbers > 0
        due = np.ones_like(later) if request.due is None else request.due
        if not (later & due).any():
            return self._draw(request)
        continued = self._draw(request, request.previous)
        if later[due].all():
            return continued
        chosen = upload(later, continued.device).unsqueeze(1)
        return torch.where(chosen, continued, self._draw(request))

    def _draw(self, request: ReplanRequest, previous: Tensor | None = None) -> Tensor:
        task = self._indices(request, "task", self.tasks)
        label = self._indices(request, "label", self.labels)
        condition = self.model.condition(request.state, task, label)
        generators = [
            torch.Generator().manual_seed(derive_seed("latent", plan.task, plan.seed, int(number)))
            if plan
            else torch.Generator().manual_seed(0)
            for plan, number in zip(request.plans, request.numbers, strict=True)
        ]
        sampling = self.sampler, self.steps, previous, self.warm_start, self.guidance, self.kept
        return self.model.sample(condition, generators, *sampling)

    def _indices(self, request: ReplanRequest, part: str, names: tuple[str, ...]) -> Tensor:
        used = part in self.model.spec.condition
        found = condition_indices(part, request.plans, names) if used else [0] * len(request.plans)
        return upload(np.array(found, dtype=np.int64), request.state.device)


@dataclass
class OracleLatents(LatentSource):
    """The encoded snippets of the demonstration itself: the VAE without the diffusion model."""

    model: PolicyVae
    batches: SnippetBatches
    lengths: npt.NDArray[np.int64]

    @torch.no_grad()
    def latents(self, request: ReplanRequest) -> Tensor:
        """Encode the snippet that starts at the episode's current step, or the last one before."""
        if any(plan and plan.demonstration < 0 for plan in request.plans):
            raise ConfigError(
                "the latent 'oracle' needs episodes that restore a demonstration",
                "lwdctl eval --latent oracle",
            )
        episodes = np.array([plan.demonstration if plan else 0 for plan in request.plans])
        starts = (self.batches.rule.counts(self.lengths[episodes]) - 1) * self.batches.rule.stride
        batch = self.batches.cut(episodes, np.minimum(request.steps, starts))
        mean, _ = self.model.encode(batch)
        return mean


@dataclass
class RecordedLatents(LatentSource):
    """Latents of recorded snippets, drawn with the episode's seed: of another task, or its own.

    With one task: of another label than the episode's if it has one, otherwise any snippet.

    Attributes:
        own: Draw any snippet of the episode's own task and label instead.
    """

    mean: npt.NDArray[np.float32]
    task: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    tasks: tuple[str, ...]
    labels: tuple[str, ...]
    own: bool = False

    def latents(self, request: ReplanRequest) -> Tensor:
        """Draw latents that the episode's seed and the number of re-plans fix."""
        rows = [
            self._row(plan, int(number)) if plan else 0
            for plan, number in zip(request.plans, request.numbers, strict=True)
        ]
        return upload(self.mean[rows], request.state.device)

    def _row(self, plan: EpisodePlan, number: int) -> int:
        if self.own:
            rng = generator("own-latent", plan.task, plan.seed, number)
            return int(rng.choice(_some(self._own(plan), plan)))
        rng = generator("other-latent", plan.task, plan.seed, number)
        if len(self.tasks) > 1:
            others = sorted({*self.task.tolist()} - {self._task_of(plan), -1})
            drawn = generator("other-task", plan.task, plan.seed).choice(others) if others else -1
            rows = np.flatnonzero(self.task == drawn)
        elif plan.label in self.labels and len(self.labels) > 1:
            rows = np.flatnonzero(self.label != self.labels.index(plan.label))
        else:
            rows = np.arange(len(self.mean))
        return int(rng.choice(_some(rows, plan)))

    def _task_of(self, plan: EpisodePlan) -> int:
        if plan.task not in self.tasks:
            raise ConfigError(
                f"recorded latents are chosen by task, and the data have no task '{plan.task}'",
                f"name one of theirs: {', '.join(self.tasks)}",
            )
        return self.tasks.index(plan.task)

    def _own(self, plan: EpisodePlan) -> npt.NDArray[np.intp]:
        same = np.ones(len(self.mean), dtype=bool)
        if len(self.tasks) > 1:
            same &= self.task == self._task_of(plan)
        if plan.label in self.labels:
            same &= self.label == self.labels.index(plan.label)
        return np.flatnonzero(same)


@dataclass
class NearestLatents(RecordedLatents):
    """The latents of the recorded snippets whose first observation is nearest to the current one.

    Nearest among those of the episode's own task and label, by the Euclidean distance of
    normalized observations, with the history that the diffusion model would see. It tells how much
    of a sampled policy's success is retrieval.

    Attributes:
        state: (snippet, history * obs), what was observed up to each snippet's first step,
            environment units, oldest observation first.
        std: (obs,), what a distance is measured in.
    """

    state: FloatArray = field(kw_only=True)
    std: FloatArray = field(kw_only=True)

    def __post_init__(self) -> None:
        """See as many observations as the recorded states hold."""
        self.history = self.state.shape[1] // len(self.std)

    def latents(self, request: ReplanRequest) -> Tensor:
        """Return the latent of the nearest snippet for every environment."""
        current = request.state.cpu().numpy()
        due = [True] * len(current) if request.due is None else request.due
        rows = [
            self._nearest(plan, row) if plan and needed else 0
            for plan, row, needed in zip(request.plans, current, due, strict=True)
        ]
        return upload(self.mean[rows], request.state.device)

    def _nearest(self, plan: EpisodePlan, current: FloatArray) -> int:
        rows = _some(self._own(plan), plan)
        apart = (self.state[rows] - current).reshape(len(rows), self.history, -1) / self.std
        distance = np.square(apart).sum(axis=(1, 2))
        return int(rows[distance.argmin()])


def _some(rows: npt.NDArray[np.intp], plan: EpisodePlan) -> npt.NDArray[np.intp]:
    if not rows.size:
        label = f" with the label '{plan.label}'" if plan.label else ""
        raise ConfigError(
            f"no demonstration gives '{plan.task}'{label} the latent that was asked for",
            "choose another --label or --task, or leave it out of --latent",
        )
    return rows


@dataclass
class MeanLatents(LatentSource):
    """The mean of all encoded latents, which says nothing about the episode.

    The mean may lie where no latent does: that it fails does not show that latents carry behavior,
    and that it succeeds does not show that the policy ignores them. A policy without latents is
    the MLP of `train-baseline`.
    """

    mean: npt.NDArray[np.float32]

    def latents(self, request: ReplanRequest) -> Tensor:
        """Repeat the mean for every environment."""
        row = upload(self.mean, request.state.device)
        return row.expand(len(request.plans), -1)
