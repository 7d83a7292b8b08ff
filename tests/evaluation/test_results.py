import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lwdctl.artifacts.manifest import plain
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.results import (
    Condition,
    ConditionResult,
    Estimate,
    ResultRow,
    result_rows,
    wilson,
    wilson_of_states,
)
from lwdctl.policies.policy import EpisodePlan

CONTRACT = """
    policy, latent, env, task, train_seed, snippet_length, horizon, perturbation, sampler,
    num_inference_steps, warm_start, temporal_ensemble, guidance, inpainting, replan_beyond,
    replan_after, episodes, errors, policy_failures, successes, success, success_low, success_high,
    score, metrics, replans_per_episode, seconds, by_label, cost
"""


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipys(counts):
    successes, episodes = counts
    expected = binomtest(successes, episodes).proportion_ci(0.95, method="wilson")
    assert wilson(successes, episodes) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 10**9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_stays_in_bounds(counts):
    low, high = wilson(*counts)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


def test_wilson_without_episodes_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_states_that_say_the_same_under_every_label_count_once():
    once = [(1, 1)] * 6 + [(0, 1)] * 4
    assert wilson_of_states(once) == wilson(6, 10)
    low, high = wilson_of_states([(5 * k, 5) for k, _ in once])
    assert (low, high) == pytest.approx(wilson(6, 10))
    assert wilson_of_states([(5, 5)] * 10) == wilson(10, 10)
    assert wilson_of_states([]) == (0.0, 1.0)


def test_one_large_state_among_small_ones_counts_for_little():
    """Forty of fifty episodes from one state that always ends alike."""
    low, high = wilson_of_states([(40, 40)] + [(0, 1)] * 10)
    assert high - low > 0.55  # 0.44 if each of the eleven counted as 4.5 episodes
    assert wilson_of_states([(40, 40)] + [(1, 1)] * 10) == pytest.approx(
        wilson(50 / 32.2, 50 / 32.2)
    )


def test_labels_that_end_alike_everywhere_are_no_fewer_episodes():
    assert wilson_of_states([(1, 2)] * 10) == wilson(10, 20)


def test_intervals_of_labels_hold_the_rate():
    """Episodes of one state agree in part, over many simulated evaluations."""
    rng = np.random.default_rng(0)
    held = {"states": 0, "episodes": 0}
    for _ in range(400):
        chance = rng.beta(1.2, 0.8, 40)
        solved = rng.binomial(6, chance)
        pairs = [(int(one), 6) for one in solved]
        for name, (low, high) in {
            "states": wilson_of_states(pairs), "episodes": wilson(int(solved.sum()), 240)
        }.items():  # fmt: skip
            held[name] += low <= 0.6 <= high
    assert held["states"] / 400 > 0.92
    assert held["episodes"] / 400 < 0.85


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="3 successes in 2"):
        wilson(3, 2)


def result(index, task, success, error="", **fields):
    plan = EpisodePlan(index=index, seed=100_000 + index, task=task)
    values = {
        "final_success": success, "return_": 2.0 * success, "num_replans": 3,
        "metrics": {"max_overlap": 0.25 + 0.5 * success}, "seconds": {"total": 1.0},
    }  # fmt: skip
    return EpisodeResult(plan=plan, success=success, error=error, **{**values, **fields})


CONDITION = Condition("lwd", "sampled", "pusht", 0, 64, 64, 0.0, "ddim", 10)


@pytest.fixture
def rows():
    results = [
        result(0, "a", True),
        result(1, "b", False),
        result(2, "a", False),
        result(3, "a", True),
        result(4, "b", False, error="died", metrics={}),
    ]
    return result_rows(results, "max_overlap", CONDITION)


def test_a_row_per_task_and_one_for_all(rows):
    assert [row.task for row in rows] == ["a", "b", "all"]
    assert [row.episodes for row in rows] == [3, 1, 4]
    assert [row.successes for row in rows] == [2, 0, 2]
    assert [row.success.value for row in rows] == [2 / 3, 0.0, 0.5]
    for row in rows:
        assert row.success == Estimate.of_rate(row.successes, row.episodes)


def test_errors_are_reported_and_are_no_failures(rows):
    assert [row.errors for row in rows] == [0, 1, 1]
    assert rows[1].episodes == 1
    assert rows[2].metrics["return"] == 1.0


