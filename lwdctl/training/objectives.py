"""What training minimizes: losses on snippets and on latents, and their validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import EpisodeTable, SnippetStore
from lwdctl.configs import BaselineConfig, VaeConfig
from lwdctl.core.seeding import generator as numpy_generator
from lwdctl.data.batches import SnippetBatch, SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.normalizer import normal_like
from lwdctl.models.vae import PolicyVae, Snippets
from lwdctl.training.loop import choose_device

VALIDATION_BATCHES = 4
VAE_VALIDATION_BATCHES = 8
VAE_VALIDATION_BATCH = 32
VALIDATION_SNIPPETS_PER_EPISODE = 8
VALIDATION_LATENTS = 1024


def training_batches(
    data: SnippetStore,
    keys: tuple[str, ...],
    rule: WindowRule,
    config: VaeConfig | BaselineConfig,
    *,
    every: bool = False,
) -> tuple[SnippetBatches, SnippetBatches | None]:
    """Return the training snippets, and those of the validation split if it has episodes.

    Args:
        data: The demonstrations.
        keys: Observation keys to concatenate.
        rule: Which snippets of an episode are used.
        config: Settings: seed, cache and device.
        every: Whether an epoch visits every snippet, instead of one per episode.
    """
    batches = SnippetBatches(
        data,
        keys,
        rule,
        split="train",
        seed=config.seed,
        cache=config.cache,
        device=choose_device(config.device),
        every=every,
    )
    some_held_out = bool((data.episodes.split == 1).any())
    return batches, batches.of_split("validation") if some_held_out else None


class ConditionedModel(Protocol):
    """A model that learns from snippets of demonstrations with a task and a label."""

    def terms(
        self, batch: Snippets, task: Tensor, label: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the named terms of the loss, scalars."""


