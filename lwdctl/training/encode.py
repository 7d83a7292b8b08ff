"""Encoding of snippets with a trained VAE (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.artifacts.latents import LatentStore, LatentWriter
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import EncodeConfig
from lwdctl.core.progress import Progress
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models.vae import PolicyVae, Snippets
from lwdctl.training.loop import choose_device

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active when its posterior mean varies by more (Burda et al. 2016,
importance weighted autoencoders, section 5)."""


class Encoder(Protocol):
    """A model that encodes snippets."""

    def encode(self, batch: Snippets) -> tuple[Tensor, Tensor]:
        """Return the posterior's mean and log-variance, each (batch, latent)."""


@dataclass(frozen=True)
class EncodedBatch:
    """The posteriors of some snippets.

    Attributes:
        mean: (batch, latent).
        log_variance: (batch, latent).
        state: (batch, history * obs), observations up to the snippet's first step.
        episodes: (batch,), store index of the episode.
        offsets: (batch,), first step within the episode.
    """

    mean: Tensor
    log_variance: Tensor
    state: Tensor
    episodes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


def encode(
    vae: PolicyVae,
    data: SnippetStore,
    config: EncodeConfig,
    path: Path | None,
    progress: Progress,
) -> LatentStore:
    """Encode every snippet that the VAE's window rule gives.

    Args:
        vae: The trained VAE; it is moved to the configured device.
        data: Demonstrations.
        config: Settings.
        path: The zarr directory to write; None keeps the latents in memory.
        progress: Where to report.

    Raises:
        ArtifactError: `path` exists, or a latent is not finite.
    """
    vae = vae.to(choose_device(config.device))
    spec, table = vae.spec, data.episodes
    rule = WindowRule(*spec.window)
    batches = SnippetBatches(
        data,
        spec.observation_keys,
        rule if config.stride is None else replace(rule, stride=config.stride),
        split="all",
        seed=0,
        cache=config.cache,
        device=vae.observation.mean.device,
    )
    writer = LatentWriter(path, spec.latent_size, config.history * spec.observation_size)
    for batch in encoded_batches(vae, batches, config.history, config.batch_size, progress):
        writer.append(
            mean=batch.mean.cpu().numpy(),
            log_variance=batch.log_variance.cpu().numpy(),
            state=batch.state.cpu().numpy(),
            task=table.task[batch.episodes],
            label=table.label[batch.episodes],
            episode=batch.episodes,
            start=batch.offsets,
            fit=table.split[batch.episodes] == 0,
        )
    writer.close()
    return LatentStore.written_by(writer)


def encoded_batches(
    model: Encoder, batches: SnippetBatches, history: int, batch_size: int, progress: Progress
) -> Iterator[EncodedBatch]:
    """Encode every snippet of a split, batch by batch.

    Args:
        model: What encodes.
        batches: Snippets.
        history: Observations in the state.
        batch_size: Snippets per batch.
        progress: Where to report.
    """
    episodes, offsets = batches.every()
    with progress.task("encode", len(episodes), "snippet") as task:
        for start in range(0, len(episodes), batch_size):
            part = slice(start, start + batch_size)
            batch = batches.cut(episodes[part], offsets[part])
            with torch.no_grad():
                mean, log_variance = model.encode(batch)
            state = batches.history(batch.episodes, batch.offsets, history)
            yield EncodedBatch(mean, log_variance, state, batch.episodes, batch.offsets)
            task.advance(len(mean))


def latent_summary(store: LatentStore) -> dict[str, Any]:
    """Return the number of snippets and how much of the latent space they use."""
    std = store.mean.std(axis=0)
    noise = np.exp(0.5 * store.log_variance).mean(axis=0)
    return {
        "snippets": store.count,
        "latent_size": store.latent_size,
        "active_units": int((std**2 > ACTIVE_VARIANCE).sum()),
        "std_of_posterior_mean": float(std.mean()),
        "posterior_std": float(noise.mean()),
    }
