"""`train-diffusion`: learn to sample latents from the current state, task or label."""

from __future__ import annotations

from collections.abc import Mapping

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import DiffusionConfig
from lwdctl.core.config import to_mapping
from lwdctl.models.vae import load_vae
from lwdctl.stages.stage import StageContext
from lwdctl.training.diffusion import train_diffusion
from lwdctl.training.loop import choose_device


def run(config: DiffusionConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Train and publish a `diffusion` artifact; see `training.diffusion.train_diffusion`."""
    latents, device = inputs["latents"], choose_device(config.device)
    with (
        context.workspace.begin(
            "diffusion",
            context.name or latents.name,
            config=to_mapping(config),
            inputs=[latents],
            resume=context.resume,
        ) as output,
        context.followed(output),
    ):
        trained = train_diffusion(
            LatentStore.open(latents.path),
            SnippetStore.open(inputs["snippets"].path),
            load_vae(inputs["vae"], device),
            config,
            directory=output.path,
            progress=context.progress,
        )
        trained.save(output.path)
        return output.publish(trained.summary, seed=config.seed, device=str(device))
