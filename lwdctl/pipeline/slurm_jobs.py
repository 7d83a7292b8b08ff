"""The jobs that run a recipe on a cluster: their names, commands and records.

A job's name holds a digest of what it computes, where, and from what. So a job is found again
whoever submitted it, and other settings make another job.

For clusters where no further package may be installed, `write_scripts` writes them as plain files
for sbatch.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwdctl.artifacts.files import sha256_of
from lwdctl.artifacts.manifest import plain
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError, LwdctlError
from lwdctl.core.untrusted import read_json, typed
from lwdctl.pipeline.plan import RecipeRun, plan_stages
from lwdctl.pipeline.recipe import SMOKE_SUFFIX, Step
from lwdctl.pipeline.slurm_job import ALWAYS, WARNING_SECONDS, StageJob

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


_SUBMIT = """\
#!/bin/bash
# Submits the stages of {recipe} as jobs of Slurm, each after those that it depends on.
# Run it in the directory that the recipe's paths start from; the jobs run there, too.
# LWDCTL is the command on the nodes, if it is not: {lwdctl}
# When jobs have failed and none is queued any more, run it again: stages that are up to date end
# at once, and the others go on from their checkpoints.
set -euo pipefail
export LWDCTL="${{LWDCTL:-{lwdctl}}}"
FILES="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
export FILES
mkdir -p "$FILES/logs"
submit() {{ sbatch --parsable "$@" | cut -d ';' -f 1; }}
log="$FILES/logs/%x-%j.log"
array_log="$FILES/logs/%x-%A_%a.log"

{jobs}
"""
_JOB = """\
#!/bin/bash
{options}

# Before the time limit Slurm sends SIGUSR2 to this shell: the stage writes a checkpoint and ends,
# and the job is requeued. For preemption Slurm sends SIGTERM to all processes and requeues the job
# itself. Either way the same command goes on from the checkpoint.
warned=
trap 'warned=yes; kill -TERM "$stage"' USR2
trap : TERM

$LWDCTL {arguments} &
stage=$!
while kill -0 "$stage" 2>/dev/null; do wait "$stage"; done
wait "$stage"
code=$?
if [ -n "$warned" ] && [ "$code" = 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def write_scripts(
    run: RecipeRun, folder: Path, options: Mapping[str, str | bool], eval_jobs: int = 0
) -> list[Path]:
    """Write a recipe as `submit.sh`, one file for sbatch per job, and a copy of the recipe.

    Args:
        run: The recipe.
        folder: A directory that is empty or not there.
        options: Options of sbatch for every job, from `parse_slurm_options`.
        eval_jobs: Most jobs that the conditions of one evaluation are split into; 0 for one each.

    Returns:
        The files, `submit.sh` first.

    Raises:
        ConfigError: The directory is not empty, or the logs cannot lie in it.
    """
    check_log_folder(folder.absolute(), "name another with --slurm-script")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty directory", "name another with --slurm-script")
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / run.recipe.path.name
    shutil.copyfile(run.recipe.path, recipe)
    jobs = stage_jobs(replace(run, recipe=replace(run.recipe, path=recipe)), eval_jobs)
    lines, files, variables = [], [], dict[str, str]()
    for index, stage in enumerate(plan_stages(run), start=1):
        item = jobs[stage.id]
        after = [variables[other] for other in stage.depends_on]
        head = f"{index:02d}-{re.sub(r'[^A-Za-z0-9_.]', '_', stage.id)}"
        variables[stage.id] = f"job_{index}"
        if item.parts:
            files.append(_write(folder / f"{head}-parts.sbatch", item, recipe, options, parts=True))
            variable = f"parts_{index}"
            lines.append(_submission(variable, files[-1], after, item.parts))
            after = [variable]
        files.append(_write(folder / f"{head}.sbatch", item, recipe, options, parts=False))
        lines.append(_submission(variables[stage.id], files[-1], after))
        lines.append(f'echo {shlex.quote(stage.id)}: job "${variables[stage.id]}"')
    text = _SUBMIT.format(
        recipe=recipe.name,
        lwdctl=_command(),
        jobs="\n".join(lines),
    )
    submit = folder / "submit.sh"
    submit.write_text(text, encoding="utf-8")
    submit.chmod(0o755)
    return [submit, *files]


def _command() -> str:
    """Return the command that runs lwdctl here, for a shell that splits it at spaces."""
    plain = re.fullmatch(r"[\w/.+-]+", sys.executable, flags=re.ASCII)
    return f"{sys.executable} -m lwdctl" if plain else "lwdctl"


def _write(
    path: Path,
    jobs: StageJobs,
    recipe: Path,
    options: Mapping[str, str | bool],
    *,
    parts: bool,
) -> Path:
    """Write the file of one job."""
    own = {"job-name": jobs.parts_name if parts else jobs.name, "open-mode": "append"}
    signal = {"signal": f"B:USR2@{WARNING_SECONDS}"}
    flags = [
        f"#SBATCH --{key}" if value is True else f"#SBATCH --{key}={shlex.quote(str(value))}"
        for key, value in {**options, **own, **ALWAYS, **signal}.items()
    ]
    # What the shell fills in stands in double quotes.
    words = ['"$FILES"/' + shlex.quote(recipe.name) if word == str(recipe) else shlex.quote(word)
             for word in jobs.arguments]  # fmt: skip
    if parts:
        words += ["--part", f'"$SLURM_ARRAY_TASK_ID/{jobs.parts}"']
    path.write_text(
        _JOB.format(options="\n".join(flags), arguments=" ".join(words)), encoding="utf-8"
    )
    return path


def _submission(variable: str, file: Path, after: Sequence[str], parts: int = 0) -> str:
    words = [f"--dependency=afterok:{':'.join(f'${name}' for name in after)}"] if after else []
    words += [f"--array=0-{parts - 1}", '--output="$array_log"'] if parts else ['--output="$log"']
    return f'{variable}=$(submit {" ".join(words)} "$FILES"/{shlex.quote(file.name)})'
