"""What every row of the environment table must do; a new row is tested without a line here."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import pytest

from lwdctl.core.errors import ConfigError, MissingExtraError
from lwdctl.core.records import EnvSpec, SourceSpec
from lwdctl.envs.table import ENVIRONMENTS, task_names
from lwdctl.evaluation.rollout import rollout
from lwdctl.methods.untrained import StillPolicy, still_action
from lwdctl.policies.policy import EpisodePlan

sys.path.insert(0, str(Path(__file__).parent))
import episode_probe as probe

sys.path.pop(0)

SEED = 100_003


@cache
def missing(adapter):
    try:
        probe.make(adapter, task_names(adapter)[0]).close()
    except MissingExtraError as error:
        return error.message
    return ""


@pytest.fixture(params=list(ENVIRONMENTS))
def adapter(request):
    if missing(request.param):
        pytest.skip(missing(request.param))
    return request.param


@pytest.fixture
def task(adapter):
    return task_names(adapter)[0]


@pytest.fixture
def simulator(adapter, task):
    simulator = probe.make(adapter, task)
    yield simulator
    simulator.close()


def test_observations_actions_and_metrics_are_as_declared(adapter, simulator):
    names = [item.name for item in simulator.observations]
    assert len(simulator.action.low) == len(simulator.action.high) == simulator.action.size
    first = simulator.reset(SEED)
    step = simulator.step(np.array(simulator.action.low, dtype=np.float32))
    for observation in (first, step.observation):
        assert list(observation) == names
        for item in simulator.observations:
            assert observation[item.name].shape == (item.size,)
            assert observation[item.name].dtype == np.float32
            assert np.isfinite(observation[item.name]).all()
    assert simulator.metrics[0].name == ENVIRONMENTS.load(adapter).metrics[0].name
    for metric in simulator.metrics:
        assert metric.source in step.metrics
        assert metric.reduce in {"max", "last", "mean", "sum"}
    assert simulator.max_steps > 0
    reference = simulator.action.reference
    assert not reference or reference in names


@pytest.mark.slow
def test_actions_beyond_the_limits_are_clipped(simulator):
    high = np.array(simulator.action.high, dtype=np.float32)
    span = high - np.array(simulator.action.low, dtype=np.float32)
    simulator.reset(SEED)
    inside = simulator.step(high)
    simulator.reset(SEED)
    outside = simulator.step(high + 3 * span)
    assert all(
        np.array_equal(inside.observation[key], outside.observation[key])
        for key in inside.observation
    )


def test_a_seed_fixes_the_episode_after_any_history(adapter, task, simulator):
    expected, rewards = probe.seeded_episode(adapter, task, SEED)
    probe.play(simulator, simulator.reset(SEED + 1), steps=40, rng_seed=5)
    simulator.perturb(simulator.action.high[0] / 20, np.random.default_rng(1))
    got, got_rewards = probe.play(simulator, simulator.reset(SEED))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got_rewards, rewards)


@pytest.mark.slow
def test_a_seed_fixes_the_episode_in_another_process(adapter, task, monkeypatch):
    expected, rewards = probe.seeded_episode(adapter, task, SEED)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        got, got_rewards = pool.submit(probe.seeded_episode, adapter, task, SEED).result(120)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got_rewards, rewards)


@pytest.mark.slow
def test_seeds_differ_and_global_generators_do_not_matter(simulator):
    np.random.seed(0)  # noqa: NPY002 - simulators that use the global generator are the point
    simulator.reset(SEED)
    first = simulator.initial_state()
    np.random.seed(1)  # noqa: NPY002
    simulator.reset(SEED)
    assert np.array_equal(simulator.initial_state(), first)
    simulator.reset(SEED + 1)
    assert not np.array_equal(simulator.initial_state(), first)


@pytest.mark.slow
def test_restoring_the_initial_state_repeats_the_episode(adapter, task, simulator):
    first = simulator.reset(SEED)
    state = simulator.initial_state()
    assert state.dtype == np.float64
    assert state.ndim == 1
    expected, rewards = probe.play(simulator, first)
    other = probe.make(adapter, task)
    try:
        for instance in (simulator, other):
            got, got_rewards = probe.play(instance, instance.restore(state))
            np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(got_rewards, rewards)
            np.testing.assert_array_equal(instance.initial_state(), state)
    finally:
        other.close()


@pytest.mark.slow
def test_a_perturbation_of_zero_changes_and_draws_nothing(adapter, task, simulator):
    expected, _ = probe.seeded_episode(adapter, task, SEED)
    rng = np.random.default_rng(3)
    before = rng.bit_generator.state
    first = simulator.reset(SEED)
    simulator.perturb(0.0, rng)
    assert rng.bit_generator.state == before
    got, _ = probe.play(simulator, first)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
def test_a_perturbation_changes_the_episode_and_is_fixed_by_its_generator(simulator):
    plain, _ = probe.play(simulator, simulator.reset(SEED))
    magnitude = (simulator.action.high[0] - simulator.action.low[0]) / 20
    runs = []
    for _ in range(2):
        first = simulator.reset(SEED)
        simulator.perturb(magnitude, np.random.default_rng(3))
        runs.append(probe.play(simulator, first)[0])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], plain)


@pytest.mark.slow
def test_success_never_falls_back_once_reached(adapter, task, simulator):
    env = EnvSpec("episode_probe:Blinking", (task,), {"adapter": adapter}, 3)
    plans = [EpisodePlan(index=index, seed=SEED, task=task) for index in range(4)]
    middle = probe.Middle(simulator.action)
    episodes = rollout(middle, env, plans, num_envs=1, workers=0).episodes
    # Solved at the first, second and third step of three, and never.
    assert [item.success for item in episodes] == [True, True, True, False]
    assert [item.final_success for item in episodes] == [False, False, True, False]


@pytest.mark.slow
def test_non_finite_actions_are_the_policys_failure(adapter, task, simulator):
    env = EnvSpec(adapter, (task,), {}, 10)
    plans = [EpisodePlan(index=index, seed=SEED + index, task=task) for index in range(2)]
    policy = probe.Middle(simulator.action, nan_at=probe.NAN_AT)
    for episode in rollout(policy, env, plans, num_envs=1, workers=0).episodes:
        assert "not finite" in episode.policy_failure
        assert (episode.error, episode.attempts) == ("", 1)
        assert (episode.success, episode.steps) == (False, probe.NAN_AT - 1)
        assert episode.metrics == {item.name: item.failed for item in simulator.metrics}


@pytest.mark.slow
def test_it_is_known_what_keeps_the_robot_still(adapter, task, simulator):
    env = EnvSpec(adapter, (task,), {}, 4)
    source = SourceSpec(simulator.observations, simulator.action, env, (), "test")
    policy = StillPolicy(still_action(source), simulator.action.size, 2)
    plans = [EpisodePlan(index=index, seed=SEED + index, task=task) for index in range(2)]
    found = rollout(policy, env, plans, num_envs=2, workers=0).episodes
    assert [(item.steps, item.error, item.policy_failure) for item in found] == [(4, "", "")] * 2


@pytest.mark.slow
def test_closing_leaves_no_process(adapter, task):
    before = set(psutil.Process().children(recursive=True))
    simulator = probe.make(adapter, task)
    simulator.reset(SEED)
    simulator.close()
    assert set(psutil.Process().children(recursive=True)) <= before


def test_an_unknown_task_is_named_with_the_closest_one(adapter, task):
    wrong = task + "x"
    with pytest.raises(ConfigError, match=wrong) as caught:
        ENVIRONMENTS.load(adapter)(EnvSpec(adapter, (wrong,)), wrong)
    assert task in caught.value.hint
