"""What the stages that train have in common: one process or several, one of which publishes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.run_in_progress import CHECKPOINTS
from lwdctl.core.config import to_mapping
from lwdctl.stages.stage import StageContext
from lwdctl.training.distributed import Processes, join
from lwdctl.training.loop import Trained

Train = Callable[[Path], Trained[Any]]
Describe = Callable[[Trained[Any]], tuple[Mapping[str, Any], str]]


def publish_trained(
    artifact_type: str,
    source: Artifact,
    config: Any,
    context: StageContext,
    train: Train,
    describe: Describe,
) -> Artifact:
    """Train in a run of the workspace, and publish what was trained.

    Args:
        artifact_type: Type of the artifact to make.
        source: What it derives from, which names it unless the context does.
        config: The stage's configuration.
        context: Where the stage runs.
        train: Trains in a directory; in one that holds a checkpoint, it goes on from there.
        describe: Returns the summary to publish and the device.
    """
    processes = join()
    settings = to_mapping(config)
    if processes is not None:
        processes.check_same("their data", {"digest": source.digest})
        processes.check_same("their settings", settings)
        if not processes.leads:
            return _follow(processes, train)
    with (
        context.workspace.begin(
            artifact_type,
            context.name or source.name,
            config=settings,
            inputs=[source],
            resume=context.resume,
        ) as output,
        context.followed(output),
    ):
        more: dict[str, Any] = {}
        if output.resumed and not output.record.resumable:
            context.progress.message(
                "the interrupted run had written no checkpoint: training begins again from step 0"
            )
        elif output.begun_with:
            more = {"begun_with": output.record.software}
            context.progress.message(
                f"warning: the run was begun with other software ({output.begun_with}); what is"
                " left is computed with this one, and the provenance names both"
            )
        if processes is not None:
            processes.from_first(str(output.path))
        trained = train(output.path)
        trained.save(output.path)
        summary, device = describe(trained)
        artifact = output.publish(summary, seed=config.seed, device=device, more=more)
        if processes is not None:
            processes.from_first(str(artifact.path))
        return artifact


def _follow(processes: Processes, train: Train) -> Artifact:
    """Take part in a training that the process of rank 0 publishes."""
    # Latents that fit into no memory are kept in a file on the same disk, if this node has it.
    disk = Path(processes.from_first(None)) / CHECKPOINTS
    try:
        disk.mkdir(exist_ok=True)
    except OSError:
        disk = Path(tempfile.gettempdir())
    prefix = f"rank-{processes.rank}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=disk, ignore_cleanup_errors=True) as folder:
        train(Path(folder))
    return Artifact.open(Path(processes.from_first(None)))
