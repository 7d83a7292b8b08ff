"""The Adroit hammer, with plain `gymnasium.make` as the judge."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.records import EnvSpec
from lwdctl.data.named_environments import gym_action, known_env
from lwdctl.envs.adroit import METRICS, hammer_metrics, hammer_numbers
from lwdctl.evaluation.rollout import rollout
from lwdctl.evaluation.traced import RecordedActions
from lwdctl.policies.policy import EpisodePlan

FILE = Path(__file__).resolve().parents[3] / "shared/data/d4rl/hammer_expert.hdf5"
TASK = "AdroitHandHammer-v1"


@pytest.fixture(scope="module")
def adroit():
    pytest.importorskip(
        "gymnasium_robotics", reason="the extra 'adroit' is not installed", exc_type=ImportError
    )
    from lwdctl.envs import adroit

    return adroit


@pytest.fixture
def simulator(adroit):
    simulator = adroit.AdroitSimulator(EnvSpec("adroit", (TASK,)), TASK)
    yield simulator
    simulator.close()


@pytest.fixture
def recording():
    if not FILE.exists():
        pytest.skip("needs hammer_expert.hdf5 of the shared data")
    with h5py.File(FILE) as file:
        state = np.hstack([file[f"infos/{key}"] for key in ("qpos", "qvel", "board_pos")])
        arrays = {key: file[key][:] for key in ("observations", "actions", "rewards")}
    return {"states": state.astype(float), **arrays}


def random_actions(steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, 26)).astype(np.float32)


def play(simulator, first, actions):
    steps = [simulator.step(action) for action in actions]
    rows = [first["observation"], *(step.observation["observation"] for step in steps)]
    return np.stack(rows), np.array([step.reward for step in steps]), steps


@pytest.mark.filterwarnings("ignore:.*is out of date")
def test_an_episode_is_that_of_plain_gymnasium(simulator):
    import gymnasium

    env = gymnasium.make(TASK)
    actions = random_actions(80)
    expected, rewards = [env.reset(seed=5)[0]], []
    for action in actions:
        observation, reward, *_ = env.step(action)
        expected.append(observation)
        rewards.append(reward)
    env.close()
    rows, got, _ = play(simulator, simulator.reset(5), actions)
    np.testing.assert_array_equal(rows, np.float32(expected))
    np.testing.assert_array_equal(got, rewards)


def test_a_restored_board_does_not_stay_for_the_next_episode(adroit, simulator):
    actions = random_actions(20)
    expected = play(simulator, simulator.reset(1), actions)[0]
    moved = simulator.initial_state()
    moved[-3:] = (0.15, 0.1, 0.2)
    play(simulator, simulator.restore(moved), random_actions(30, seed=2))
    np.testing.assert_array_equal(simulator.initial_state(), moved)
    simulator.perturb(20.0, np.random.default_rng(0))
    np.testing.assert_array_equal(play(simulator, simulator.reset(1), actions)[0], expected)


def test_actions_and_observations_are_those_the_data_readers_declare(simulator):
    assert simulator.action == gym_action(known_env(TASK), 26)
    assert simulator.observations[0].size in known_env(TASK).observation_sizes
    assert simulator.max_steps == known_env(TASK).max_steps


def test_the_distance_is_that_of_the_models_sites(simulator):
    env = simulator._env
    simulator.reset(0)
    state = simulator.initial_state()
    for way in (-0.005, 0.0, 0.04, 0.085, 0.09):
        state[26] = way
        seen = simulator.restore(state)["observation"]
        nail, goal = (env.data.site(name).xpos for name in ("S_target", "nail_goal"))
        distance = hammer_numbers(seen)["target_goal_distance"]
        assert distance == pytest.approx(np.linalg.norm(nail - goal), abs=1e-7)
        np.testing.assert_allclose(seen[36:39], env.data.body("Object").xpos, atol=1e-6)
        assert simulator.step(np.zeros(26, np.float32)).success == (distance < 0.01)


def test_metrics_of_known_observations():
    rows = np.zeros((4, 46), dtype=np.float32)
    rows[:, 38] = (0.03, 0.05, 0.07, 0.05)
    rows[:, 26] = (0.0, 0.0, 0.081, 0.091)
    rows[:, 45] = (0.0, 0.0, 0.9, 0.5)
    assert hammer_metrics(rows) == pytest.approx(
        {
            "mean_object_height": 0.05,
            "mean_target_goal_distance": (0.091 + 0.091 + 0.010 + 0.0) / 4,
            "max_nail_impact": 0.9,
            "share_nail_impact_above_0.8": 0.25,
            "share_object_height_above_0.04": 0.75,
        }
    )


def test_metrics_refuse_other_observations():
    with pytest.raises(ValueError, match="46"):
        hammer_metrics(np.zeros((3, 45)))
    with pytest.raises(ValueError, match="at least one"):
        hammer_metrics(np.zeros((0, 46)))


def test_an_evaluated_episode_has_the_metrics_of_its_observations(simulator):
    actions = random_actions(40)
    rows, rewards, _ = play(simulator, simulator.reset(100_000), actions)
    plan = EpisodePlan(index=0, seed=100_000, task=TASK)
    env = EnvSpec("adroit", (TASK,), {}, 40)
    (episode,) = rollout(
        RecordedActions(actions[None]), env, [plan], num_envs=1, workers=0
    ).episodes
    expected = hammer_metrics(rows[1:])
    assert list(episode.metrics) == ["normalized_score", *expected]
    for name, value in expected.items():
        assert episode.metrics[name] == pytest.approx(value)
    score = 100 * (rewards.sum() + 274.856578) / (12794.134825156867 + 274.856578)
    assert episode.metrics["normalized_score"] == pytest.approx(score)


def test_metrics_have_full_names():
    assert [item.name for item in METRICS] == [
        "mean_object_height",
        "mean_target_goal_distance",
        "max_nail_impact",
        "share_nail_impact_above_0.8",
        "share_object_height_above_0.04",
    ]


def test_a_push_acts_on_the_hammer_for_one_step(simulator):
    hammer = simulator._env.model.body("Object").id
    simulator.reset(0)
    simulator.perturb(15.0, np.random.default_rng(0))
    assert np.linalg.norm(simulator._env.data.xfrc_applied[hammer, :3]) == pytest.approx(15.0)
    simulator.step(np.zeros(26, np.float32))
    assert not simulator._env.data.xfrc_applied.any()


@pytest.mark.parametrize("task", ["AdroitHandDoor-v1", "AdroitHandHammer-v0"])
def test_other_tasks_are_refused_and_the_one_is_named(adroit, task):
    with pytest.raises(ConfigError, match=task) as caught:
        adroit.AdroitSimulator(EnvSpec("adroit", (task,)), task)
    assert TASK in caught.value.hint


def test_a_state_of_another_task_is_refused(simulator):
    with pytest.raises(SimulatorError, match=TASK):
        simulator.restore(np.zeros(66))


@pytest.mark.usefixtures("adroit")
def test_importing_says_nothing():
    code = (
        "import warnings; warnings.simplefilter('error');"
        " from lwdctl.envs.adroit import _register_environments as register; register()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.usefixtures("adroit")
def test_rendering_off_screen_gives_an_image(run_drawing):
    run_drawing("""
