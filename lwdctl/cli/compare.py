"""`lwdctl compare`: policies side by side, with intervals, paired tests and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.bars import make_progress
from lwdctl.cli.comparison_tables import AGAINST, METRIC, print_comparison, print_csv
from lwdctl.cli.failures import CommandLineError
from lwdctl.cli.generate import DEBUG, JSON, QUIET, WORKSPACE
from lwdctl.cli.output import print_json
from lwdctl.core.errors import ArtifactError
from lwdctl.core.suggest import did_you_mean

if TYPE_CHECKING:
    from lwdctl.analysis.results import Comparison
    from lwdctl.core.progress import Progress

FORMATS = ("table", "csv", "json")
DEFAULT_OUTPUT = "comparison"
_EVALUATIONS = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="EVAL",
        help="Evaluations to compare: NAME, NAME:v2 or a path  [default: the newest].",
        show_default=False,
    ),
]
_FORMAT = Annotated[
    str, typer.Option("--format", help="What stdout carries.", metavar="[table|csv|json]")
]
_OUTPUT = Annotated[
    str,
    typer.Option(
        help="Directory for the tables (CSV), comparison.json and the figures (PNG, PDF); files"
        f" of an earlier comparison there are replaced  [default: ./{DEFAULT_OUTPUT} with"
        " --format table, no files otherwise]",
        metavar="DIR",
        show_default=False,
    ),
]
_RUN = Annotated[
    str,
    typer.Option(
        "--run",
        help="Chain to take the newest evaluation of: the name of one of its artifacts.",
        metavar="NAME",
        show_default=False,
    ),
]


def command(
    evaluations: _EVALUATIONS = None,
    against: AGAINST = "",
    metric: METRIC = "",
    output_format: _FORMAT = "table",
    output: _OUTPUT = "",
    run_name: _RUN = "",
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Compare policies of one or more evaluations: intervals, paired tests, figures.

    Success has a 95 % interval, Wilson's for one training seed and a cluster bootstrap over
    training seeds and initial states for several. Each policy is tested against one
    reference on the same episodes: McNemar's exact test for success, a paired permutation
    test for the score, both with Holm's correction.
    """
    del debug_mode
    if output_format not in FORMATS:
        raise CommandLineError(
            f"there is no format '{output_format}'", did_you_mean(output_format, FORMATS)
        )
    shape = "json" if as_json else output_format
    workspace = Workspace.locate(workspace_path or None)
    artifacts = _resolve(workspace, evaluations or [], run_name)
    progress = make_progress(quiet=be_quiet)
    from lwdctl.analysis.comparison import compare
    from lwdctl.analysis.runs import read_runs

    progress.message(f"reading {', '.join(item.reference for item in artifacts)}")
    comparison = compare(read_runs(artifacts, workspace.root), against, metric, progress)
    document = {"evaluations": _sources(artifacts), **comparison.to_mapping()}
    directory = output or (DEFAULT_OUTPUT if shape == "table" else "")
    notes = list(comparison.notes)
    if directory:
        notes += _write(comparison, document, Path(directory).expanduser(), progress)
    for note in notes:
        progress.message(f"note: {note}")
    if shape == "json":
        print_json(None, directory or None, document)
    elif shape == "csv":
        print_csv(comparison)
    else:
        print_comparison(comparison)


def _resolve(workspace: Workspace, references: Sequence[str], run: str) -> list[Artifact]:
    if references:
        return [workspace.resolve("evaluation", reference, run) for reference in references]
    try:
        return [workspace.resolve("evaluation", run=run)]
    except ArtifactError as error:
        # Here evaluations are arguments, not an option.
        hint = error.hint.replace("name it with --evaluation NAME", "name it: lwdctl compare NAME")
        raise ArtifactError(error.message, hint) from error


def _sources(artifacts: Sequence[Artifact]) -> list[dict[str, str]]:
    found = {
        item.digest: {"reference": item.reference, "path": str(item.path), "digest": item.digest}
        for item in artifacts
    }
    return sorted(found.values(), key=lambda item: (item["reference"], item["digest"]))


def _write(
    comparison: Comparison, document: dict[str, Any], directory: Path, progress: Progress
) -> list[str]:
    from lwdctl.analysis.figures import left_out
    from lwdctl.analysis.files import write_files

    progress.message(f"writing tables and figures to {directory}")
    write_files(comparison, document, directory)
    return left_out(comparison)
