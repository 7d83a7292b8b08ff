"""How the normalizers of the baselines are fitted, and how LDP encodes its snippets."""

from __future__ import annotations

import numpy as np
import torch

from lwdctl.artifacts.moments import Moments
from lwdctl.artifacts.snippets import EpisodeTable, SnippetStore
from lwdctl.core.progress import Progress
from lwdctl.data.batches import SnippetBatches
from lwdctl.models.behavior_cloning import ClonedPolicy
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, ChunkVae
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.training.encode import encoded_batches
from lwdctl.training.objectives import LatentTable

PASS_BATCH = 1024


def fit_action_diffusion(
    model: ActionDiffusion, store: SnippetStore, batches: SnippetBatches
) -> None:
    """Map observations and actions of the training split to [-1, 1], as in Diffusion Policy."""
    spec, diffusion = model.spec, model.diffusion
    steps = diffusion.spec.denoiser.latent_size // spec.action_size
    actions = _chunk_moments(spec, store, batches, spec.history - 1)
    diffusion.latent.fit_range(actions, steps)
    observations = store.moments(spec.observation_keys, "train")
    diffusion.state.fit_range(observations, spec.history)


def fit_chunk_vae(model: ChunkVae, store: SnippetStore, batches: SnippetBatches) -> None:
    """Standardize observations and actions of the training split, as the policy VAE does."""
    model.observation.standardize(store.moments(model.spec.observation_keys, "train"))
    model.action.standardize(_chunk_moments(model.spec, store, batches, 0))


def fit_cloned(model: ClonedPolicy, store: SnippetStore) -> None:
    """Standardize observations and actions of the training split."""
    model.observation.standardize(store.moments(model.spec.observation_keys, "train"))
    relative = model.spec.action_target == "relative"
    key = "action_relative" if relative else "action"
    model.action.standardize(store.moments((key,), "train"))


def fit_latents(model: LatentDiffusion, table: LatentTable, vae: ChunkVae, history: int) -> None:
    """Standardize latents by their total standard deviation, and the state as the VAE does."""
    std = torch.sqrt(table.mean.var(0, correction=0) + table.std.square().mean(0))
    model.latent.fit(table.mean.mean(0), std)
    model.state.repeat(vae.observation, history)


def encode_all(
    vae: ChunkVae, batches: SnippetBatches, table: EpisodeTable, history: int, progress: Progress
) -> LatentTable:
    """Return every snippet of a split, encoded, on the batches' device."""
    encoded = list(encoded_batches(vae, batches, history, PASS_BATCH, progress))
    task, label = (
        torch.from_numpy(np.concatenate([column[part.episodes] for part in encoded]))
        .long()
        .to(batches.device)
        for column in (table.task, table.label)
    )
    return LatentTable(
        torch.cat([part.mean for part in encoded]),
        torch.cat([torch.exp(0.5 * part.log_variance) for part in encoded]),
        torch.cat([part.state for part in encoded]),
        task,
        label,
    )


def _chunk_moments(
    spec: ChunkSpec, store: SnippetStore, batches: SnippetBatches, current: int
) -> Moments:
    """Return the moments of the real (not padded) actions of all snippets.

    Args:
        spec: What actions are relative to.
        store: The data.
        batches: Snippets of the training split.
        current: Step within the snippets at which the policy observes.
    """
    if spec.action_target != "relative":
        return store.moments(("action",), "train")
    episodes, offsets = batches.every()
    parts = []
    for start in range(0, len(episodes), PASS_BATCH):
        part = slice(start, start + PASS_BATCH)
        batch = batches.cut(episodes[part], offsets[part])
        moved = batch.actions - spec.reference(batch.observations[:, current : current + 1])
        parts.append(Moments.of_rows(moved[batch.mask > 0].cpu().numpy()))
    counts = np.array([part.count for part in parts])
    return Moments.merge(
        counts,
        mean=np.stack([part.mean for part in parts]),
        m2=np.stack([part.variance * part.count for part in parts]),
        minimum=np.stack([part.minimum for part in parts]),
        maximum=np.stack([part.maximum for part in parts]),
    )
