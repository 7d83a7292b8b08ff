"""`lwdctl run`: run a recipe from beginning to end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lwdctl.cli.cluster import (
    DETACH,
    EVAL_JOBS,
    EXECUTOR,
    PART,
    SCRIPT,
    SLURM,
    ClusterOptions,
    parse_part,
    run_on_cluster,
    write_files,
)
from lwdctl.cli.generate import TRACK, TRACK_PROJECT, Shared, bare_option, trackers
from lwdctl.cli.output import (
    format_value,
    interval_text,
    measured_text,
    print_json,
    print_result_rows,
    print_table,
    print_text,
    reserved_stdout,
    where_texts,
)
from lwdctl.cli.signals import Terminated
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError, LwdctlError
from lwdctl.core.plain_text import listed
from lwdctl.core.progress import Progress
from lwdctl.pipeline.expected import Comparison
from lwdctl.pipeline.local import StageServer, parse_jobs, run_recipe
from lwdctl.pipeline.plan import RecipeRun, run_only, run_only_part
from lwdctl.pipeline.recipe import Recipe, read_recipe
from lwdctl.pipeline.records import DONE
from lwdctl.pipeline.runner import Outcome, compare_all, preview, sweep_rows
from lwdctl.pipeline.slurm_job import patience

_FROM = Annotated[
    str,
    bare_option(
        "First stage to run again; all later ones run again, too.", "--from", metavar="STAGE"
    ),
]
_UNTIL = Annotated[str, bare_option("Last stage to run.", "--until", metavar="STAGE")]
_SET = Annotated[
    list[str] | None,
    bare_option(
        "Setting to change; repeat the option for several.", "--set", metavar="STAGE.KEY=VALUE"
    ),
]
_ONLY = Annotated[
    str,
    bare_option(
        "Run this stage alone, on the artifacts that the stages before it have made.",
        "--only",
        metavar="STAGE",
    ),
]
_JOBS = Annotated[
    str,
    bare_option(
        "Number of stages to run at once, each in a process of its own; auto: as many as cores,"
        " memory and GPUs allow  [default: 1, in this process]",
        "--jobs",
        metavar="INTEGER|auto",
    ),
]
SWEEP = Annotated[
    list[str] | None,
    bare_option(
        "Setting with several values; each value gets stages of its own. seeds=0,1,2 sets the"
        " training seeds. Repeat the option to run all combinations.",
        "--sweep",
        metavar="STAGE.KEY=VALUE,...",
    ),
]
_SMOKE = "Run at toy size: apply the recipe's [smoke] tables; artifacts get the suffix -smoke."


def command(  # noqa: PLR0913, PLR0917 - the options of the command line
    shared: Shared,
    recipe_path: Annotated[Path, typer.Argument(help="A recipe, a .toml file.", metavar="RECIPE")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; run nothing.")] = False,
    start: _FROM = "",
    until: _UNTIL = "",
    only: _ONLY = "",
    jobs: _JOBS = "1",
    part: PART = "",
    assignments: _SET = None,
    sweep: SWEEP = None,
    smoke: Annotated[bool, typer.Option("--smoke", help=_SMOKE)] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 when an expected number is missed.")
    ] = False,
    executor: EXECUTOR = "here",
    slurm: SLURM = None,
    detach: DETACH = False,
    eval_jobs: EVAL_JOBS = 0,
    slurm_script: SCRIPT = "",
    track: TRACK = None,
    track_project: TRACK_PROJECT = "",
) -> None:
    """Run a recipe's stages, skip those that are up to date, and check the expected numbers."""
    cluster = ClusterOptions(
        executor, tuple(slurm or ()), slurm_script, detach, eval_jobs, jobs, only
    )
    only_part = parse_part(part, only)
    tracking = trackers(track, track_project, "run")
    server = None
    with contextlib.ExitStack() as failing:
        if not (dry_run or only or cluster.is_used) and parse_jobs(jobs) != 1:
            # It imports what the stages need while the recipe is read.
            server = failing.enter_context(StageServer(forked=True))
        recipe = read_recipe(recipe_path, sweep or ())
        run = RecipeRun(
            recipe, shared.workspace, tuple(assignments or ()), smoke, start, until, tracking
        )
        if check and not dry_run:
            _check_compares(run, only, smoke or detach or slurm_script or part)
        failing.pop_all()
    if dry_run:
        outcomes = _preview(run, only)
    elif slurm_script:
        write_files(run, cluster, as_json=shared.as_json)
        return
    elif only_part:
        run_only_part(run, only, only_part, shared.progress, patience=patience())
        return
    else:
        with reserved_stdout(), _said_what_is_left(run):
            outcomes = _run(run, only, cluster, shared.progress, server)
    compared = () if dry_run or smoke or detach else compare_all(recipe.expected, outcomes)
    swept = [] if dry_run or detach else sweep_rows(outcomes, run.workspace.root, shared.progress)
    if shared.as_json:
        _print_json(recipe, outcomes, compared, swept)
    else:
        _print(outcomes, compared, detailed=dry_run)
        _print_swept(swept)
    missed = [item for item in compared if not item.met]
    if check and missed:
        raise LwdctlError(
            f"{len(missed)} of {len(compared)} expected numbers were missed",
            f"see the table above; protocol and sources are in {recipe.path}",
        )


def _check_compares(run: RecipeRun, only: str, measures_nothing: bool | str) -> None:
    """Check that expected numbers of the recipe, where it has some, are compared.

    Raises:
        ConfigError: None would be, and the command would end as if all were met.
    """
    expected = {item.stage for item in run.recipe.expected}
    ran = {only} if only else {step.id for step in run.steps}
    if expected and (measures_nothing or not expected & ran):
        raise ConfigError(
            "with these options no expected number is compared, so that --check would pass",
            f"leave --check out, or run all of {listed(sorted(expected))} at full size",
        )


