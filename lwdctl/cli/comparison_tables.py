"""A comparison as tables on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lwdctl.cli.output import format_value, print_table, print_text

if TYPE_CHECKING:
    from lwdctl.analysis.results import Cell, Comparison, Control, PairedTest


def print_csv(comparison: Comparison) -> None:
    """Print the cells as CSV."""
    from lwdctl.analysis.files import cells_csv

    for line in cells_csv(comparison).splitlines():
        print_text(line)


def print_comparison(comparison: Comparison) -> None:
    """Print the tables of cells, paired tests and controls."""
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
            [_test_row(pair) for pair in comparison.pairs],
        )  # fmt: skip
    if comparison.controls:
        print_text()
        print_text("Disturbed minus undisturbed: the same models on the same initial states.")
        print_table(
            [
                "policy", "horizon", "perturbation", "states", "success [95 %]",
                f"{comparison.metric} [95 %]",
            ],
            [_control_row(control) for control in comparison.controls],
        )  # fmt: skip


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
    operations = cell.operations_per_step
    return [
        cell.label,
        format_value(cell.latent),
        format_value(cell.horizon),
        f"{cell.perturbation:g}",
        str(len(cell.train_seeds)),
        str(cell.episodes) + (f" ({cell.errors} lost)" if cell.errors else ""),
        _estimate(cell.success, cell.success_low, cell.success_high, cell.success_deviation),
        _estimate(cell.score, cell.score_low, cell.score_high, cell.score_deviation),
        "-" if operations is None else f"{operations:.3g}",
    ]


def _test_row(pair: PairedTest) -> list[str]:
    horizons = dict.fromkeys([format_value(pair.horizon), format_value(pair.against_horizon)])
    return [
        pair.label,
        pair.against,
        " / ".join(horizons),
        f"{pair.perturbation:g}",
        str(pair.states),
        str(pair.better),
        str(pair.worse),
        _difference(pair.success_difference, pair.success_low, pair.success_high),
        _p(pair.success_p),
        _p(pair.success_p_holm),
        _difference(pair.score_difference, pair.score_low, pair.score_high),
        _p(pair.score_p),
        _p(pair.score_p_holm),
    ]


def _control_row(control: Control) -> list[str]:
    return [
        control.label,
        format_value(control.horizon),
        f"{control.perturbation:g}",
        str(control.states),
        _difference(control.success_difference, control.success_low, control.success_high),
        _difference(control.score_difference, control.score_low, control.score_high),
    ]


def _estimate(
    value: float | None, low: float | None, high: float | None, deviation: float | None
) -> str:
    if value is None or low is None or high is None:
        return "-"
    spread = "" if deviation is None else f" sd {_short(deviation)}"
    return f"{_short(value)} [{_short(low)}, {_short(high)}]{spread}"


def _difference(value: float, low: float, high: float) -> str:
    return f"{value:+.3g} [{low:+.3g}, {high:+.3g}]"


def _short(value: float) -> str:
    """Write three decimals of a share, four digits of anything larger."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
