"""Where a generated policy's latent comes from: sampled, or one of the controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.artifacts.latents import LatentStore
from lwdctl.core.errors import ConfigError
from lwdctl.core.seeding import derive_seed, generator
from lwdctl.data.batches import SnippetBatches
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.policy import EpisodePlan


@dataclass(frozen=True)
class ReplanRequest:
    """One request for latents, one row per slot.

    Attributes:
        plans: The slots' episodes; None for idle slots.
        numbers: (slot,) how many queries the slot's episode has made before.
        steps: (slot,) how many steps the slot's episode has made before.
        state: (slot, history * obs), environment units, oldest observation first.
        due: (slot,) whether the slot's answer is used, or None for all.
        previous: (slot, latent), what the slot's last query gave; anything finite before the
            first one. None where nothing can be continued.
    """

    plans: Sequence[EpisodePlan | None]
    numbers: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    state: Tensor
    due: npt.NDArray[np.bool_] | None = None
    previous: Tensor | None = None


class LatentSource(Protocol):
    """Gives latents.

    Attributes:
        denoises: Whether a query costs denoiser calls.
        history: Observations the state of a query must hold.
    """

    denoises: bool
    history: int

    def latents(self, query: ReplanRequest) -> Tensor:
        """Return (slot, latent)."""


@dataclass
class SampledLatents:
    """The model's own: drawn by diffusion from the current condition.

    Attributes:
        warm_start: Share of the denoising steps that a query does after an episode's first
            one, from the previous latent noised so far; 0 begins every query from noise.
    """

    model: LatentDiffusion
    tasks: tuple[str, ...]
    labels: tuple[str, ...]
    sampler: str
    steps: int
    history: int
    denoises: bool = True
    warm_start: float = 0.0

    def latents(self, query: ReplanRequest) -> Tensor:
        """Draw with noise that (episode seed, query number) fixes."""
        if not self.warm_start or query.previous is None:
            return self._draw(query)
        # Each part runs all slots, so that a batch has one shape whoever else is in it.
        warm = query.numbers > 0
        due = np.ones_like(warm) if query.due is None else query.due
        if not (warm & due).any():
            return self._draw(query)
        warmed = self._draw(query, query.previous)
        if warm[due].all():
            return warmed
        chosen = torch.from_numpy(warm).to(warmed.device).unsqueeze(1)
        return torch.where(chosen, warmed, self._draw(query))

    def _draw(self, query: ReplanRequest, start: Tensor | None = None) -> Tensor:
        task = self._indices(query, self.tasks, "task")
        label = self._indices(query, self.labels, "label")
        condition = self.model.condition(query.state, task, label)
        generators = [
            torch.Generator().manual_seed(derive_seed("latent", plan.task, plan.seed, int(number)))
            if plan
            else torch.Generator().manual_seed(0)
            for plan, number in zip(query.plans, query.numbers, strict=True)
        ]
        return self.model.sample(
            condition, generators, self.sampler, self.steps, start, self.warm_start
        )

    def _indices(self, query: ReplanRequest, names: tuple[str, ...], field: str) -> Tensor:
        if field not in self.model.spec.condition:
            return torch.zeros(len(query.plans), dtype=torch.long, device=query.state.device)
        told = [getattr(plan, field) if plan else names[0] for plan in query.plans]
        if not set(told) <= set(names):
            raise ConfigError(
                f"the model is told the {field}, and an episode has none that it knows",
                f"name one: --{field} {names[0]}",
            )
        values = [names.index(name) for name in told]
        return torch.tensor(values, device=query.state.device)


@dataclass
class OracleLatents:
    """A recorded demonstration's own snippets, encoded: separates VAE from diffusion."""

    model: PolicyVae
    batches: SnippetBatches
    lengths: npt.NDArray[np.int64]
    denoises: bool = False
    history: int = 1

    @torch.no_grad()
    def latents(self, query: ReplanRequest) -> Tensor:
        """Encode the snippet that starts at the slot's step, or the last one after it."""
        episodes = np.array([max(p.demonstration, 0) if p else 0 for p in query.plans])
        starts = (self.batches.rule.counts(self.lengths[episodes]) - 1) * self.batches.rule.stride
        batch = self.batches.cut(episodes, np.minimum(query.steps, starts))
        mean, _ = self.model.encode(batch)
        return mean


@dataclass
class RecordedLatents:
    """A recorded latent that the episode's seed draws: of another task, or of its own.

    Another task's is drawn from all others. With one task: of another label than the
    episode's when it has one, otherwise of any demonstration at any moment, whatever the
    robot sees now.

    Attributes:
        own: Draw from the episode's own task and label instead: from any snippet of them.
    """

    mean: npt.NDArray[np.float32]
    task: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    tasks: tuple[str, ...]
    labels: tuple[str, ...]
    own: bool = False
    denoises: bool = False
    history: int = 1

    @classmethod
    def read(
        cls,
        store: LatentStore,
        tasks: tuple[str, ...],
        labels: tuple[str, ...],
        *,
        own: bool = False,
    ) -> RecordedLatents:
        """Load the encoded means."""
        return cls(store.mean, store.task, store.label, tasks, labels, own)

    def latents(self, query: ReplanRequest) -> Tensor:
        """Draw a recorded latent that (episode seed, query number) fixes."""
        rows = [
            self._row(plan, int(number)) if plan else 0
            for plan, number in zip(query.plans, query.numbers, strict=True)
        ]
        return torch.from_numpy(self.mean[rows]).to(query.state.device)

    def _row(self, plan: EpisodePlan, number: int) -> int:
        if self.own:
            rng = generator("own-latent", plan.task, plan.seed, number)
            return int(rng.choice(_some(self._own(plan), plan)))
        rng = generator("other-latent", plan.task, plan.seed, number)
        if len(self.tasks) > 1:
            known = set(self.task.tolist())
            others = [
                index
                for index, name in enumerate(self.tasks)
                if name != plan.task and index in known
            ]
            drawn = generator("other-task", plan.task, plan.seed).choice(others) if others else -1
            rows = np.flatnonzero(self.task == drawn)
        elif plan.label in self.labels and len(self.labels) > 1:
            rows = np.flatnonzero(self.label != self.labels.index(plan.label))
        else:
            rows = np.arange(len(self.mean))
        return int(rng.choice(_some(rows, plan)))

    def _own(self, plan: EpisodePlan) -> npt.NDArray[np.intp]:
        same = np.ones(len(self.mean), dtype=bool)
        if len(self.tasks) > 1:
            same &= self.task == self.tasks.index(plan.task)
        if plan.label in self.labels:
            same &= self.label == self.labels.index(plan.label)
        return np.flatnonzero(same)


def _some(rows: npt.NDArray[np.intp], plan: EpisodePlan) -> npt.NDArray[np.intp]:
    if not rows.size:
        label = f" with the label '{plan.label}'" if plan.label else ""
        raise ConfigError(
            f"no demonstration gives '{plan.task}'{label} the latent that was asked for",
            "choose other --label or --task, or leave 'snippet' or 'other' out of --latent",
        )
    return rows


@dataclass
class MeanLatents:
    """The mean of all encoded latents: what a policy that ignores its latent would get."""

    mean: npt.NDArray[np.float32]
    denoises: bool = False
    history: int = 1

    def latents(self, query: ReplanRequest) -> Tensor:
        """Repeat the mean for every slot."""
        row = torch.from_numpy(self.mean).to(query.state.device)
        return row.expand(len(query.plans), -1)
