"""Sending a run that has ended to trackers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import user_path
from lwdctl.artifacts.manifest import MANIFEST_NAME
from lwdctl.artifacts.references import parse_reference
from lwdctl.artifacts.run_in_progress import RECORD_NAME, RunRecord, read_record
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ArtifactError, ConfigError, LwdctlError
from lwdctl.core.progress import Progress
from lwdctl.tracking.run import (
    ID_LENGTH,
    TrackedRun,
    project_name,
    run_id,
    run_of_artifact,
    run_of_record,
)
from lwdctl.tracking.session import Session, end_all
from lwdctl.tracking.tracking import Tracking
from lwdctl.tracking.worker import FINISHED, INTERRUPTED, Order

REPLAY_SECONDS = 600.0
"""Seconds without a sign of life after which a tracker counts as hung."""
_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")


@dataclass(frozen=True)
class Sent:
    """A run that was sent.

    Attributes:
        reference: `type/name:vN`, or the directory of an interrupted run.
        id: Its id in the trackers.
        project: Its project there.
        state: `"finished"` or `"interrupted"`.
        trackers: Where it was sent.
    """

    reference: str
    id: str
    project: str
    state: str
    trackers: tuple[str, ...]


def replay(
    reference: str,
    workspace: Workspace,
    tracking: Tracking,
    progress: Progress,
    timeout: float = REPLAY_SECONDS,
) -> Sent:
    """Send a run to trackers; one that is there already is completed, and nothing shown twice.

    Args:
        reference: `NAME`, `TYPE/NAME:v2`, the directory of an artifact or of an interrupted run, or
            the id of a run.
        workspace: Where to look.
        tracking: Where to send it.
        progress: Where to report.
        timeout: Seconds without a sign of life after which a tracker counts as hung.

    Raises:
        ArtifactError: There is no such run, or it is damaged or still going on.
        LwdctlError: A tracker failed.
    """
    if not tracking.names:
        raise ConfigError("no tracker is named", "name one, for example: --to wandb")
    found = _find(reference, workspace)
    if isinstance(found, Artifact):
        run, shown, state = run_of_artifact(found, workspace.root), found.reference, FINISHED
    else:
        if found.active:
            raise ArtifactError(f"{found.path} is still going on", "send it when it has ended")
        run, shown, state = run_of_record(found, workspace.root), str(found.path), INTERRUPTED
    run = replace(run, project=project_name(tracking.project, workspace.root))
    progress.message(f"sending {shown} ({state}) to {', '.join(tracking.names)}")
    _send(run, found.path, state, workspace, tracking, progress, timeout)
    return Sent(shown, run.id, run.project, state, tracking.names)


def _send(
    run: TrackedRun,
    directory: Path,
    state: str,
    workspace: Workspace,
    tracking: Tracking,
    progress: Progress,
    timeout: float,
) -> None:
    place, root = str(directory.resolve()), str(workspace.root.resolve())
    sessions = [
        Session(Order(name, run, place, root), progress, again=None, patience=timeout)
        for name in tracking.names
    ]
    end_all(sessions, state, directory)
    failures = [f"{item.tracker}: {item.failure}" for item in sessions if item.failure]
    if failures:
        raise LwdctlError(
            f"not sent to {'; '.join(failures)}",
            "when that is solved, run the same command again: nothing will be shown twice",
        )


def _find(reference: str, workspace: Workspace) -> Artifact | RunRecord:
    """Return the artifact or the unfinished run that is meant; an artifact is checked."""
    record = read_record(user_path(reference).resolve()) if _is_run(reference) else None
    if record is not None:
        return record
    if _ID.fullmatch(reference):
        for found in _with_id(reference, workspace):
            return found
    try:
        return workspace.resolve("", reference)
    except ArtifactError:
        unfinished = _unfinished(reference, workspace)
        if not unfinished:
            raise
        return unfinished[-1]


def _is_run(reference: str) -> bool:
    path = user_path(reference)
    return (path / RECORD_NAME).is_file() and not (path / MANIFEST_NAME).exists()


def _with_id(identity: str, workspace: Workspace) -> Iterator[Artifact | RunRecord]:
    for artifact in reversed(workspace.artifacts()):
        manifest = artifact.manifest
        started = str(manifest.provenance.get("started", ""))
        if run_id(manifest.type, manifest.name, started, manifest.config) == identity:
            artifact.check()
            yield artifact
    for record in workspace.unfinished():
        if run_id(record.type, record.name, record.started, record.config) == identity:
            yield record


def _unfinished(reference: str, workspace: Workspace) -> list[RunRecord]:
    """Return the unfinished runs of a name without a version, of which nothing is finished."""
    try:
        wanted = parse_reference(reference)
    except ArtifactError:
        return []
    return [
        record
        for record in workspace.unfinished(wanted.type)
        if record.name == wanted.name and not wanted.version
    ]
