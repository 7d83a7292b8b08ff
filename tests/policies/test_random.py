import numpy as np
import pytest

from lwdctl.core.records import ActionSpec
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.random import RandomPolicy

ACTION = ActionSpec(2, "absolute", "pixels", (0.0, -10.0), (512.0, 10.0))


def actions(plans, active, steps=50):
    policy = RandomPolicy(ACTION, len(plans))
    policy.reset(plans)
    return np.stack([policy.act({}, np.array(active)) for _ in range(steps)])


def plan(index, seed=0, task="t"):
    return EpisodePlan(index=index, seed=seed, task=task)


def test_actions_fill_the_limits():
    drawn = actions([plan(0)], [True], steps=2000)[:, 0]
    assert drawn.dtype == np.float32
    assert (drawn >= [0, -10]).all()
    assert (drawn <= [512, 10]).all()
    np.testing.assert_allclose(drawn.mean(axis=0) / [512, 20], [0.5, 0.0], atol=0.03)
    assert drawn[:, 0].min() < 10
    assert drawn[:, 0].max() > 502


def test_draws_depend_on_the_episode_alone():
    together = actions([plan(0, seed=5), plan(1, seed=6), None], [True, True, False])
    swapped = actions([None, plan(0, seed=6), plan(1, seed=5)], [False, True, True])
    np.testing.assert_array_equal(together[:, 0], swapped[:, 2])
    np.testing.assert_array_equal(together[:, 1], swapped[:, 1])
    assert not np.array_equal(together[:, 0], together[:, 1])


def test_infinite_limits_count_as_one():
    policy = RandomPolicy(ActionSpec(1, "torque", "", (-np.inf,), (np.inf,)), 1)
    policy.reset([plan(0)])
    assert abs(policy.act({}, np.array([True]))[0, 0]) <= 1


def test_it_calls_no_denoiser():
    policy = RandomPolicy(ACTION, 3)
    assert policy.cost().num_replans.tolist() == [0, 0, 0]
    assert policy.cost().seconds == pytest.approx({})


def test_an_infinite_limit_lies_beyond_the_other_one():
    limits = (2.0, -np.inf, 0.0), (np.inf, -5.0, np.inf)
    policy = RandomPolicy(ActionSpec(3, "absolute", "", *limits), 1)
    policy.reset([plan(0)])
    drawn = np.stack([policy.act({}, np.array([True]))[0] for _ in range(200)])
    assert np.ptp(drawn, axis=0).min() > 0.9
    assert (drawn >= [2, -6, 0]).all()
    assert (drawn <= [3, -5, 1]).all()
