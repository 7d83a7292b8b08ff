"""Replayed actions, given latents, and a policy that keeps what it observes."""

import numpy as np
import pytest
import torch

from lwdctl.configs import RolloutConfig
from lwdctl.core.progress import SilentProgress
from lwdctl.evaluation.traced import (
    GivenLatents,
    RecordedActions,
    TracedEpisodes,
    TracingPolicy,
    pad,
    trace,
)
from lwdctl.policies.latent_source import ReplanRequest
from lwdctl.policies.policy import EpisodePlan

PLANS = [EpisodePlan(index=2, seed=0, task="t"), None, EpisodePlan(index=0, seed=1, task="t")]
ACTIONS = np.arange(12, dtype=np.float32).reshape(3, 2, 2)


def test_actions_follow_their_plan_and_the_last_one_repeats():
    policy = RecordedActions(ACTIONS)
    for _ in range(2):  # a new episode begins anew
        policy.reset(PLANS)
        active = np.array([True, False, True])
        given = [policy.act({}, active) for _ in range(3)]
        np.testing.assert_array_equal(given[0][[0, 2]], ACTIONS[[2, 0], 0])
        np.testing.assert_array_equal(given[1][[0, 2]], ACTIONS[[2, 0], 1])
        np.testing.assert_array_equal(given[2], given[1])
    assert policy.cost().num_replans.tolist() == [0, 0, 0]


def test_latents_follow_their_plan():
    rows = torch.arange(6.0).reshape(3, 2)
    none = np.zeros(3, dtype=np.int64)
    found = GivenLatents(rows).latents(ReplanRequest(PLANS, none, none, torch.zeros(3, 1)))
    assert found[[0, 2]].tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_observations_of_active_environments_are_kept_and_nothing_is_changed():
    policy = TracingPolicy(RecordedActions(ACTIONS), ("b", "a"))
    policy.reset(PLANS)
    for step in range(3):
        seen = {"a": np.full((3, 1), step, np.float32), "b": np.full((3, 2), -step, np.float32)}
        active = np.array([True, False, step < 1])
        actions = policy.act(seen, active)
        seen["a"][:] = 99.0
    np.testing.assert_array_equal(actions[0], ACTIONS[2, 1])
    assert policy.observations(2).tolist() == [[0, 0, 0], [-1, -1, 1], [-2, -2, 2]]
    assert policy.observations(0).tolist() == [[0, 0, 0]]
    assert len(policy.observations(1)) == 0
    policy.reset(PLANS)  # run again: earlier observations are dropped
    assert len(policy.observations(2)) == 0


def test_a_trajectory_that_ended_is_padded_with_its_last_state():
    states = np.arange(6, dtype=np.float32).reshape(3, 2)
    padded = pad(states, 5)
    np.testing.assert_array_equal(padded[:, 0], [0, 2, 4, 4, 4, 4])
    assert len(pad(states, 1)) == 2
    found = TracedEpisodes([states, None], []).padded(5)
    np.testing.assert_array_equal(found[0], padded)
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("steps", [2, 3, 4, 8])
def test_the_observation_after_the_last_step_is_kept(env, feedback_policy, plans_of, steps):
    """`short` ends by itself after 3 steps, `walk` does not."""
    plans, config = plans_of("walk", "short"), RolloutConfig(num_envs=2, workers=0)
    policy = feedback_policy(2)
    found = trace(policy, env, ("clock",), plans, steps, config, SilentProgress())
    walked, ended = found.padded(steps)[..., 0].tolist()
    assert walked == list(range(steps + 1))
    assert ended == [min(step, 3) for step in range(steps + 1)]
