"""A comparison on the terminal: its options and its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lwdctl.cli.output import print_table, print_text

if TYPE_CHECKING:
    from lwdctl.analysis.results import Cell, Comparison

AGAINST = Annotated[
    str,
    typer.Option(
        help="Policy that the others are tested against  [default: lwd, the method]",
        metavar="POLICY",
        show_default=False,
    ),
]
METRIC = Annotated[
    str,
    typer.Option(
        help="Score beside success (max_overlap, return, ...)"
        "  [default: the environment's first metric]",
        metavar="NAME",
        show_default=False,
    ),
]


def print_csv(comparison: Comparison) -> None:
    """Print the cells as CSV."""
    from lwdctl.analysis.files import cells_csv

    for line in cells_csv(comparison).splitlines():
        print_text(line)


def print_comparison(comparison: Comparison) -> None:
    """Print the tables of cells, paired tests and controls."""
    from lwdctl.analysis.words import control_row, cost_row, pair_row

    cells = comparison.overall
    print_table(
        [
            "policy", "latent", "horizon", "perturbation", "seeds", "episodes", "success [95 %]",
            f"{comparison.metric} [95 %]", "operations/step",
        ],
        [_cell_row(cell) for cell in cells],
    )  # fmt: skip
    if comparison.pairs:
        print_text()
        _print_heading(comparison)
        print_table(
            [
                "policy", "against", "horizon", "perturbation", "states", "better", "worse",
                "success [95 %]", "p", "Holm", f"{comparison.metric} [95 %]", "p", "Holm",
            ],
            [pair_row(pair) for pair in comparison.pairs],
        )  # fmt: skip
    if comparison.controls:
        print_text()
        print_text("Disturbed minus undisturbed: the same models on the same initial states.")
        print_table(
            [
                "policy", "horizon", "perturbation", "states", "success [95 %]",
                f"{comparison.metric} [95 %]",
            ],
            [control_row(control) for control in comparison.controls],
        )  # fmt: skip
    if comparison.costs:
        print_text()
        print_text(
            "What equal success costs: the reference's best beside the cheapest cell of each policy"
            " that solves at least as much, else beside its best."
        )
        print_table(
            ["policy", "against", "horizon", "perturbation", "success", "operations/step", "ratio"],
            [cost_row(cost) for cost in comparison.costs],
        )


def _print_heading(comparison: Comparison) -> None:
    print_text(
        f"Minus {comparison.against} on the same initial states. better, worse: states solved more"
        " often, less often."
    )
    print_text(
        "p: these trained models on other initial states (McNemar's exact or permutation test);"
        f" Holm: corrected for all tests of the column ({len(comparison.pairs)})."
    )


def _cell_row(cell: Cell) -> list[str]:
    from lwdctl.analysis.words import NOTHING, estimate, show

    operations = cell.flops_per_step
    return [
        cell.label,
        show(cell.latent),
        show(cell.horizon),
        f"{cell.perturbation:g}",
        str(len(cell.train_seeds)),
        str(cell.episodes) + (f" ({cell.errors} lost)" if cell.errors else ""),
        estimate(cell.success, cell.success_low, cell.success_high, cell.success_deviation),
        estimate(cell.score, cell.score_low, cell.score_high, cell.score_deviation),
        NOTHING if operations is None else f"{operations:.3g}",
    ]
