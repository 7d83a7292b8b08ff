"""`train-diffusion`: learn to sample latents from the current state, task or label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import DiffusionConfig
from lwdctl.models.vae import load_vae
from lwdctl.stages.stage import StageContext
from lwdctl.stages.training import publish_trained
from lwdctl.training.diffusion import TrainedDiffusion, train_diffusion
from lwdctl.training.loop import choose_device


def run(config: DiffusionConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Train and publish a `diffusion` artifact; see `training.diffusion.train_diffusion`."""
    latents, device = inputs["latents"], choose_device(config.device)

    def train(directory: Path) -> TrainedDiffusion:
        return train_diffusion(
            LatentStore.open(latents.path),
            SnippetStore.open(inputs["snippets"].path),
            load_vae(inputs["vae"], device),
            config,
            directory=directory,
            progress=context.progress,
        )

    return publish_trained(
        "diffusion", latents, config, context, train, lambda trained: (trained.summary, str(device))
    )
