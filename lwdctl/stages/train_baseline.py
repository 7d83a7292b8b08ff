"""`train-baseline`: train what LWD is compared with, from the same snippets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig
from lwdctl.methods.trained import train_method
from lwdctl.stages.stage import StageContext
from lwdctl.stages.training import publish_trained
from lwdctl.training.loop import Trained


def run(config: BaselineConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Train and publish a `baseline` artifact.

    Raises:
        ConfigError: The settings do not fit each other or the data.
        LwdctlError: Training diverged.
    """
    source = inputs["snippets"]
    data = SnippetStore.open(source.path)

    def train(directory: Path) -> Trained[Any]:
        return train_method(data, config, directory, context.progress)

    def describe(trained: Trained[Any]) -> tuple[Mapping[str, Any], str]:
        parameters = list(trained.model.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        summary = {"method": config.method, **trained.summary, "parameters": count}
        return summary, str(parameters[0].device)

    return publish_trained("baseline", source, config, context, train, describe)
