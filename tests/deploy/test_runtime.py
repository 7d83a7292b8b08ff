"""One robot: plans, seeds, and what does not fit."""

from __future__ import annotations

import json
import shutil
import sys

import gymnasium
import numpy as np
import pytest
from toy_chain import ToyChain

import lwdctl
from lwdctl.core.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.single import SingleRobotPolicies

SEEN = {"thing": np.array([0.1, 0.2, 0.3]), "hand": np.array([-0.5, 0.5])}


@pytest.fixture
def policy(exported):
    from lwdctl.deploy.runtime import ExportedPolicy

    return ExportedPolicy(exported()[1])


def run(policy, seed, task="push", steps=12):
    policy.reset(seed, task, "slow")
    return np.stack([policy.act(SEEN) for _ in range(steps)])


@pytest.mark.slow
def test_seed_and_task_fix_an_episode(policy):
    first = run(policy, 1)
    assert np.array_equal(run(policy, 1), first)
    assert not np.allclose(run(policy, 2), first)
    assert not np.allclose(run(policy, 1, "pull"), first)
    assert first.dtype == np.float32


def test_a_new_plan_comes_every_horizon_steps_and_the_clock_begins_anew(policy):
    policy.reset(1, "push", "slow")
    plans, ages = [], []
    for _ in range(11):
        policy.act(SEEN)
        plans.append(policy.plan.request.step)
        ages.append(policy.age)
    assert plans == [0] * 5 + [5] * 5 + [10]
    assert ages == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1]


@pytest.mark.slow
def test_without_a_horizon_one_plan_acts_all_episode(exported):
    from lwdctl.deploy.runtime import ExportedPolicy

    policy = ExportedPolicy(exported(horizon="episode")[1])
    run(policy, 1, steps=20)
    assert policy.plan.request.step == 0


def test_the_state_holds_the_last_two_observations(policy):
    policy.reset(1, "push", "slow")
    later = {name: values + 1.0 for name, values in SEEN.items()}
    both = [np.concatenate([seen["thing"], seen["hand"]]) for seen in (SEEN, later)]
    policy.observe(SEEN)
    np.testing.assert_allclose(policy.request().observations, np.stack([both[0], both[0]]))
    policy.observe(later)
    np.testing.assert_allclose(policy.request().observations, np.stack(both))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hand": None}, "'hand' is missing"),
        ({"hand": np.zeros(3)}, r"'hand' has the shape \(3,\), the policy needs \(2,\)"),
        ({"hand": np.zeros((1, 2))}, r"'hand' has the shape \(1, 2\)"),
        ({"thing": np.array([0.0, np.nan, 0.0])}, "'thing' holds NaN"),
    ],
)
def test_observations_that_do_not_fit_are_named(policy, changed, message):
    policy.reset(1, "push", "slow")
    seen = {name: value for name, value in {**SEEN, **changed}.items() if value is not None}
    with pytest.raises(DataError, match=message):
        policy.act(seen)
    assert policy.act({**SEEN, "more": np.zeros(9)}).shape == (2,)


def test_what_an_episode_must_say(policy):
    with pytest.raises(ConfigError, match="no episode"):
        policy.act(SEEN)
    with pytest.raises(ConfigError, match="'pusch'") as caught:
        policy.reset(1, "pusch", "slow")
    assert "'push'" in caught.value.hint
    with pytest.raises(ConfigError, match="must know the label"):
        policy.reset(1, "push")
    policy.reset(1, "push", "slow")
    policy.observe(SEEN)
    with pytest.raises(ConfigError, match="no plan"):
        policy.step()


@pytest.mark.slow
def test_a_task_is_needed_only_where_it_is_a_condition(exported):
    from lwdctl.deploy.runtime import ExportedPolicy

    policy = ExportedPolicy(exported(ToyChain(condition=("state",)))[1])
    policy.reset()
    assert policy.act(SEEN).shape == (2,)


def test_an_action_that_is_not_finite_is_refused(policy):
    from lwdctl.deploy.runtime import ACT, Plan

    policy.reset(1, "push", "slow")
    policy.act(SEEN)
    broken = {name: np.full_like(values, np.nan) for name, values in policy.plan.outputs.items()}
    act = policy.graphs.plan(policy.request())
    policy.adopt(Plan(act.request, broken, act._act, policy.description.graphs[ACT]))
    with pytest.raises(DataError, match="not finite"):
        policy.act(SEEN)