def test_scores_metrics_replans_and_seconds_are_means_and_sums(rows):
    everything = rows[2]
    assert everything.score == everything.metrics["max_overlap"] == 0.5
    assert everything.metrics["final_success"] == 0.5
    assert everything.replans_per_episode == 3.0
    assert everything.seconds == {"total": 5.0}


def test_a_row_has_exactly_the_fields_of_the_contract_and_is_json(rows):
    for row in rows:
        values = row.to_json()
        assert sorted(values) == sorted(CONTRACT.replace(",", " ").split())
        assert json.loads(json.dumps(values, allow_nan=False)) == values
        assert ResultRow.from_json(values) == row


def test_all_tasks_have_the_metrics_that_each_of_them_has():
    results = [
        result(0, "a", True, metrics={"x": 1.0, "of a": 2.0}),
        result(1, "b", True, metrics={"x": 3.0, "of b": 4.0}),
    ]
    first, second, everything = result_rows(results, "x", CONDITION)
    assert (first.metrics["of a"], second.metrics["of b"]) == (2.0, 4.0)
    assert list(everything.metrics) == ["x", "return", "final_success"]
    assert everything.score == 2.0


def test_a_metric_that_is_no_number_is_none_in_a_manifest_too():
    """An environment's time until its task was solved, where it was not."""
    item = result(0, "a", False, metrics={"max_overlap": 0.5, "time": math.nan})
    row = result_rows([item], "time", CONDITION)[-1]
    read = ResultRow.from_json(plain(row.to_json()))
    assert math.isnan(read.metrics["time"])
    assert (read.metrics["max_overlap"], read.score) == (0.5, None)


def test_a_condition_survives_a_trip_through_json(rows):
    episodes = (result(0, "a", True, seconds={}), result(1, "b", False, seconds={}, error="died"))
    made = ConditionResult(tuple(rows), episodes, {"vae": "m:v1"})
    assert ConditionResult.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert made.overall.task == "all"


def test_costs_are_those_of_the_episodes_that_ran_to_their_end():
    results = [
        result(0, "a", True),
        result(1, "b", False),
        result(2, "b", False, error="died", metrics={}),
    ]
    assert result_rows(results, "x", CONDITION)[0].cost == {}
    counted = result_rows(results, "x", CONDITION, cost=lambda some: {"episodes": len(some)})
    assert [row.cost["episodes"] for row in counted] == [1, 1, 2]
    warm = result_rows(results, "x", replace(CONDITION, warm_start=0.5))
    assert {row.warm_start for row in warm} == {0.5}


def test_labels_are_distinguished_and_set_beside_their_demonstrations():
    results = [
        replace(item, plan=replace(item.plan, label=label, demonstration=item.plan.index))
        for item, label in (
            (result(0, "a", True, return_=10.0), "fast"),
            (result(1, "a", False, return_=4.0), "slow"),
            (result(2, "a", True, return_=14.0), "fast"),
        )
    ]
    everything = result_rows(results, "max_overlap", CONDITION, {0: 11.0, 2: 15.0})[-1]
    fast, slow = everything.by_label["fast"], everything.by_label["slow"]
    assert (fast["episodes"], fast["successes"], fast["metrics"]["return"]) == (2, 2, 12.0)
    assert (fast["return_std"], fast["source_return"]) == (2.0, 13.0)
    assert (slow["successes"], slow["metrics"]["return"]) == (0, 4.0)
    assert "source_return" not in slow


def test_episodes_without_a_label_make_no_rows(rows):
    assert all(row.by_label == {} for row in rows)


def test_only_errors_give_no_rate():
    (row, everything) = result_rows([result(0, "a", False, error="hung")], "x", CONDITION)
    assert math.isnan(row.success.value)
    assert (row.success.low, row.success.high, row.episodes) == (0.0, 1.0, 0)
    assert row.to_json()["success"] is None
    assert math.isnan(ResultRow.from_json(everything.to_json()).success.value)
    assert row.score is None
    assert (row.errors, row.metrics) == (1, {})


def test_means_do_not_depend_on_the_order_of_episodes():
    results = [result(i, "a", False, return_=value) for i, value in enumerate((1e16, 1.0, -1e16))]
    forward = result_rows(results, "x", CONDITION)[0].metrics["return"]
    backward = result_rows(results[::-1], "x", CONDITION)[0].metrics["return"]
    assert forward == backward == pytest.approx(1 / 3)
    assert math.isfinite(forward)