@dataclass
class SnippetObjective:
    """The weighted sum of a model's loss terms on snippets.

    Attributes:
        batches: Training snippets.
        held_out: Snippets of the validation split, or None.
        batch_size: Snippets per training step.
        table: The store's episodes, for tasks and labels.
        weights: Weight of a term by its name; terms without one have weight 1.
    """

    batches: SnippetBatches
    held_out: SnippetBatches | None
    batch_size: int
    table: EpisodeTable
    weights: Mapping[str, float] = field(default_factory=dict)

    def loss(
        self, model: nn.Module, update: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of one training step and its unweighted terms, all scalars."""
        batch = self.batches.batch(update, self.batch_size)
        terms = self._terms(model, batch, generator, training=True)
        total = sum((self.weights.get(name, 1.0) * term for name, term in terms.items()), 0.0)
        return cast(Tensor, total), {name: term.detach() for name, term in terms.items()}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the terms on a fixed draw of held-out snippets; {} when nothing is held out."""
        if self.held_out is None:
            return {}
        generator = torch.Generator().manual_seed(0)
        count, size = self._validation(self.held_out)
        drawn = [self.held_out.batch(number, size) for number in range(count)]
        found = [self._terms(model, batch, generator, training=False) for batch in drawn]
        return {
            f"held_out_{name}": float(torch.stack([terms[name] for terms in found]).mean())
            for name in found[0]
        }

    def _validation(self, held_out: SnippetBatches) -> tuple[int, int]:
        """Return how many batches are validated on, and their size."""
        del held_out
        return VALIDATION_BATCHES, self.batch_size

    def _terms(
        self, model: nn.Module, batch: SnippetBatch, generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        del training
        device = batch.actions.device
        task, label = (
            torch.from_numpy(column[batch.episodes]).long().to(device)
            for column in (self.table.task, self.table.label)
        )
        return cast(ConditionedModel, model).terms(batch, task, label, generator)


@dataclass
class VaeObjective(SnippetObjective):
    """Reconstruction plus `weights["kl"]` times the KL term, of the policy VAE.

    Attributes:
        loss_steps: Steps reconstructed per snippet while training, None for all.
        observation_noise: Largest standard deviation of noise on the policy's normalized
            observations while training.
    """

    loss_steps: int | None = None
    observation_noise: float = 0.0

    def _validation(self, held_out: SnippetBatches) -> tuple[int, int]:
        """Return eight batches of 32 snippets, or fewer where few episodes are held out."""
        snippets = len(held_out.episodes) * VALIDATION_SNIPPETS_PER_EPISODE
        count = min(VAE_VALIDATION_BATCHES, snippets // VAE_VALIDATION_BATCH)
        return max(1, count), VAE_VALIDATION_BATCH

    def _terms(
        self, model: nn.Module, batch: SnippetBatch, generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        assert isinstance(model, PolicyVae)
        if not training:
            return model.terms(batch, generator)
        return model.terms(batch, generator, self.loss_steps, self.observation_noise)


@dataclass(frozen=True)
class LatentTable:
    """Encoded snippets on the training device.

    Attributes:
        mean: (snippet, latent), posterior mean.
        std: (snippet, latent), posterior standard deviation.
        state: (snippet, history * obs), observations up to the snippet's first step.
        task: (snippet,), task index.
        label: (snippet,), label index.
    """

    mean: Tensor
    std: Tensor
    state: Tensor
    task: Tensor
    label: Tensor

    @classmethod
    def read(
        cls, store: LatentStore, rows: npt.NDArray[np.int64], device: torch.device
    ) -> LatentTable:
        """Load the given rows of a latent store."""

        def load(values: npt.ArrayLike) -> Tensor:
            return torch.from_numpy(np.asarray(values)[rows]).to(device)

        return cls(
            mean=load(store.mean).float(),
            std=torch.exp(0.5 * load(store.log_variance).float()),
            state=load(store.state).float(),
            task=load(store.task).long(),
            label=load(store.label).long(),
        )

    def __len__(self) -> int:
        """Return the number of snippets."""
        return len(self.mean)


@dataclass
class DiffusionObjective:
    """Denoising loss on latents that are drawn anew from their posteriors at every step.

    Attributes:
        table: Encoded snippets of the training split.
        held_out: Encoded snippets of the validation split, or None.
        batch_size: Snippets per training step.
        seed: Seed of the order in which snippets are drawn.
        state_noise: Standard deviation of noise on the normalized state condition.
    """

    table: LatentTable
    held_out: LatentTable | None
    batch_size: int
    seed: int
    state_noise: float = 0.0

    def loss(
        self, model: nn.Module, update: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of one training step, a scalar."""
        rng = numpy_generator("latent-batch", self.seed, update)
        rows = torch.from_numpy(rng.integers(len(self.table), size=self.batch_size))
        value = _denoising(model, self.table, rows, generator, self.state_noise)
        return value, {"denoising": value.detach()}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the loss on a fixed draw of held-out latents; {} when nothing is held out."""
        if self.held_out is None:
            return {}
        rng = numpy_generator("latent-validation", self.seed)
        rows = torch.from_numpy(rng.integers(len(self.held_out), size=VALIDATION_LATENTS))
        generator = torch.Generator().manual_seed(0)
        return {"held_out_denoising": float(_denoising(model, self.held_out, rows, generator, 0.0))}


def _denoising(
    model: nn.Module,
    table: LatentTable,
    rows: Tensor,
    generator: torch.Generator,
    state_noise: float,
) -> Tensor:
    assert isinstance(model, LatentDiffusion)
    rows = rows.to(table.mean.device)
    mean = table.mean[rows]
    latent = mean + table.std[rows] * normal_like(mean, generator)
    state = table.state[rows]
    if state_noise and model.spec.state_size:
        state = state + state_noise * model.state.scale * normal_like(state, generator)
    condition = model.condition(state, table.task[rows], table.label[rows])
    return model.loss(latent, condition, generator)
