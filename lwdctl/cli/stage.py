"""Run one stage from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.bars import make_progress
from lwdctl.cli.generate import INPUT_PREFIX, configuration
from lwdctl.cli.output import print_artifact, reserved_stdout
from lwdctl.core.progress import Progress
from lwdctl.pipeline.inputs import resolve_inputs
from lwdctl.stages.stage import Stage, StageContext


def run_stage(stage: Stage, values: Mapping[str, Any]) -> None:
    """Run `stage` with what the command line gave and print the artifact it made.

    Args:
        stage: What to run.
        values: Parameter name to value, as `generate.stage_parameters` declares them.
    """
    config = configuration(stage, values)
    workspace = Workspace.locate(values["workspace_path"] or None)
    progress = make_progress(quiet=values["be_quiet"])
    named = {
        kind: values[INPUT_PREFIX + kind] for kind in stage.inputs if values[INPUT_PREFIX + kind]
    }
    inputs = resolve_inputs(stage, config, workspace, named, values["run_name"])
    announce(inputs, named, progress)
    context = StageContext(
        workspace, progress, values["artifact_name"], values.get("do_resume", False)
    )
    with reserved_stdout():
        artifact = stage.execute(config, inputs, context)
    print_artifact(artifact, as_json=values["as_json"])


def announce(inputs: Mapping[str, Artifact], named: Mapping[str, str], progress: Progress) -> None:
    """Say which artifacts are read, and how those that nobody named were chosen."""
    leading = list(inputs)[-1:]
    for kind, artifact in inputs.items():
        if kind in named:
            how = ""
        elif kind in leading:
            how = " (the newest)"
        else:
            how = f" (what {inputs[leading[0]].reference} was made from)"
        progress.message(f"reading {artifact.reference}{how}")
