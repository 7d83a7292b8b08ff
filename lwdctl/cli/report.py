"""`lwdctl report`: an experiment as one HTML file to send to others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.durable import write_durably
from lwdctl.artifacts.kinds import sanitize_name
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.bars import make_progress
from lwdctl.cli.comparison_tables import AGAINST, METRIC
from lwdctl.cli.generate import DEBUG, JSON, QUIET, WORKSPACE
from lwdctl.cli.output import print_json, print_text
from lwdctl.cli.report_sources import RecipeWords, describe, read_recipe_facts
from lwdctl.core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from lwdctl.analysis.report.records import RecipeFacts

DEFAULT_OUTPUT = "report.html"
RECIPE = ".toml"
_RUNS = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="Evaluations (NAME, NAME:v2 or a path), or recipes (FILE.toml): what their stages"
        " made in this workspace, if it is up to date  [default: the newest evaluation].",
        show_default=False,
    ),
]
_OUTPUT = Annotated[
    str,
    typer.Option(
        help="The file to write, replaced if it is there  [default: ./NAME.html after the one run"
        f" that was named, otherwise ./{DEFAULT_OUTPUT}]",
        metavar="FILE",
        show_default=False,
    ),
]
_SMOKE = Annotated[
    bool, typer.Option("--smoke", help="Of a recipe, take what `lwdctl run --smoke` made.")
]
_SET = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting that the recipe was run with; may be given again.",
        metavar="STAGE.KEY=VALUE",
        show_default=False,
    ),
]


def command(
    runs: _RUNS = None,
    output: _OUTPUT = "",
    against: AGAINST = "",
    metric: METRIC = "",
    smoke: _SMOKE = False,
    assignments: _SET = None,
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Write an experiment as one HTML file: results, figures, training, lineage.

    The file needs nothing beside itself and no network. It shows success with intervals,
    measured beside expected numbers, the analyses of the same artifacts that are in the
    workspace, training curves, recorded episodes, and the commands that make all of it again.
    """
    del debug_mode
    workspace = Workspace.locate(workspace_path or None)
    words = RecipeWords(smoke, tuple(assignments or ()))
    recipes, leading = _sources(runs or [], words, workspace)
    path = _output(output, runs or [])
    _prepare(path)
    progress = make_progress(quiet=be_quiet)
    from lwdctl.analysis.report.gather import gather
    from lwdctl.analysis.report.page import render_page

    report = gather(
        leading, workspace.root, describe, recipes, against=against, metric=metric,
        progress=progress,
    )  # fmt: skip
    content = render_page(report).encode()
    write_durably(path, content)
    verdicts = [item.met for recipe in recipes for item in recipe.expected]
    summary = {
        "sources": [{"reference": item.reference, "digest": item.digest} for item in leading],
        "bytes": len(content),
        "expected": len(verdicts),
        "met": sum(1 for item in verdicts if item),
        "warnings": list(report.warnings),
    }
    if as_json:
        print_json(None, path, summary)
        return
    for warning in report.warnings:
        progress.message(f"note: {warning}")
    if verdicts:
        print_text(f"{summary['met']} of {summary['expected']} expected numbers met")
    print_text(f"{path}  {len(content) / 1e6:.1f} MB")


def _sources(
    runs: Sequence[str], words: RecipeWords, workspace: Workspace
) -> tuple[list[RecipeFacts], list[Artifact]]:
    """Return the recipes and the artifacts that are meant, each once."""
    recipes = []
    leading: dict[str, Artifact] = {}
    for item in runs:
        if item.endswith(RECIPE):
            facts, found = read_recipe_facts(Path(item), words, workspace)
            recipes.append(facts)
        else:
            found = [workspace.resolve("evaluation", item)]
        leading.update({artifact.digest: artifact for artifact in found})
    if not recipes and (words.smoke or words.assignments):
        raise ConfigError("--smoke and --set belong to a recipe", "name one: pipelines/NAME.toml")
    if not runs:
        newest = _newest(workspace)
        leading[newest.digest] = newest
    return recipes, list(leading.values())


def _newest(workspace: Workspace) -> Artifact:
    try:
        return workspace.resolve("evaluation")
    except ArtifactError as error:
        # Here evaluations are arguments, not an option.
        hint = "name one: lwdctl report NAME" if "--run" in error.hint else error.hint
        raise ArtifactError(error.message, hint) from error


def _output(output: str, runs: Sequence[str]) -> Path:
    if output:
        return Path(output).expanduser()
    if len(runs) != 1:
        return Path(DEFAULT_OUTPUT)
    name = Path(runs[0]).name.removesuffix(RECIPE)
    return Path(f"{sanitize_name(name)}.html")


def _prepare(path: Path) -> None:
    """Find out before the work whether the file can be written.

    Raises:
        ConfigError: It cannot.
    """
    why = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
    if path.is_dir():
        why = "it is a directory"
    elif not why and not os.access(path.parent, os.W_OK):
        why = f"{path.parent} is not writable"
    if why:
        raise ConfigError(f"cannot write {path}: {why}", "name another file with --output FILE")