def damaged(exported, tmp_path, change):
    directory = tmp_path / "policy"
    shutil.copytree(exported()[1], directory)
    change(directory)
    return directory


def older(directory):
    path = directory / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))


def cut(directory):
    path = directory / "act.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def reshaped(directory):
    path = directory / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "graphs": {"plan": {}}}))


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (older, "format version 2, this lwdctl reads version 3", "export the policy again"),
        (cut, "act.onnx is not the file", "again"),
        (reshaped, "policy.json is damaged", "again"),
        (lambda path: (path / "plan.onnx").unlink(), "plan.onnx is missing", "again"),
        (lambda path: (path / "policy.json").unlink(), "holds no exported policy", "lwdctl export"),
        (
            lambda path: (path / "policy.json").write_text("{}"),
            "does not describe",
            "lwdctl export",
        ),
    ],
)
def test_directories_that_are_not_whole(exported, tmp_path, change, message, hint):
    from lwdctl.deploy.runtime import ExportedPolicy

    with pytest.raises(ArtifactError, match=message) as caught:
        ExportedPolicy(damaged(exported, tmp_path, change))
    assert hint in caught.value.hint


def test_without_onnxruntime(exported, monkeypatch):
    from lwdctl.deploy.runtime import ExportedPolicy

    directory = exported()[1]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as caught:
        ExportedPolicy(directory)
    assert "pip install" in caught.value.hint


class _Room(gymnasium.Env):
    """Shows what the toy policies observe, as large as `size`."""

    observation_space = gymnasium.spaces.Dict(
        {name: gymnasium.spaces.Box(-np.inf, np.inf, values.shape) for name, values in SEEN.items()}
    )
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, size=1.0):
        self.seen = {name: (size * values).astype(np.float32) for name, values in SEEN.items()}

    def reset(self, *, seed=None, options=None):
        return self.seen, {}

    def step(self, action):
        return self.seen, 0.0, False, False, {"success": False}


def test_a_first_action_that_is_not_finite_fails_the_episode(policy):
    table = lwdctl.evaluate(
        {"mine": policy}, env=lambda: _Room(5e38), tasks="push", labels="slow",
        episodes=2, max_steps=2,
    )  # fmt: skip
    for item in table.episodes["mine"]:
        assert (item.steps, item.policy_failure) == (0, "an action is not finite")


def test_what_a_policy_is_not_conditioned_on_may_be_anything(exported, policy):
    from lwdctl.deploy.runtime import ExportedPolicy

    free = ExportedPolicy(exported(ToyChain(condition=("state",)))[1])
    plan = {"env": _Room, "tasks": "other", "labels": "x", "episodes": 1, "max_steps": 2}
    (episode,) = lwdctl.evaluate({"mine": free}, **plan).episodes["mine"]
    assert (episode.steps, episode.policy_failure) == (2, "")
    with pytest.raises(ConfigError, match="the policy knows no task 'other'"):
        lwdctl.evaluate({"mine": policy}, **plan)


def test_a_batch_acts_like_single_policies(policy):
    batch = SingleRobotPolicies(policy, 3)
    batch.reset([EpisodePlan(0, 1, "push", "slow"), None, EpisodePlan(2, 2, "pull", "fast")])
    seen = {name: np.stack([values] * 3).astype(np.float32) for name, values in SEEN.items()}
    active = np.array([True, False, True])
    actions = np.stack([batch.act(seen, active) for _ in range(7)])
    assert batch.cost().num_replans.tolist() == [2, 0, 2]
    assert np.array_equal(actions[:, 0], run(policy, 1, steps=7))


def test_an_array_is_no_observation_of_several_keys(policy):
    policy.reset(1, "push", "slow")
    with pytest.raises(DataError, match=r"several keys: thing \(3\), hand \(2\)") as error:
        policy.act(np.concatenate([SEEN["thing"], SEEN["hand"]]))
    assert error.value.hint == "give one array for each: {'thing': ..., 'hand': ...}"
