"""`lwdctl report`: an experiment as one HTML file to send to others."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import user_path, write_durably
from lwdctl.artifacts.references import sanitize_name
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.compare import AGAINST, METRIC
from lwdctl.cli.generate import Shared, bare_argument, bare_option
from lwdctl.cli.output import measured_text, print_json, print_text, where_texts
from lwdctl.core.errors import ConfigError
from lwdctl.pipeline.expected import Comparison
from lwdctl.pipeline.recipe import make_plan, read_recipe
from lwdctl.pipeline.runner import compare_all, preview

if TYPE_CHECKING:
    from lwdctl.analysis.report.report import Expected, RecipeResults

DEFAULT_OUTPUT = "report.html"
RECIPE = ".toml"
_RUNS = Annotated[
    list[str] | None,
    bare_argument(
        "Evaluations (NAME, NAME:v2 or a path), or recipes (FILE.toml): the artifacts of their"
        " stages in this workspace that are up to date.  [default: the newest evaluation]",
        "RUN",
    ),
]
_OUTPUT = Annotated[
    str,
    bare_option(
        "File to write, replaced if it exists.  [default: ./NAME.html after the one run that was"
        f" named, otherwise ./{DEFAULT_OUTPUT}]",
        metavar="FILE",
    ),
]
_SMOKE = Annotated[
    bool, typer.Option("--smoke", help="Report on what `lwdctl run --smoke` made of the recipe.")
]
_SET = Annotated[
    list[str] | None,
    bare_option(
        "Setting that the recipe was run with; may be repeated.", "--set", metavar="STAGE.KEY=VALUE"
    ),
]


def command(
    shared: Shared,
    runs: _RUNS = None,
    output: _OUTPUT = "",
    against: AGAINST = None,
    metric: METRIC = None,
    smoke: _SMOKE = False,
    assignments: _SET = None,
) -> None:
    """Write an experiment as one HTML file: results, figures, training, lineage.

    The file needs no other file and no network. It shows success with intervals, measured
    beside expected numbers, the analyses of the same artifacts that are in the workspace,
    training curves, recorded episodes, and the commands that reproduce all of it.
    """
    workspace = shared.workspace
    recipes, sources = _sources(runs or [], smoke, assignments or [], workspace)
    path = _output(output, runs or [])
    check_writable(path)
    progress = shared.progress
    from lwdctl.analysis.report.report import build_report

    report = build_report(
        sources, workspace.root, recipes, against=against, metric=metric,
        progress=progress,
    )  # fmt: skip
    content = report.html.encode()
    write_durably(path, content)
    verdicts = [item.met for recipe in recipes for item in recipe.expected]
    summary = {
        "sources": [{"reference": item.reference, "digest": item.digest} for item in sources],
        "bytes": len(content),
        "expected": len(verdicts),
        "met": sum(1 for item in verdicts if item),
        "warnings": list(report.warnings),
    }
    if shared.as_json:
        print_json(None, path, summary)
        return
    for warning in report.warnings:
        progress.message(f"note: {warning}")
    if verdicts:
        print_text(f"{summary['met']} of {summary['expected']} expected numbers met")
    print_text(f"{path}  {len(content) / 1e6:.1f} MB")


def _sources(
    runs: Sequence[str], smoke: bool, assignments: Sequence[str], workspace: Workspace
) -> tuple[list[RecipeResults], list[Artifact]]:
    """Return the recipes and the artifacts to report on, each once."""
    recipes = []
    sources: dict[str, Artifact] = {}
    if not any(item.endswith(RECIPE) for item in runs) and (smoke or assignments):
        raise ConfigError("--smoke and --set belong to a recipe", "name one: pipelines/NAME.toml")
    for item in runs or [""]:
        if item.endswith(RECIPE):
            recipe, found = _read_recipe(Path(item), smoke, assignments, workspace)
            recipes.append(recipe)
        else:
            choose = "name one: lwdctl report NAME"
            found = [workspace.resolve("evaluation", item, choose=choose)]
        sources.update({artifact.digest: artifact for artifact in found})
    return recipes, list(sources.values())


def _read_recipe(
    path: Path, smoke: bool, assignments: Sequence[str], workspace: Workspace
) -> tuple[RecipeResults, list[Artifact]]:
    """Read a recipe and find the artifacts of its stages that are up to date.

    Raises:
        ConfigError: A bad recipe, or none of its stages is up to date.
    """
    from lwdctl.analysis.report.report import RecipeResults

    recipe = read_recipe(path)
    plan = make_plan(recipe, assignments=assignments, smoke=smoke)
    outcomes = preview(plan, workspace)
    found = [outcome.artifact for outcome in outcomes if outcome.artifact]
    options = [word for item in assignments for word in ("--set", item)]
    line = shlex.join(["lwdctl", "run", str(path), *["--smoke"] * smoke, *options])
    if not found:
        raise ConfigError(
            f"no stage of {path} has an artifact that is up to date in {workspace.root}",
            f"run it first: {line}; or name evaluations: lwdctl report NAME",
        )
    for artifact in found:
        artifact.check()
    compared = () if smoke else compare_all(recipe.expected, outcomes)
    header = recipe.header
    results = RecipeResults(
        title=header.title or recipe.name,
        path=str(path),
        paper=header.paper,
        time=header.time,
        device=header.device,
        command=line,
        smoke=smoke,
        expected=tuple(map(_expected, compared)),
        missing=tuple(outcome.step.id for outcome in outcomes if not outcome.artifact),
    )
    return results, found


def _expected(item: Comparison) -> Expected:
    from lwdctl.analysis.report.report import Expected

    expectation = item.expectation
    return Expected(
        metric=expectation.metric,
        where=", ".join([*where_texts(item), f"stage {expectation.stage}"]),
        measured=measured_text(item),
        expected=expectation.text,
        met=None if item.measured is None else item.met,
        source=expectation.source,
    )


def _output(output: str, runs: Sequence[str]) -> Path:
    if output:
        return user_path(output)
    if len(runs) != 1:
        return Path(DEFAULT_OUTPUT)
    name = Path(runs[0]).name.removesuffix(RECIPE)
    return Path(f"{sanitize_name(name)}.html")


def check_writable(path: Path, option: str = "--output FILE") -> None:
    """Check before the work that the file that `option` names can be written.

    Raises:
        ConfigError: It cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            why = "it is a directory" if path.is_dir() else ""
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise ConfigError(f"cannot write {path}: {why}", f"name another file with {option}")
