"""`train-vae`: fit the policy VAE to a snippet store."""

from __future__ import annotations

from collections.abc import Mapping

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import VaeConfig
from lwdctl.core.config import to_mapping
from lwdctl.stages.stage import StageContext
from lwdctl.training.loop import choose_device
from lwdctl.training.vae import train_vae


def run(config: VaeConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Train and publish a `vae` artifact; see `training.vae.train_vae`."""
    source = inputs["snippets"]
    store, device = SnippetStore.open(source.path), choose_device(config.device)
    with (
        context.workspace.begin(
            "vae",
            context.name or source.name,
            config=to_mapping(config),
            inputs=[source],
            resume=context.resume,
        ) as output,
        context.followed(output),
    ):
        trained = train_vae(store, config, directory=output.path, progress=context.progress)
        trained.save(output.path)
        return output.publish(trained.summary, seed=config.seed, device=str(device))
