"""Cost ratios, Pareto fronts and figures of rows made by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwdctl.analysis.comparison import Comparison, cost_ratios
from lwdctl.analysis.comparison_records import ComparisonRow
from lwdctl.analysis.figures import pareto_front
from lwdctl.evaluation.results import Estimate

NOTHING = {
    "task": "all", "train_seeds": (0,), "episodes": 100, "errors": 0, "successes": 0,
    "success_std": None, "score": Estimate(math.nan, math.nan, math.nan, 0), "score_std": None,
    "seconds_per_episode": None,
}  # fmt: skip


def row(label, success, flops, horizon=16, perturbation=0.0, latent=""):
    rate = Estimate(math.nan if success is None else success, 0.0, 1.0, 100)
    return ComparisonRow(
        label=label, policy=label.split()[0], latent=latent, horizon=horizon,
        perturbation=perturbation, success=rate, flops_per_step=flops, **NOTHING,
    )  # fmt: skip


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


def test_the_pareto_front_by_hand():
    costs = [1.0, 2.0, 3.0, 3.0, 9.0]
    values = [0.2, 0.1, 0.5, 0.6, 0.6]
    assert pareto_front(costs, values) == [0, 3]
    assert pareto_front([], []) == []


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_nothing_beats_the_front_and_the_front_beats_all_else(points):
    costs, values = zip(*points, strict=True)
    front = pareto_front(costs, values)

    def beaten(index, by):
        return costs[by] <= costs[index] and values[by] >= values[index]

    assert all(any(beaten(index, by) for by in front) for index in range(len(points)))
    assert all(not beaten(one, other) for one in front for other in front if one != other)


def test_a_long_legend_makes_the_figure_higher_and_leaves_space_for_the_axes():
    def height(policies):
        rows = [
            row(f"lwd with a long name, number {number}", 0.5, 10.0 ** (number % 4))
            for number in range(policies)
        ]
        figure = Comparison("toyland", "overlap", rows[0].label, tuple(rows)).figures[
            "success-by-flops"
        ]
        figure.draw_without_rendering()
        (axes,) = figure.axes
        return axes.get_window_extent().height

    assert height(14) > 0.8 * height(2)
