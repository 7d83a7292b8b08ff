"""What equal success costs: the cheapest of equals, and policies that never get there."""

import sys
from pathlib import Path

import pytest

from lwdctl.analysis.comparison import cost_ratios

sys.path.insert(0, str(Path(__file__).parent))
from comparison_rows import row

sys.path.pop(0)


def lwd(name, success, flops, **more):
    return row(f"lwd {name}".strip(), success, flops, latent="sampled", **more)


def test_the_best_reference_stands_beside_the_cheapest_that_solves_as_much():
    rows = [
        lwd("small", 0.9, 2.0),
        lwd("large", 0.9, 8.0),
        lwd("tiny", 0.5, 1.0),
        row("dp xs", 0.8, 10.0),
        row("dp m", 0.9, 100.0, horizon=32),
        row("dp l", 1.0, 800.0),
    ]
    (found,) = cost_ratios(rows, "lwd large")
    assert (found.label, found.horizon, found.against) == ("dp m", 32, "lwd small")
    assert found.ratio == pytest.approx(50.0)


def test_a_policy_that_solves_less_has_no_ratio():
    (found,) = cost_ratios([lwd("", 0.9, 2.0), row("dp", 0.7, 4.0), row("dp", 0.8, 9.0)], "lwd")
    assert found.ratio is None
    assert (found.success, found.flops_per_step) == (0.8, 9.0)


def test_perturbations_are_apart_and_controls_and_free_policies_left_out():
    rows = [
        lwd("", 0.9, 2.0),
        lwd("", 0.4, 2.0, perturbation=1.0),
        row("lwd", 1.0, 0.1, latent="shuffled"),
        row("dp", 0.5, 6.0),
        row("dp", 0.5, 6.0, perturbation=1.0),
        row("ldp", 1.0, 0.1, latent="oracle"),
        row("random", 1.0, 0.0),
        row("mlp", None, 1.0),
    ]
    found = {item.perturbation: item for item in cost_ratios(rows, "lwd")}
    assert (found[0.0].ratio, found[1.0].ratio) == (None, pytest.approx(3.0))
    assert {item.label for item in cost_ratios(rows, "lwd")} == {"dp"}


def test_a_policy_is_not_priced_by_its_oracle():
    rows = [
        lwd("", 0.75, 2e6), row("lwd-oracle", 1.0, 1e4, latent="oracle"), row("dp", 0.7, 1e6)
    ]  # fmt: skip
    (found,) = cost_ratios(rows, "dp")
    assert (found.label, found.ratio) == ("lwd", pytest.approx(2.0))


@pytest.mark.parametrize("against", ["", "ldp"])
def test_without_a_reference_there_is_nothing_to_compare(against):
    assert list(cost_ratios([lwd("", 0.9, 2.0), row("dp", 0.5, 6.0)], against)) == []
