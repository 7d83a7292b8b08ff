"""What equal success costs, in operations per environment step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lwdctl.analysis.results import Cell, CostRatio


def cost_ratios(cells: Sequence[Cell], against: str) -> Iterator[CostRatio]:
    """Compare what equal success costs.

    Under every disturbance, the most successful cell of the reference's policy and latent source
    (the cheapest of equals) stands beside the cheapest cell of every other policy that solves at
    least as much; where none does, beside that policy's most successful one. Controls of those
    others (`encoded`, which is given the answer, `mean` and so on) are left out.

    Args:
        cells: Cells over all tasks.
        against: Label of the reference; "" or an unknown one gives nothing.
    """
    reference = next((cell for cell in cells if cell.label == against), None)
    if reference is None:
        return
    kind = reference.policy, reference.latent
    for perturbation in sorted({cell.perturbation for cell in cells}):
        here = [cell for cell in cells if cell.perturbation == perturbation and _is_priced(cell)]
        own = [cell for cell in here if (cell.policy, cell.latent) == kind]
        if not own:
            continue
        best = max(own, key=_by_success)
        for policy in sorted({cell.policy for cell in here} - {reference.policy}):
            others = [cell for cell in here if cell.policy == policy and cell.is_method]
            if others:
                yield _ratio(best, others)


def _is_priced(cell: Cell) -> bool:
    """Tell whether a cell ran and does any arithmetic (random actions do none)."""
    return cell.success is not None and bool(cell.flops_per_step)


def _numbers(cell: Cell) -> tuple[float, float]:
    """Return success and operations of a priced cell."""
    return cell.success or 0.0, cell.flops_per_step or 0.0


def _by_success(cell: Cell) -> tuple[float, float]:
    success, operations = _numbers(cell)
    return success, -operations


def _ratio(best: Cell, others: Sequence[Cell]) -> CostRatio:
    wanted, price = _numbers(best)
    equal = [cell for cell in others if _numbers(cell)[0] >= wanted]
    shown = (
        min(equal, key=lambda cell: _numbers(cell)[1]) if equal else max(others, key=_by_success)
    )
    success, operations = _numbers(shown)
    return CostRatio(
        label=shown.label,
        horizon=shown.horizon,
        against=best.label,
        against_horizon=best.horizon,
        perturbation=best.perturbation,
        success=success,
        against_success=wanted,
        flops_per_step=operations,
        against_flops_per_step=price,
        ratio=operations / price if equal else None,
    )
