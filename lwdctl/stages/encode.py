"""`encode`: the posterior of every snippet, with the conditions diffusion needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LATENTS_PAYLOAD, LatentStore, LatentWriter
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import EncodeConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.progress import Progress
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models.vae import PolicyVae, VaeSpec
from lwdctl.policies.loading import load_vae
from lwdctl.stages.stage import StageContext
from lwdctl.training.device import choose_device

ACTIVE_VARIANCE = 0.01


def run(config: EncodeConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Encode every snippet of the VAE's data and publish a `latents` artifact."""
    vae, source = inputs["vae"], inputs["snippets"]
    store = SnippetStore.open(source.path)
    device = choose_device(config.device)
    model: PolicyVae = load_vae(vae, device)
    spec: VaeSpec = model.spec
    rule = WindowRule(*spec.window)
    batches = SnippetBatches(
        store,
        spec.observation_keys,
        replace(rule, stride=config.stride or rule.stride),
        split="all",
        seed=0,
        cache=config.cache,
        device=device,
    )
    with context.workspace.begin(
        "latents",
        context.name or vae.name,
        config=to_mapping(config),
        inputs=[source, vae],
        resume=context.resume,
    ) as draft:
        payload = draft.path / LATENTS_PAYLOAD
        writer = LatentWriter(payload, spec.latent_size, config.history * spec.observation_size)
        count = _encode(model, batches, store, writer, config, context.progress)
        writer.close()
        summary = {"snippets": count, "latent_size": spec.latent_size, **_health(payload)}
        return draft.publish(summary, device=str(device))


def _encode(
    model: PolicyVae,
    batches: SnippetBatches,
    store: SnippetStore,
    writer: LatentWriter,
    config: EncodeConfig,
    progress: Progress,
) -> int:
    episodes, offsets = batches.every()
    table = store.episodes
    with progress.task("encode", len(episodes), "snippet") as task, torch.no_grad():
        for start in range(0, len(episodes), config.batch_size):
            part = slice(start, start + config.batch_size)
            batch = batches.cut(episodes[part], offsets[part])
            mean, log_variance = model.encode(batch)
            writer.append(
                mean=mean.cpu().numpy(),
                log_variance=log_variance.cpu().numpy(),
                state=batches.history(batch.episodes, batch.offsets, config.history).cpu().numpy(),
                task=table.task[episodes[part]],
                label=table.label[episodes[part]],
                episode=episodes[part],
                start=offsets[part],
                fit=table.split[episodes[part]] == 0,
            )
            task.advance(len(batch.episodes))
    return len(episodes)


def _health(path: Path) -> dict[str, float]:
    """Summarize the latent space.

    A unit counts as active when the variance of its posterior mean exceeds 0.01 (Burda et
    al. 2016, importance weighted autoencoders, section 5).
    """
    store = LatentStore.open(path)
    spread = store.mean.std(axis=0)
    noise = np.exp(0.5 * store.log_variance).mean(axis=0)
    return {
        "active_units": int((spread**2 > ACTIVE_VARIANCE).sum()),
        "mean_spread": float(spread.mean()),
        "mean_posterior_deviation": float(noise.mean()),
    }
