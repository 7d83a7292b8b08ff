"""`train-baseline`: what LWD is compared with, from the same snippets and the same loop."""

from __future__ import annotations

from collections.abc import Mapping

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig
from lwdctl.core.config import to_mapping
from lwdctl.models.files import save_model
from lwdctl.stages.baseline_methods import TRAINERS, Work, refuse_unused
from lwdctl.stages.stage import StageContext
from lwdctl.training.device import choose_device


def run(config: BaselineConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Train and publish a `baseline` artifact.

    Raises:
        ConfigError: The settings do not fit each other or the data.
        LwdctlError: Training diverged.
    """
    refuse_unused(config)
    source = inputs["snippets"]
    store = SnippetStore.open(source.path)
    device = choose_device(config.device)
    with context.workspace.begin(
        "baseline",
        context.name or source.name,
        config=to_mapping(config),
        inputs=[source],
        resume=context.resume,
    ) as draft:
        trained = TRAINERS[config.method](Work(config, store, device, draft, context.progress))
        save_model(
            draft.path,
            {"method": config.method, **trained.spec},
            trained.model,
            trained.averaged,
        )
        parameters = sum(p.numel() for p in trained.model.parameters())
        summary = {"method": config.method, **trained.numbers, "parameters": parameters}
        return draft.publish(summary, seed=config.seed, device=str(device))
