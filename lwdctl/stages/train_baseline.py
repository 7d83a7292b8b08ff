"""`train-baseline`: train what LWD is compared with, from the same snippets."""

from __future__ import annotations

from collections.abc import Mapping

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig
from lwdctl.core.config import to_mapping
from lwdctl.methods.trained import train_method
from lwdctl.stages.stage import StageContext


def run(config: BaselineConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Train and publish a `baseline` artifact.

    Raises:
        ConfigError: The settings do not fit each other or the data.
        LwdctlError: Training diverged.
    """
    source = inputs["snippets"]
    data = SnippetStore.open(source.path)
    with (
        context.workspace.begin(
            "baseline",
            context.name or source.name,
            config=to_mapping(config),
            inputs=[source],
            resume=context.resume,
        ) as output,
        context.followed(output),
    ):
        trained = train_method(data, config, output.path, context.progress)
        trained.save(output.path)
        parameters = list(trained.model.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        summary = {"method": config.method, **trained.summary, "parameters": count}
        device = parameters[0].device
        return output.publish(summary, seed=config.seed, device=str(device))
