"""`lwdctl collect`: demonstrations of scripted experts, recorded in a simulator."""

from __future__ import annotations

from collections.abc import Mapping

from lwdctl.artifacts.artifact import Artifact
from lwdctl.configs import CollectConfig
from lwdctl.core.config import to_mapping
from lwdctl.data.robomimic_writer import DEMONSTRATIONS_PAYLOAD
from lwdctl.evaluation.collect import collect, find_experts
from lwdctl.stages.stage import StageContext


def run(config: CollectConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Collect into a file in robomimic's layout and publish it as a `demonstrations` artifact.

    Raises:
        ConfigError: An unknown task or operator, or seeds that would reach the evaluation seeds.
        MissingExtraError: The simulator is not installed.
        SimulatorError: A worker died, or the expert fails nearly always.
    """
    del inputs
    experts, tasks = find_experts(config)
    name = context.name or experts.file_name(tasks)
    with context.workspace.begin("demonstrations", name, config=to_mapping(config)) as output:
        summary = collect(config, output.path / DEMONSTRATIONS_PAYLOAD, context.progress)
        return output.publish(summary, seed=config.seed)
