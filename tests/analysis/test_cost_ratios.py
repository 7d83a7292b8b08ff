"""What equal success costs: the cheapest of equals, and policies that never get there."""

import sys
from pathlib import Path

import pytest

from lwdctl.analysis.cost_ratios import cost_ratios

sys.path.insert(0, str(Path(__file__).parent))
from comparison_cells import cell

sys.path.pop(0)


def lwd(name, success, operations, **more):
    return cell(f"lwd {name}".strip(), success, operations, latent="sampled", **more)


def test_the_best_reference_stands_beside_the_cheapest_that_solves_as_much():
    cells = [
        lwd("small", 0.9, 2.0),
        lwd("large", 0.9, 8.0),
        lwd("tiny", 0.5, 1.0),
        cell("dp xs", 0.8, 10.0),
        cell("dp m", 0.9, 100.0, horizon=32),
        cell("dp l", 1.0, 800.0),
    ]
    (found,) = cost_ratios(cells, "lwd large")
    assert (found.label, found.horizon, found.against) == ("dp m", 32, "lwd small")
    assert found.ratio == pytest.approx(50.0)


def test_a_policy_that_solves_less_has_no_ratio():
    (found,) = cost_ratios([lwd("", 0.9, 2.0), cell("dp", 0.7, 4.0), cell("dp", 0.8, 9.0)], "lwd")
    assert found.ratio is None
    assert (found.success, found.flops_per_step) == (0.8, 9.0)


def test_disturbances_are_apart_and_controls_and_free_policies_left_out():
    cells = [
        lwd("", 0.9, 2.0),
        lwd("", 0.4, 2.0, perturbation=1.0),
        cell("lwd", 1.0, 0.1, latent="shuffled"),
        cell("dp", 0.5, 6.0),
        cell("dp", 0.5, 6.0, perturbation=1.0),
        cell("ldp", 1.0, 0.1, latent="oracle"),
        cell("random", 1.0, 0.0),
        cell("mlp", None, 1.0),
    ]
    found = {item.perturbation: item for item in cost_ratios(cells, "lwd")}
    assert (found[0.0].ratio, found[1.0].ratio) == (None, pytest.approx(3.0))
    assert {item.label for item in cost_ratios(cells, "lwd")} == {"dp"}


def test_a_policy_is_not_priced_by_its_oracle():
    cells = [
        lwd("", 0.75, 2e6), cell("lwd-oracle", 1.0, 1e4, latent="oracle"), cell("dp", 0.7, 1e6)
    ]  # fmt: skip
    (found,) = cost_ratios(cells, "dp")
    assert (found.label, found.ratio) == ("lwd", pytest.approx(2.0))


@pytest.mark.parametrize("against", ["", "ldp"])
def test_without_a_reference_there_is_nothing_to_compare(against):
    assert list(cost_ratios([lwd("", 0.9, 2.0), cell("dp", 0.5, 6.0)], against)) == []
