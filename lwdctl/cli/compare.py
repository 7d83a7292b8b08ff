"""`lwdctl compare`: policies side by side, with intervals, paired tests and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lwdctl.cli.failures import CommandLineError
from lwdctl.cli.generate import Shared, bare_argument, bare_option
from lwdctl.cli.output import print_json, print_lines, print_table, print_text
from lwdctl.core.suggest import did_you_mean

if TYPE_CHECKING:
    from lwdctl.analysis.comparison import Comparison

FORMATS = ("table", "csv", "json")
DEFAULT_OUTPUT = "comparison"
AGAINST = Annotated[
    str | None,
    bare_option("Policy that the others are tested against.  [default: lwd]", metavar="POLICY"),
]
METRIC = Annotated[
    str | None,
    bare_option(
        "Score to show beside success (max_overlap, return, ...)."
        "  [default: the environment's first metric]",
        metavar="NAME",
    ),
]
_EVALUATIONS = Annotated[
    list[str] | None,
    bare_argument(
        "Evaluations to compare: NAME, NAME:v2 or a path.  [default: the newest]", "EVAL"
    ),
]
_FORMAT = Annotated[
    str, typer.Option("--format", help="Format of stdout.", metavar="[table|csv|json]")
]
_OUTPUT = Annotated[
    str,
    bare_option(
        "Directory for the tables (CSV), comparison.json and the figures (PNG, PDF); files of an"
        f" earlier comparison there are replaced.  [default: ./{DEFAULT_OUTPUT} with --format"
        " table, no files otherwise]",
        metavar="DIR",
    ),
]
_RUN = Annotated[
    str,
    bare_option(
        "Run whose newest evaluation to compare: the name of one of its artifacts.",
        "--run",
        metavar="NAME",
    ),
]


def command(
    shared: Shared,
    evaluations: _EVALUATIONS = None,
    against: AGAINST = None,
    metric: METRIC = None,
    output_format: _FORMAT = "table",
    output: _OUTPUT = "",
    run_name: _RUN = "",
) -> None:
    """Compare policies of one or more evaluations: intervals, paired tests, figures.

    Success has a 95 % interval, Wilson's for one training seed and a two-way bootstrap over
    training seeds and initial states for several. Each policy is tested against one
    reference on the same episodes: McNemar's exact test for success, a paired permutation
    test for the score, both with Holm's correction.
    """
    if output_format not in FORMATS:
        raise CommandLineError(
            f"there is no format '{output_format}'", did_you_mean(output_format, FORMATS)
        )
    shape = "json" if shared.as_json else output_format
    choose = "name it: lwdctl compare NAME, or choose a run: --run NAME"
    artifacts = [
        shared.workspace.resolve("evaluation", reference, run_name, choose=choose)
        for reference in evaluations or [""]
    ]
    from lwdctl.analysis.comparison import compare_evaluations

    progress = shared.progress
    progress.message(f"reading {', '.join(item.reference for item in artifacts)}")
    comparison = compare_evaluations(
        artifacts, shared.workspace.root, against=against, metric=metric, progress=progress
    )
    directory = output or (DEFAULT_OUTPUT if shape == "table" else "")
    notes = list(comparison.notes)
    if directory:
        progress.message(f"writing tables and figures to {directory}")
        comparison.save(directory)
        notes += comparison.missing_figures
    for note in notes:
        progress.message(f"note: {note}")
    if shape == "json":
        print_json(None, directory or None, comparison.to_json())
    elif shape == "csv":
        print_lines(comparison.to_csv())
    else:
        _print(comparison)


def _print(comparison: Comparison) -> None:
    (_, overall), *others = comparison.tables()
    print_table(overall.columns, overall.rows)
    for caption, table in others:
        print_text()
        print_text(caption)
        print_table(table.columns, table.rows)
