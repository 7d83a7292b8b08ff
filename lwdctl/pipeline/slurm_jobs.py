"""The jobs that run a recipe on a cluster: their names, commands and records.

A job's name holds a digest of what it computes, where, and from what. So a job is found again
whoever submitted it, and other settings make another job.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwdctl.artifacts.files import sha256_of
from lwdctl.artifacts.manifest import plain
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError, LwdctlError
from lwdctl.core.untrusted import read_json, typed
from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.recipe import SMOKE_SUFFIX, Step
from lwdctl.pipeline.slurm_job import StageJob

FOLDER = ".slurm"


@dataclass(frozen=True)
class JobEnd:
    """The exit status and the job in what a job wrote at its end; see `slurm_job.write_record`."""

    code: int
    job: str = ""


@dataclass(frozen=True)
class StageJobs:
    """What runs a stage: a job, and for an evaluation an array of jobs before it.

    Attributes:
        stage: Id of the stage.
        name: Name of the job.
        arguments: Arguments of `lwdctl` that run the stage alone.
        parts: Number of jobs that measure conditions beforehand; 0 for none.
        folder: Where the records of its jobs lie.
    """

    stage: str
    name: str
    arguments: tuple[str, ...]
    parts: int
    folder: Path

    @property
    def parts_name(self) -> str:
        """Name of the array of jobs that measure conditions."""
        return f"{self.name}-parts"

    def job(self, part: int | None = None) -> StageJob:
        """Return what runs on the node: the stage, or one part of its conditions."""
        words = [sys.executable, "-m", "lwdctl", *self.arguments]
        words += [] if part is None else ["--part", f"{part}/{self.parts}"]
        return StageJob(words, str(self.record(part)))

    def record(self, part: int | None = None) -> Path:
        """Return where a job writes how it ended."""
        return self.folder / (self.name if part is None else f"{self.parts_name}-{part}")

    def forget(self) -> None:
        """Remove what earlier jobs wrote about their ends."""
        for part in (None, *range(self.parts)):
            self.record(part).unlink(missing_ok=True)

    def end(self, part: int | None = None) -> JobEnd | None:
        """Return how a job ended last; None where none has, or nothing can be read."""
        path = self.record(part)
        try:
            return typed(JobEnd, read_json(path), str(path), only_known=False)
        except LwdctlError:
            return None


def jobs_folder(run: RecipeRun) -> Path:
    """Return the directory for the jobs of a recipe: logs, records, copies of the recipe."""
    name = re.sub(r"[^\w.-]", "_", run.recipe.name, flags=re.ASCII).lstrip(".") or "recipe"
    return run.workspace.root.absolute() / FOLDER / (name + (SMOKE_SUFFIX if run.smoke else ""))


def check_log_folder(folder: Path, hint: str) -> None:
    """Check that the logs of jobs can lie below a directory.

    Raises:
        ConfigError: Its path holds a `%`, which Slurm and submitit replace.
    """
    if "%" in str(folder):
        raise ConfigError(f"Slurm would replace the % in the path {folder}", hint)


def stage_jobs(run: RecipeRun, parts: int = 0) -> dict[str, StageJobs]:
    """Return the jobs of every stage of a recipe by the stage's id.

    Args:
        run: The recipe; its jobs read the file that it was read from, see `frozen`.
        parts: Most jobs that the conditions of one evaluation are split into; 0 for one each.
    """
    folder, root = jobs_folder(run), str(run.workspace.root.absolute())
    keys: dict[str, str] = {}
    found = {}
    for step in run.steps:
        keys[step.id] = _digest(
            [root, run.recipe.name, *_content(step), [keys[item] for item in step.reads_from]]
        )
        words = (run.recipe.name, step.id, keys[step.id][:12])
        name = "-".join(re.sub(r"[^\w.]", "_", word, flags=re.ASCII)[:40] for word in words)
        arguments = tuple(run.arguments("--only", step.id))
        found[step.id] = StageJobs(
            step.id, f"lwdctl-{name}", arguments, _jobs_of(step, parts), folder / "ends"
        )
    return found


def frozen(run: RecipeRun) -> RecipeRun:
    """Return the same run, of a copy of its recipe that later changes to the file do not reach.

    Jobs may begin days later, and their working directory is the one that they are submitted from.

    Raises:
        ConfigError: See `check_log_folder`.
        OSError: The copy cannot be written.
    """
    check_log_folder(jobs_folder(run), "choose another --workspace DIR")
    source = run.recipe.path
    copy = jobs_folder(run) / "recipes" / sha256_of(source)[:16] / source.name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        fresh = copy.with_name(f".{copy.name}.new")
        shutil.copyfile(source, fresh)
        fresh.replace(copy)
    workspace = Workspace(run.workspace.root.absolute())
    return replace(run, recipe=replace(run.recipe, path=copy), workspace=workspace)


def log_path(run: RecipeRun, job: str) -> Path:
    """Return where the messages of a job go."""
    return jobs_folder(run) / "logs" / f"{job}_0_log.out"


def _content(step: Step) -> list[Any]:
    config: Mapping[str, Any] = plain(to_mapping(step.config))
    return [step.id, step.stage.command, step.name, config]


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _jobs_of(step: Step, most: int) -> int:
    """Return how many jobs measure conditions before the stage; one would only be in the way."""
    count = min(step.parts, most) if most else step.parts
    return count if count > 1 else 0
