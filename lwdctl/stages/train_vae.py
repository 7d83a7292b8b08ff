"""`train-vae`: fit the policy VAE to a snippet store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import VaeConfig
from lwdctl.stages.stage import StageContext
from lwdctl.stages.training import publish_trained
from lwdctl.training.loop import choose_device
from lwdctl.training.vae import TrainedVae, train_vae


def run(config: VaeConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Train and publish a `vae` artifact; see `training.vae.train_vae`."""
    source = inputs["snippets"]
    store, device = SnippetStore.open(source.path), choose_device(config.device)

    def train(directory: Path) -> TrainedVae:
        return train_vae(store, config, directory=directory, progress=context.progress)

    return publish_trained(
        "vae", source, config, context, train, lambda trained: (trained.summary, str(device))
    )
