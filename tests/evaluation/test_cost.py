"""The cost of acting, spread over the steps that episodes took."""

from __future__ import annotations

import pytest

from lwdctl.evaluation.cost import condition_cost
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.methods.method import ActingCost, PolicyFlops
from lwdctl.policies.policy import EpisodePlan

FLOPS = PolicyFlops(denoiser=1000, decoding=300, step=7, control_parameters=11, parameters=99)


def episodes(*pairs: tuple[int, int]) -> list[EpisodeResult]:
    """Make episodes of (steps, denoiser queries)."""
    return [
        EpisodeResult(EpisodePlan(index, 100_000 + index, "t"), steps=steps, num_replans=queries)
        for index, (steps, queries) in enumerate(pairs)
    ]


def test_flops_are_amortized_over_the_steps_taken() -> None:
    cost = condition_cost(ActingCost(FLOPS, 10, 10), episodes((100, 7), (50, 3)))
    assert cost["replans_per_step"] == pytest.approx(10 / 150)
    assert cost["denoiser_flops_per_replan"] == 10_000
    assert cost["flops_per_step"] == pytest.approx(10 / 150 * 10_300 + 7)
    assert cost["parameters_at_control_rate"] == 11
    assert cost["parameters"] == 99


def test_a_warm_start_saves_calls_after_the_first_replan_alone() -> None:
    cost = condition_cost(ActingCost(FLOPS, 10, 4), episodes((100, 7), (50, 3)))
    calls = 2 * 10 + 8 * 4
    assert cost["denoiser_flops_per_replan"] == pytest.approx(calls * 1000 / 10)
    assert cost["flops_per_step"] == pytest.approx((calls * 1000 + 10 * 300) / 150 + 7)


@pytest.mark.parametrize(("horizon", "queries"), [(16, 7 + 4), ("episode", 2), (50, 3), (1, 150)])
def test_latents_that_are_not_sampled_are_decoded_all_the_same(
    horizon: int | str, queries: int
) -> None:
    unsampled = PolicyFlops(0, 300, 7, 11, 50)
    cost = condition_cost(ActingCost(unsampled, horizon=horizon), episodes((100, 0), (50, 0)))
    assert cost["replans_per_step"] == pytest.approx(queries / 150)
    assert cost["denoiser_flops_per_replan"] == 0
    assert cost["flops_per_step"] == pytest.approx(queries / 150 * 300 + 7)


def test_a_policy_without_replans_costs_its_steps() -> None:
    cloned = PolicyFlops(step=7, control_parameters=11, parameters=11)
    cost = condition_cost(ActingCost(cloned), episodes((100, 0)))
    assert (cost["flops_per_step"], cost["replans_per_step"]) == (7, 0)
    assert condition_cost(ActingCost(PolicyFlops()), episodes((100, 0)))["flops_per_step"] == 0


def test_without_steps_nothing_is_known() -> None:
    assert condition_cost(ActingCost(FLOPS, 10, 10), []) == {}
    assert condition_cost(ActingCost(FLOPS, 10, 10), episodes((0, 0))) == {}
