"""What the baselines' training minimizes, and how their normalizers are fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from lwdctl.artifacts.moments import Moments
from lwdctl.artifacts.snippets import EpisodeTable, SnippetStore
from lwdctl.core.progress import Progress
from lwdctl.data.batches import SnippetBatch, SnippetBatches
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, ChunkVae
from lwdctl.models.cloned import ClonedPolicy
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.normalizer import Normalizer
from lwdctl.models.vae import Snippets
from lwdctl.training.diffusion import LatentTable

PASS_BATCH = 1024
VALIDATION_BATCHES = 4


class Cloned(Protocol):
    """A model that learns from snippets of demonstrations."""

    def terms(
        self, batch: Snippets, task: Tensor, label: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the named terms of the loss, scalars."""


@dataclass
class CloningObjective:
    """The weighted sum of a model's loss terms on snippets.

    Attributes:
        batches: Training snippets.
        held_out: Snippets of the validation split, or None.
        table: The store's episodes, for tasks and labels.
        batch_size: Snippets per update.
        weights: Weight of a term by its name; 1 for those that are not named.
    """

    batches: SnippetBatches
    held_out: SnippetBatches | None
    table: EpisodeTable
    batch_size: int
    weights: Mapping[str, float] = field(default_factory=dict)

    def loss(
        self, model: nn.Module, update: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of one update and its terms."""
        terms = self._terms(model, self.batches.batch(update, self.batch_size), generator)
        total = sum((self.weights.get(name, 1.0) * term for name, term in terms.items()), 0.0)
        return cast(Tensor, total), {name: term.detach() for name, term in terms.items()}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Measure the terms on a fixed draw of held-out snippets."""
        if self.held_out is None:
            return {}
        generator = torch.Generator().manual_seed(0)
        drawn = [self.held_out.batch(n, self.batch_size) for n in range(VALIDATION_BATCHES)]
        found = [self._terms(model, batch, generator) for batch in drawn]
        return {
            f"held_out_{name}": float(torch.stack([terms[name] for terms in found]).mean())
            for name in found[0]
        }

    def _terms(
        self, model: nn.Module, batch: SnippetBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        device = batch.actions.device
        task, label = (
            torch.from_numpy(column[batch.episodes]).long().to(device)
            for column in (self.table.task, self.table.label)
        )
        return cast(Cloned, model).terms(snippets(batch), task, label, generator)


def snippets(batch: SnippetBatch) -> Snippets:
    """Hand a data batch to the models' own record."""
    return Snippets(batch.observations, batch.actions, batch.mask)


def fit_action_diffusion(
    model: ActionDiffusion, store: SnippetStore, batches: SnippetBatches
) -> None:
    """Map observations and actions of the training split to [-1, 1], as Diffusion Policy does."""
    spec, diffusion = model.spec, model.diffusion
    steps = diffusion.spec.denoiser.latent_size // spec.action_size
    actions = _chunk_moments(spec, store, batches, spec.history - 1)
    _fit_range(diffusion.latent, actions, steps)
    observations = store.moments(spec.observation_keys, "train")
    _fit_range(diffusion.state, observations, spec.history)


def fit_chunk_vae(model: ChunkVae, store: SnippetStore, batches: SnippetBatches) -> None:
    """Standardize observations and actions of the training split, as the policy VAE does."""
    _standardize(model.observation, store.moments(model.spec.observation_keys, "train"))
    _standardize(model.action, _chunk_moments(model.spec, store, batches, 0))


def fit_cloned(model: ClonedPolicy, store: SnippetStore) -> None:
    """Standardize observations and actions of the training split."""
    _standardize(model.observation, store.moments(model.spec.observation_keys, "train"))
    relative = model.spec.action_target == "relative"
    key = "action_relative" if relative else "action"
    _standardize(model.action, store.moments((key,), "train"))


def fit_latents(model: LatentDiffusion, table: LatentTable, vae: ChunkVae, history: int) -> None:
    """Standardize latents by their total deviation, and the state as the VAE does."""
    deviation = torch.sqrt(table.mean.var(0, correction=0) + table.deviation.square().mean(0))
    model.latent.fit(table.mean.mean(0), deviation)
    model.state.mean.copy_(vae.observation.mean.repeat(history))
    model.state.scale.copy_(vae.observation.scale.repeat(history))


@torch.no_grad()
def encode_all(
    vae: ChunkVae,
    batches: SnippetBatches,
    table: EpisodeTable,
    history: int,
    progress: Progress,
) -> LatentTable:
    """Encode every snippet of a split."""
    episodes, offsets = batches.every()
    means, deviations, states = [], [], []
    with progress.task("encode", len(episodes), "snippet") as task_bar:
        for start in range(0, len(episodes), PASS_BATCH):
            part = slice(start, start + PASS_BATCH)
            mean, log_variance = vae.encode(snippets(batches.cut(episodes[part], offsets[part])))
            means.append(mean)
            deviations.append(torch.exp(0.5 * log_variance))
            states.append(batches.history(episodes[part], offsets[part], history))
            task_bar.advance(len(mean))
    task, label = (
        torch.from_numpy(column[episodes]).long().to(batches.device)
        for column in (table.task, table.label)
    )
    return LatentTable(torch.cat(means), torch.cat(deviations), torch.cat(states), task, label)


def _chunk_moments(
    spec: ChunkSpec, store: SnippetStore, batches: SnippetBatches, current: int
) -> Moments:
    """Return the moments of the real actions of all snippets, relative ones if so wanted.

    Args:
        spec: What actions are relative to.
        store: The data.
        batches: Snippets of the training split.
        current: The snippets' step at which the policy is asked.
    """
    if spec.action_target != "relative":
        return store.moments(("action",), "train")
    episodes, offsets = batches.every()
    parts = []
    for start in range(0, len(episodes), PASS_BATCH):
        part = slice(start, start + PASS_BATCH)
        batch = batches.cut(episodes[part], offsets[part])
        moved = batch.actions - spec.reference(batch.observations[:, current])
        parts.append(Moments.of_rows(moved[batch.mask > 0].cpu().numpy()))
    counts = np.array([part.count for part in parts])
    return Moments.merge(
        counts,
        mean=np.stack([part.mean for part in parts]),
        m2=np.stack([part.variance * part.count for part in parts]),
        minimum=np.stack([part.minimum for part in parts]),
        maximum=np.stack([part.maximum for part in parts]),
    )


def _fit_range(normalizer: Normalizer, moments: Moments, repeats: int) -> None:
    low, high = (
        torch.as_tensor(side, dtype=torch.float32).repeat(repeats)
        for side in (moments.minimum, moments.maximum)
    )
    normalizer.fit((low + high) / 2.0, (high - low) / 2.0)


def _standardize(normalizer: Normalizer, moments: Moments) -> None:
    mean, deviation = (
        torch.as_tensor(value, dtype=torch.float32) for value in (moments.mean, moments.deviation)
    )
    normalizer.fit(mean, deviation)
