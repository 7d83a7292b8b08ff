"""`lwdctl collect`: demonstrations of scripted experts, recorded in a simulator."""

from __future__ import annotations

from collections.abc import Mapping

from lwdctl.artifacts.artifact import Artifact
from lwdctl.configs import CollectConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import SimulatorError
from lwdctl.data.readers.robomimic_writer import DEMONSTRATIONS_PAYLOAD
from lwdctl.evaluation.collect import LOST_SEEDS, collect, find_experts
from lwdctl.stages.stage import LOST, StageContext


def run(config: CollectConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Collect into a file in robomimic's layout and publish it as a `demonstrations` artifact.

    Raises:
        ConfigError: An unknown task or operator, or seeds that would reach the evaluation seeds.
        MissingExtraError: The simulator is not installed.
        SimulatorError: The simulator fails again and again, or the expert nearly always; or seeds
            were lost to simulator errors (after publishing what ran).
    """
    del inputs
    experts, tasks = find_experts(config)
    name = context.name or experts.file_name(tasks)
    with context.workspace.begin(
        "demonstrations", name, config=to_mapping(config), resume=context.resume
    ) as output:
        path = output.path / DEMONSTRATIONS_PAYLOAD
        path.unlink(missing_ok=True)  # of a killed process; finished episodes are elsewhere
        # Finished episodes are checkpoints: an interrupted collection goes on after them.
        summary = collect(config, path, context.progress, output.checkpoints)
        lost = summary.get(LOST_SEEDS, [])
        if lost:
            summary[LOST] = len(lost)
        artifact = output.publish(summary, seed=config.seed)
    if lost:
        raise SimulatorError(
            f"{len(lost)} seeds were lost to simulator errors, the next ones took their place; see"
            f" {artifact.path}",
            f"seeds {', '.join(map(str, lost))}; collect again, or go on with what there is",
        )
    return artifact
