"""Encoding of snippets with a trained VAE (paper section 3.3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lwdctl.artifacts.latents import LatentStore, LatentWriter
from lwdctl.artifacts.snippets import EpisodeTable, SnippetStore
from lwdctl.artifacts.zarr_columns import STEP_CHUNK
from lwdctl.configs import EncodeConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.moments import RunningMoments
from lwdctl.core.progress import Progress
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models.vae import PolicyVae
from lwdctl.training.loop import choose_device
from lwdctl.training.objectives import warn_of_unused

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active when its posterior mean varies by more (Burda et al. 2016,
importance weighted autoencoders, section 5)."""


def encode(
    vae: PolicyVae,
    data: SnippetStore,
    config: EncodeConfig,
    path: Path | None,
    progress: Progress,
) -> LatentStore:
    """Encode every snippet of the VAE's window rule, at the configured stride if there is one.

    Args:
        vae: The trained VAE; it is moved to the configured device.
        data: Demonstrations.
        config: Settings.
        path: The zarr directory to write; None keeps the latents in memory.
        progress: Where to report.

    Raises:
        ConfigError: No episode belongs to the training split, whose statistics standardize the
            latents.
        ArtifactError: `path` exists, or a latent is not finite.
    """
    if not (data.episodes.split == 0).any():
        raise ConfigError("the training split holds no episode", "lower --validation-fraction")
    vae = vae.to(choose_device(config.device))
    spec, table = vae.spec, data.episodes
    rule = WindowRule(*spec.window)
    if rule.first_only:
        warn_of_unused(config, "a VAE that was trained with --starts first", ("stride",), progress)
    batches = SnippetBatches(
        data,
        spec.observation_keys,
        rule if config.stride is None else replace(rule, stride=config.stride),
        split="all",
        seed=0,
        cache=config.cache,
        device=vae.observation.mean.device,
    )
    return encode_batches(vae, batches, table, config.history, config.batch_size, progress, path)


def encode_batches(
    model: Any,
    batches: SnippetBatches,
    table: EpisodeTable,
    history: int,
    batch_size: int,
    progress: Progress,
    path: Path | None = None,
) -> LatentStore:
    """Encode every snippet of a split with a model's method `encode`; see `encode`.

    Raises:
        ArtifactError: `path` exists, or a latent is not finite.
    """
    training = table.split == 0
    fit = training if training[batches.episodes].any() else ~training
    writer = LatentWriter(path, model.spec.latent_size, history * model.spec.observation_size)
    with writer, progress.task("encode", batches.count, "snippet") as task:
        for first in range(0, batches.count, batch_size):
            chosen, starts = batches.every(first, first + batch_size)
            with torch.no_grad():
                mean, log_variance = model.encode(batches.cut(chosen, starts))
            writer.append(
                mean=mean.cpu(),
                log_variance=log_variance.cpu(),
                state=batches.history(chosen, starts, history).cpu(),
                task=table.task[chosen],
                label=table.label[chosen],
                episode=chosen,
                start=starts,
                fit=fit[chosen],
            )
            task.advance(len(mean))
        writer.close()
    return LatentStore.written_by(writer)


def latent_summary(store: LatentStore) -> dict[str, Any]:
    """Return the number of snippets and how much of the latent space they use."""
    means, noise = RunningMoments(store.latent_size), RunningMoments(store.latent_size)
    for start in range(0, store.count, STEP_CHUNK):
        stop = min(start + STEP_CHUNK, store.count)
        means.add(store.read("mean", start, stop))
        noise.add(np.exp(0.5 * store.read("log_variance", start, stop)))
    return {
        "snippets": store.count,
        "latent_size": store.latent_size,
        "active_units": int((means.variance > ACTIVE_VARIANCE).sum()),
        "std_of_posterior_mean": float(np.sqrt(means.variance).mean()),
        "posterior_std": float(noise.mean.mean()),
    }
