"""A recipe as plain files for sbatch, for clusters where no further package may be installed."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lwdctl.core.errors import ConfigError
from lwdctl.pipeline.plan import RecipeRun, plan_stages
from lwdctl.pipeline.slurm_jobs import StageJobs, check_log_folder, stage_jobs
from lwdctl.pipeline.slurm_systems import ALWAYS, WARNING_SECONDS

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
