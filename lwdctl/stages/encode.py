"""`encode`: the posterior of every snippet, with the conditions diffusion needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.config import option, to_mapping
from lwdctl.stages.stage import Stage, StageContext

if TYPE_CHECKING:
    from lwdctl.artifacts.latents import LatentWriter
    from lwdctl.artifacts.snippets import SnippetStore
    from lwdctl.core.progress import Progress
    from lwdctl.data.batches import SnippetBatches
    from lwdctl.models.vae import PolicyVae


ACTIVE_VARIANCE = 0.01


@dataclass(frozen=True)
class EncodeConfig:
    """How to encode."""

    stride: int = option(
        0, "Steps between neighboring snippets; 0 takes the VAE's own stride", minimum=0
    )
    history: int = option(
        2, "Observations in the state condition: the current one and those before it", minimum=1
    )
    batch_size: int = option(1024, "Snippets encoded at once", minimum=1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    cache: str = option(
        "auto", "Where steps are kept meanwhile", choices=("auto", "device", "ram", "none")
    )


def run(config: EncodeConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Encode every snippet of the VAE's data and publish a `latents` artifact."""
    from lwdctl.artifacts.latents import LATENTS_PAYLOAD, LatentWriter
    from lwdctl.artifacts.snippets import SnippetStore
    from lwdctl.data.batches import SnippetBatches
    from lwdctl.data.windows import WindowRule
    from lwdctl.models.vae import VaeSpec
    from lwdctl.policies.loading import load_vae
    from lwdctl.training.device import choose_device

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
    import torch

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
    from lwdctl.artifacts.latents import LatentStore

    store = LatentStore.open(path)
    spread = store.mean.std(axis=0)
    noise = np.exp(0.5 * store.log_variance).mean(axis=0)
    return {
        "active_units": int((spread**2 > ACTIVE_VARIANCE).sum()),
        "mean_spread": float(spread.mean()),
        "mean_posterior_deviation": float(noise.mean()),
    }


STAGE = Stage("encode", "latents", EncodeConfig, ("snippets", "vae"), run)
