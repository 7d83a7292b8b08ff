"""Sending runs to experiment trackers."""

from __future__ import annotations

from pathlib import Path

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Place, Workspace
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.tracking.replay import REPLAY_SECONDS, Sent, replay
from lwdctl.tracking.tracking import Names, Tracking


def track(
    artifact: str | Path | Artifact,
    to: Names,
    *,
    project: str = "",
    timeout: float = REPLAY_SECONDS,
    workspace: Place = None,
    progress: Progress | None = None,
) -> Sent:
    """Send a finished or interrupted run to trackers, as `lwdctl track` does.

    Args:
        artifact: An artifact; or `"vae/lift_mh"`, `"lift_mh:v2"`, the directory of an artifact or
            of an interrupted run, or the id of a run.
        to: `"wandb"`, `"trackio"` or `"tensorboard"`, one or several.
        project: Project that it is filed under; "" takes the workspace's name.
        timeout: Seconds without a sign of life after which a tracker counts as hung.
        workspace: Where to look.
        progress: Where to report; None draws bars with tqdm.

    Returns:
        The run's id and project in the trackers.

    Raises:
        ArtifactError: There is no such run, or it is damaged or still going on.
        ConfigError: An unknown tracker.
        MissingExtraError: A tracker's package is not installed.
        LwdctlError: A tracker failed; what was sent is kept.
    """
    reference = str(artifact.path.resolve()) if isinstance(artifact, Artifact) else str(artifact)
    tracking = Tracking.of(to, project)
    return replay(
        reference, Workspace.locate(workspace), tracking, progress or TqdmProgress(), timeout
    )
