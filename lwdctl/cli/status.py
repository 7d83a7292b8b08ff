"""`lwdctl status`: where the stages of a recipe stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lwdctl.cli.bars import fields_text
from lwdctl.cli.generate import Shared, bare_option
from lwdctl.cli.output import print_json, print_table, print_text
from lwdctl.cli.run import SWEEP
from lwdctl.core.plain_text import plain_text
from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.recipe import read_recipe
from lwdctl.pipeline.slurm_queue import cancel_stages
from lwdctl.pipeline.status import StageStatus, recipe_status

_SET = Annotated[
    list[str] | None,
    bare_option("Setting that the run changed, as for `run`.", "--set", metavar="STAGE.KEY=VALUE"),
]
_CANCEL = Annotated[
    bool,
    bare_option(
        "Cancel the jobs of this recipe that are queued or running in Slurm. Finished artifacts and"
        " checkpoints stay: `lwdctl run RECIPE --executor slurm` continues from them.",
        "--cancel",
    ),
]
_LONGEST = 100
"""Most characters of an error in the table."""


def command(
    shared: Shared,
    recipe_path: Annotated[Path, typer.Argument(help="A recipe, a .toml file.", metavar="RECIPE")],
    assignments: _SET = None,
    sweep: SWEEP = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Show the run at toy size (`run --smoke`).")
    ] = False,
    cancel: _CANCEL = False,
) -> None:
    """Show which stages of a recipe are done, running, queued, resumable, failed or missing."""
    run = RecipeRun(
        read_recipe(recipe_path, sweep or ()), shared.workspace, tuple(assignments or ()), smoke
    )
    cancelled = cancel_stages(run) if cancel else []
    for job in cancelled:
        shared.progress.message(f"{job.stage}: cancelled job {job.id}, which was {job.state}")
    found = recipe_status(run, shared.progress)
    if shared.as_json:
        stages = [item.to_json() for item in found]
        summary = {"recipe": run.recipe.name, "stages": stages}
        if cancel:
            summary["cancelled"] = [job.id for job in cancelled]
        print_json(None, None, summary)
        return
    rows = [[item.id, item.command, item.state, _what(item)] for item in found]
    print_table(["stage", "command", "state", "artifact, progress or error"], rows)
    print_text(_counts(found))
    for item in found:
        if (item.error or item.queue) and item.log:
            print_text(f"messages of {item.id}: {item.log}")


def _what(item: StageStatus) -> str:
    """Return what there is to say about a stage beside its state."""
    if item.queue and (item.task is None or not item.task.title):
        return item.queue
    if item.error:
        return plain_text(item.error, _LONGEST)
    if item.task is None or not item.task.title:
        return item.artifact or "-"
    task = item.task
    total = f"/{task.total} ({100 * task.done / task.total:.0f} %)" if task.total else ""
    numbers = fields_text(task.fields)
    where = f" on {item.host}" + (f", job {item.job}" if item.job else "") if item.host else ""
    return f"{task.title}: {task.done}{total}" + (f", {numbers}" if numbers else "") + where


def _counts(found: Sequence[StageStatus]) -> str:
    counts = Counter(item.state for item in found)
    parts = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{len(found)} stages: {parts}"