@contextlib.contextmanager
def _said_what_is_left(run: RecipeRun) -> Iterator[None]:
    """Say on an interruption with which stage the same run goes on, where it began with one."""
    before = {step.id: run.files.read(step.id) for step in run.steps}  # of earlier runs
    try:
        yield
    except (KeyboardInterrupt, Terminated) as error:
        records = {stage: run.files.read(stage) for stage in before}
        finished = [
            stage
            for stage, record in records.items()
            if record.state == DONE and record != before[stage]
        ]
        number = error.number if isinstance(error, Terminated) else signal.SIGINT
        left = run.after(finished).start if run.start else None
        raise Terminated(number, left) from error


def _preview(run: RecipeRun, only: str) -> list[Outcome]:
    wanted = run.step(only) if only else None
    outcomes = preview(run.steps, run.workspace)
    return [item for item in outcomes if wanted in (None, item.step)]


def _run(
    run: RecipeRun,
    only: str,
    cluster: ClusterOptions,
    progress: Progress,
    server: StageServer | None,
) -> list[Outcome]:
    if only:
        return [run_only(run, only, progress, patience=patience())]
    progress.message(f"{run.recipe.header.title or run.recipe.name} ({len(run.steps)} stages)")
    if cluster.is_used:
        return run_on_cluster(run, cluster, progress)
    return run_recipe(run, progress, jobs=parse_jobs(cluster.jobs), server=server)


def _print_json(
    recipe: Recipe,
    outcomes: Sequence[Outcome],
    compared: Sequence[Comparison],
    swept: Sequence[Mapping[str, Any]],
) -> None:
    last = outcomes[-1].artifact
    summary = {
        "recipe": recipe.name,
        "stages": [
            {
                "id": outcome.step.id,
                "command": outcome.step.stage.command,
                "state": outcome.state,
                "artifact": outcome.artifact.reference if outcome.artifact else None,
                "path": str(outcome.artifact.path) if outcome.artifact else None,
                "config": to_mapping(outcome.step.config),
                "seconds": outcome.seconds,
            }
            for outcome in outcomes
        ],
        "results": _result_rows(outcomes),
        "expected": [_expected(item) for item in compared],
        **({"sweep": swept} if swept else {}),
    }
    print_json(last.reference if last else None, last.path if last else None, summary)


def _expected(item: Comparison) -> dict[str, Any]:
    expectation = item.expectation
    return {
        "stage": expectation.stage,
        "metric": expectation.metric,
        "where": dict(expectation.where),
        "expected": expectation.text,
        "measured": item.measured,
        "interval": item.interval,
        "rows": item.rows,
        "met": item.met,
        "source": expectation.source,
    }


def _result_rows(outcomes: Sequence[Outcome]) -> list[Mapping[str, Any]]:
    """Return the result rows of all evaluations, each with the stage that measured it."""
    return [
        {"stage": outcome.step.id, **row}
        for outcome in outcomes
        if outcome.artifact
        for row in outcome.artifact.manifest.summary.get("results", [])
    ]


def _print(outcomes: Sequence[Outcome], compared: Sequence[Comparison], *, detailed: bool) -> None:
    rows = [
        [
            outcome.step.id,
            outcome.step.stage.command,
            outcome.state,
            outcome.artifact.reference if outcome.artifact else "-",
            f"{outcome.seconds:.1f}" if outcome.seconds else "-",
        ]
        for outcome in outcomes
    ]
    print_table(["stage", "command", "state", "artifact", "seconds"], rows)
    if detailed:
        for outcome in outcomes:
            print_text(f"{outcome.step.id}: {_changes(outcome)}")
        return
    results = _result_rows(outcomes)
    if results:
        print_text()
        print_result_rows(results)
    if compared:
        print_text()
        _print_compared(compared)


def _print_swept(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the results of a sweep, one row per combination and condition."""
    if not rows:
        return
    axes = list(dict.fromkeys(label for row in rows for label in row["combination"]))
    # Labels tell policies apart that were measured together, the axes those that were not.
    heads = ["stage", *axes, "policy", "horizon", "perturbation", "seeds", "episodes"]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    lines = []
    for row in rows:
        cells = [row["stage"], *(row["combination"].get(axis) for axis in axes), row["label"]]
        cells += [row["horizon"], row["perturbation"], row["train_seeds"], row["episodes"]]
        success, score = (
            interval_text(row[name], (row[f"{name}_low"], row[f"{name}_high"]))
            for name in ("success", "score")
        )
        scores = [score if row["metric"] == metric else "-" for metric in metrics]
        lines.append([*map(format_value, cells), success, *scores])
    print_text()
    print_text("Per combination, over training seeds and initial states:")
    print_table([*heads, "success [95 %]", *(f"{name} [95 %]" for name in metrics)], lines)


def _changes(outcome: Outcome) -> str:
    """Return the settings that differ from the stage's defaults."""
    defaults = to_mapping(outcome.step.stage.config())
    changed = [
        f"{key}={format_value(value)}"
        for key, value in to_mapping(outcome.step.config).items()
        if value != defaults[key]
    ]
    return " ".join(changed) or "default settings"


def _print_compared(compared: Sequence[Comparison]) -> None:
    rows = []
    for item in compared:
        expectation = item.expectation
        rows.append(
            [
                expectation.stage,
                expectation.metric,
                ", ".join(where_texts(item)) or "-",
                measured_text(item),
                expectation.text,
                "as expected" if item.met else "MISSED",
                expectation.source or "-",
            ]
        )
    print_table(["stage", "metric", "where", "measured", "expected", "verdict", "source"], rows)
