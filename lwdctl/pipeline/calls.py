"""One stage by name: what the command line does, for the Python API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.manifest import recording
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import from_mapping
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.pipeline.inputs import resolve_inputs
from lwdctl.stages import find_stage
from lwdctl.stages.stage import StageContext


def run_stage(
    command: str,
    workspace: Workspace,
    settings: Mapping[str, Any] | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> Artifact:
    """Run a stage on the newest artifacts of a workspace, or on those named.

    Args:
        command: As on the command line (`"train-vae"`).
        workspace: Where inputs stand and the artifact goes.
        settings: Options with underscores (`{"snippet_length": 32}`); the rest has defaults.
        inputs: Kind to reference, for inputs other than the newest finished chain's.
        name: Name of the artifact; "" takes that of what it is made from.
        progress: Where to report; None draws bars with tqdm.

    Returns:
        What was made; `manifest.summary` holds its numbers.

    Raises:
        LwdctlError: Whatever the command line would say.
    """
    stage = find_stage(command)
    config: Any = from_mapping(stage.config, settings or {})
    found = resolve_inputs(stage, config, workspace, inputs or {})
    context = StageContext(workspace, progress or TqdmProgress(), name)
    call = f"run_stage({command!r}, {dict(settings or {})!r}, {dict(inputs or {})!r}, {name!r})"
    with recording(command=call):
        return stage.execute(config, found, context)
