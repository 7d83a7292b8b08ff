"""What the VAE's training minimizes, and how its normalizers are fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.data.batches import SnippetBatch, SnippetBatches
from lwdctl.models.normalizer import SMALLEST_DEVIATION, Normalizer
from lwdctl.models.vae import PolicyVae, Snippets

VALIDATION_SNIPPETS = 256
VALIDATION_BATCH = 32
SNIPPETS_PER_EPISODE = 8


@dataclass
class VaeObjective:
    """Reconstruction plus `beta_kl` times the KL divergence.

    Attributes:
        batches: Training snippets.
        held_out: Snippets of the validation split, or None.
        batch_size: Snippets per update.
        beta_kl: Weight of the KL term.
        loss_steps: Steps reconstructed per snippet, 0 for all.
        observation_noise: Deviation of noise on the policy's normalized observations.
    """

    batches: SnippetBatches
    held_out: SnippetBatches | None
    batch_size: int
    beta_kl: float
    loss_steps: int
    observation_noise: float

    def loss(
        self, model: nn.Module, update: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of one update and both of its terms."""
        assert isinstance(model, PolicyVae)
        batch = snippets(self.batches.batch(update, self.batch_size))
        error, kl = model.losses(batch, generator, self.loss_steps, self.observation_noise)
        terms = {"reconstruction": error.detach(), "kl": kl.detach()}
        return error + self.beta_kl * kl, terms

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Reconstruct a fixed set of held-out snippets on all of their steps."""
        if self.held_out is None:
            return {}
        assert isinstance(model, PolicyVae)
        generator = torch.Generator().manual_seed(0)
        count = min(VALIDATION_SNIPPETS, len(self.held_out.episodes) * SNIPPETS_PER_EPISODE)
        terms = [
            model.losses(snippets(self.held_out.batch(number, VALIDATION_BATCH)), generator)
            for number in range(max(1, count // VALIDATION_BATCH))
        ]
        error, kl = (torch.stack(term).mean() for term in zip(*terms, strict=True))
        return {"held_out_reconstruction": float(error), "held_out_kl": float(kl)}


def snippets(batch: SnippetBatch) -> Snippets:
    """Hand a data batch to the model's own record."""
    return Snippets(batch.observations, batch.actions, batch.mask)


def fit_normalizers(model: PolicyVae, store: SnippetStore) -> int:
    """Fit both normalizers on the training split, from the store's statistics.

    Returns:
        How many action components vary so little that they count as constant, though they vary.
    """
    _fit(model.observation, store, model.spec.observation_keys)
    relative = model.spec.action_target == "relative"
    deviation = _fit(model.action, store, ("action_relative" if relative else "action",))
    unscaled = (model.action.scale.cpu() == 1.0) & (deviation < SMALLEST_DEVIATION)
    return int((unscaled & (deviation > 1e-6 * model.action.mean.cpu().abs())).sum())


def _fit(normalizer: Normalizer, store: SnippetStore, keys: tuple[str, ...]) -> Tensor:
    moments = store.moments(keys, "train")
    variance = torch.as_tensor(moments.variance, dtype=torch.float64)
    mean = torch.as_tensor(moments.mean, dtype=torch.float32)
    deviation = variance.clamp(min=0.0).sqrt().float()
    normalizer.fit(mean, deviation)
    return deviation


def epochs(updates: int, batch_size: int, episodes: int) -> float:
    """Convert updates to epochs; an epoch is one randomly placed snippet per episode."""
    return updates * batch_size / max(1, episodes)
