"""Records of measured conditions, and evaluations in parts, which several machines measure.

Each part leaves its records in one hidden directory beside the versions of the evaluation, named
after the settings and the models. The evaluation that follows takes them as if it had been
interrupted after them: damaged records, and those of other software, are measured again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import matching, sealed, unsealed, write_durably
from lwdctl.artifacts.manifest import plain
from lwdctl.artifacts.run_in_progress import PARTS, RESUME, RunInProgress, unfinished_runs
from lwdctl.artifacts.stored_files import read_stored, stored_file, stored_files
from lwdctl.artifacts.workspace import Workspace
from lwdctl.configs import EvalConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ArtifactError
from lwdctl.core.untrusted import parse_json

VIDEOS_FOLDER = "videos"
_KEPT = (".json", ".journal")


def parts_folder(
    workspace: Workspace, name: str, config: EvalConfig, models: Sequence[Artifact]
) -> Path:
    """Return the directory for the records of an evaluation's parts.

    Args:
        workspace: Where the evaluation goes.
        name: Its name.
        config: Its settings.
        models: The artifacts that it derives from.
    """
    content = [plain(to_mapping(config)), [model.digest for model in models]]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return workspace.root / "evaluation" / name / f"{PARTS}{digest[:16]}"


def run_that_measures(
    workspace: Workspace, name: str, config: EvalConfig, models: Sequence[Artifact]
) -> Path | None:
    """Return the directory of the run of an evaluation that a process works on now, if any.

    The arguments are those of `parts_folder`.
    """
    settings, digests = plain(to_mapping(config)), [model.digest for model in models]
    for record in reversed(unfinished_runs(workspace.root, "evaluation", name)):
        same = record.config == settings and record.input_digests == digests
        if same and record.active:
            return record.path
    return None


def claim(records: Path, condition: str) -> Path:
    """Return the file by which a process claims a condition; it is no checkpoint."""
    return records / f".{condition}.claim"


def read_record(folder: Path, condition: str) -> dict[str, Any]:
    """Return the record of a measured condition.

    Raises:
        ArtifactError: It is damaged: its digest differs.
    """
    where = str(folder / f"{condition}.json")
    content = unsealed(read_stored(folder, f"{condition}.json"))
    if content is None:
        raise ArtifactError(
            f"{where} is damaged", f"leave out {RESUME} to measure everything again"
        )
    return dict(parse_json(content, where, allow_nan=True))


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a measured condition, sealed until it is published."""
    write_durably(path, sealed(text_of_record(record)))


def text_of_record(record: Mapping[str, Any]) -> bytes:
    """Return what a record holds once it is published."""
    return (json.dumps(record, indent=1) + "\n").encode()


def take_parts(folder: Path, output: RunInProgress) -> None:
    """Copy the records, journals and videos of an evaluation's parts into its run.

    What the run holds already, since it was interrupted, stays.

    Raises:
        ArtifactError: A link or a pipe lies there.
    """
    kept = [path for path in matching(folder, "*") if path.suffix in _KEPT]
    for path in kept:
        _copy(folder, path.name, output.checkpoints / path.name)
    for path in stored_files(folder / VIDEOS_FOLDER) if (folder / VIDEOS_FOLDER).is_dir() else ():
        relative = path.relative_to(folder)
        _copy(folder, relative.as_posix(), output.path / relative)


def _copy(folder: Path, name: str, target: Path) -> None:
    source = stored_file(folder, name)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