from lwdctl.core.records import EnvSpec
from lwdctl.envs.adroit import HAMMER, AdroitSimulator
simulator = AdroitSimulator(EnvSpec("adroit", (HAMMER,)), HAMMER)
simulator.reset(0)
image = simulator.render()
assert image.shape == (480, 480, 3) and image.dtype == "uint8" and image.std() > 1
simulator.close()
""")


def test_recorded_episodes_are_replayed_to_their_end(simulator, recording):
    for start in (0, 200, 400):
        rows = slice(start, start + 200)
        first = simulator.restore(recording["states"][start])
        seen, rewards, steps = play(simulator, first, recording["actions"][rows])
        np.testing.assert_allclose(seen[:-1], recording["observations"][rows], atol=1e-5)
        np.testing.assert_allclose(rewards, recording["rewards"][rows], atol=1e-3)
        assert any(step.success for step in steps)
        recorded = hammer_metrics(recording["observations"][rows])
        assert hammer_metrics(seen[:-1]) == pytest.approx(recorded, abs=1e-6)


def test_metrics_of_the_recorded_expert_are_plausible(recording):
    episodes = recording["observations"].reshape(100, 200, 46)
    rows = [hammer_metrics(episode) for episode in episodes]
    means = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    assert 0.1 < means["mean_object_height"] < 0.25
    assert 0.01 < means["mean_target_goal_distance"] < 0.05
    assert means["max_nail_impact"] == 1.0
    assert 0.005 < means["share_nail_impact_above_0.8"] < 0.05
    assert 0.8 < means["share_object_height_above_0.04"] < 0.95
    distances = hammer_numbers(episodes)["target_goal_distance"]
    assert (distances < 0.01).any(axis=1).mean() == 0.96
