"""Gymnasium's locomotion, with plain `gymnasium.make` as the judge."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import h5py
import mujoco
import numpy as np
import pytest

from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.records import EnvSpec
from lwdctl.core.simulator_facts import REFERENCE_RETURNS
from lwdctl.data.named_environments import gym_action, known_env
from lwdctl.envs.gym_mujoco import FEET, FootContacts, GymMujocoSimulator, task_names
from lwdctl.envs.mujoco_simulator import build_environment, normalized_score
from lwdctl.envs.simulator import UnstablePhysicsError
from lwdctl.evaluation.rollout import rollout
from lwdctl.evaluation.traced import RecordedActions
from lwdctl.policies.policy import EpisodePlan

DATA = Path(__file__).resolve().parents[3] / "shared/data/d4rl"
FALLING = ("Walker2d-v4", "Hopper-v4")


def build(task, **settings):
    return GymMujocoSimulator(EnvSpec("mujoco", (task,), {"id": task, **settings}), task)


def actions_for(simulator, steps, seed=0):
    rows = np.random.default_rng(seed).uniform(-1, 1, (steps, simulator.action.size))
    return rows.astype(np.float32)


def judge(task, seed, actions, **arguments):
    """Return observations, rewards and endings of plain Gymnasium."""
    env = gymnasium.make(task, **arguments)
    rows, rewards, endings = [env.reset(seed=seed)[0]], [], []
    for action in actions:
        observation, reward, terminated, _, _ = env.step(action)
        rows.append(observation)
        rewards.append(reward)
        endings.append(terminated)
        if terminated:
            break
    env.close()
    return np.float32(rows), np.array(rewards), endings


def play(simulator, first, actions):
    rows, rewards, endings = [first["observation"]], [], []
    for action in actions:
        step = simulator.step(action)
        rows.append(step.observation["observation"])
        rewards.append(step.reward)
        endings.append(step.terminated)
        if step.terminated:
            break
    return np.stack(rows), np.array(rewards), endings


@pytest.mark.filterwarnings("ignore:.*is out of date")
@pytest.mark.parametrize("task", task_names())
def test_an_episode_is_that_of_plain_gymnasium(task):
    simulator = build(task)
    actions = actions_for(simulator, 150)
    rows, rewards, endings = play(simulator, simulator.reset(7), actions)
    expected, expected_rewards, expected_endings = judge(task, 7, actions)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(rewards, expected_rewards)
    assert endings == expected_endings
    assert endings[-1] or task not in FALLING


@pytest.mark.filterwarnings("ignore:.*is out of date")
def test_ant_shows_its_contact_forces_where_the_data_has_them():
    simulator = build("Ant-v4", use_contact_forces=True)
    actions = actions_for(simulator, 40)
    rows, rewards, _ = play(simulator, simulator.reset(0), actions)
    expected, expected_rewards, _ = judge("Ant-v4", 0, actions, use_contact_forces=True)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(rewards, expected_rewards)
    assert rows.shape[1] == simulator.observations[0].size == 111
    assert rows[:, 27:].any()


@pytest.mark.filterwarnings("ignore:.*is out of date")
def test_ant_shows_zeros_and_charges_nothing_where_the_data_has_zeros():
    simulator = build("Ant-v4", use_contact_forces=True, zero_contact_forces=True)
    actions = actions_for(simulator, 40)
    rows, rewards, _ = play(simulator, simulator.reset(0), actions)
    expected, expected_rewards, _ = judge("Ant-v4", 0, actions)
    np.testing.assert_array_equal(rows, np.hstack([expected, np.zeros((len(expected), 84))]))
    np.testing.assert_array_equal(rewards, expected_rewards)
    assert simulator.observations[0].size == 111


@pytest.mark.slow
@pytest.mark.parametrize("task", task_names())
def test_history_leaves_no_trace(task):
    fresh, used = build(task), build(task)
    actions = actions_for(fresh, 60)
    expected = play(fresh, fresh.reset(3), actions)
    play(used, used.reset(1), actions_for(used, 80, seed=9))
    used.perturb(50.0, np.random.default_rng(0))
    for start in (lambda: used.reset(3), lambda: used.restore(fresh.initial_state())):
        got = play(used, start(), actions)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("task", [name for name in task_names() if name.endswith("v4")])
def test_actions_are_those_the_data_readers_declare(task):
    simulator = build(task)
    assert simulator.action == gym_action(known_env(task), simulator.action.size)
    assert simulator.observations[0].size in known_env(task).observation_sizes
    assert simulator.max_steps == known_env(task).max_steps


@pytest.mark.parametrize("task", ["HalfCheetah-v4", "Walker2d-v4", "Ant-v4"])
def test_contacts_of_a_rollout_are_those_of_its_observations(task):
    simulator = build(task)
    simulator.reset(0)
    rows, contacts = [], []
    for action in actions_for(simulator, 40):
        step = simulator.step(action)
        rows.append(step.observation["observation"])
        contacts.append([v for name, v in step.metrics.items() if name.startswith("contact_")])
    np.testing.assert_array_equal(contacts, foot_contacts(task, np.stack(rows)))
    assert simulator.metrics[0].name == "normalized_score"
    assert {item.source for item in simulator.metrics} == set(step.metrics)


def test_metrics_of_an_evaluated_episode():
    simulator = build("HalfCheetah-v4")
    actions = actions_for(simulator, 30)
    rows, rewards, _ = play(simulator, simulator.reset(100_000), actions)
    env = EnvSpec("mujoco", ("HalfCheetah-v4",), {}, 30)
    plan = EpisodePlan(index=0, seed=100_000, task="HalfCheetah-v4")
    (episode,) = rollout(
        RecordedActions(actions[None]), env, [plan], num_envs=1, workers=0
    ).episodes
    random, expert = REFERENCE_RETURNS["halfcheetah"]
    assert episode.return_ == pytest.approx(rewards.sum())
    score = 100 * (rewards.sum() - random) / (expert - random)
    assert episode.metrics["normalized_score"] == pytest.approx(score)
    contacts = foot_contacts("HalfCheetah-v4", rows[1:]).mean(axis=0)
    assert [episode.metrics[f"contact_{foot}"] for foot in ("bfoot", "ffoot")] == list(contacts)
    assert not episode.success


@pytest.mark.parametrize("name", sorted(REFERENCE_RETURNS))
def test_the_references_score_0_and_100(name):
    metric = normalized_score(name)
    random, expert = REFERENCE_RETURNS[name]
    assert metric.scale * random + metric.offset == pytest.approx(0.0, abs=1e-9)
    assert metric.scale * expert + metric.offset == pytest.approx(100.0)


@pytest.mark.parametrize("task", FALLING)
def test_a_fall_is_the_end_and_no_failure(task):
    simulator = build(task)
    state = np.zeros_like(simulator.initial_state())
    state[1], state[2] = 0.9, 1.2  # leaning further than healthy
    simulator.restore(state)
    assert simulator.step(np.zeros(simulator.action.size, np.float32)).terminated


def test_a_push_acts_with_its_force_for_one_step():
    """In the air nothing but weight and the push changes the whole body's momentum."""
    simulator = build("HalfCheetah-v4")
    model, data = simulator._env.model, simulator._env.data
    high = np.zeros(18)
    high[1] = 10.0
    momenta = []
    for magnitude in (0.0, 100.0):
        simulator.restore(high)
        simulator.perturb(magnitude, np.random.default_rng(3))
        force = data.xfrc_applied[simulator._force_body, :3].copy()
        for _ in range(2):
            simulator.step(np.zeros(6, np.float32))
            mujoco.mj_forward(model, data)
            mujoco.mj_subtreeVel(model, data)
            momenta.append(model.body_subtreemass[0] * data.subtree_linvel[0])
    impulse = force * simulator._env.dt
    assert np.linalg.norm(impulse) == pytest.approx(100.0 * 0.05)
    # Joints without mass of their own (armature) take a small part.
    np.testing.assert_allclose(momenta[2] - momenta[0], impulse, rtol=0.05, atol=0.05)
    np.testing.assert_allclose(momenta[3] - momenta[1], impulse, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("task", ["HalfCheetah-v4", "Walker2d-v4", "Ant-v4", "Hopper-v4"])
def test_a_push_is_in_newtons_and_within_the_plane(task):
    simulator = build(task)
    simulator.reset(0)
    body = simulator._env.model.body("torso").id
    for seed in range(5):
        simulator.perturb(80.0, np.random.default_rng(seed))
        force = simulator._env.data.xfrc_applied[body]
        assert np.linalg.norm(force[:3]) == pytest.approx(80.0)
        assert not force[3:].any()
        assert (force[1] == 0.0) == (task != "Ant-v4")
    simulator.step(np.zeros(simulator.action.size, np.float32))
    assert not simulator._env.data.xfrc_applied.any()


def test_a_state_of_another_body_is_refused():
    with pytest.raises(SimulatorError, match="HalfCheetah") as caught:
        build("HalfCheetah-v4").restore(np.zeros(12))
    assert "another task" in caught.value.hint


def test_an_unknown_version_is_refused():
    with pytest.raises(ConfigError) as caught:
        build("HalfCheetah-v2")
    assert "'HalfCheetah-v4'" in caught.value.hint


def test_diverged_physics_are_reported_and_forgotten_after_reset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs to the current folder
    simulator = build("HalfCheetah-v4")
    state = np.zeros(18)
    state[9:] = 1e11
    simulator.restore(state)
    with pytest.raises(UnstablePhysicsError, match="HalfCheetah"):
        simulator.step(np.ones(6, dtype=np.float32))
    simulator.reset(0)
    simulator.step(np.zeros(6, dtype=np.float32))


def test_building_warns_of_nothing_and_other_warnings_pass():
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from lwdctl.core.records import EnvSpec\n"
        "from lwdctl.envs.gym_mujoco import GymMujocoSimulator\n"
        "GymMujocoSimulator(EnvSpec('mujoco', ('Walker2d-v4',)), 'Walker2d-v4')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_rendering_off_screen_follows_the_body(run_drawing):
    run_drawing("""
import numpy as np
from lwdctl.core.records import EnvSpec
from lwdctl.envs.gym_mujoco import GymMujocoSimulator
simulator = GymMujocoSimulator(EnvSpec("mujoco", ("HalfCheetah-v4",)), "HalfCheetah-v4")
images = []
for place in (0.0, 30.0):
    state = np.zeros(18)
    state[0] = place
    simulator.restore(state)
    images.append(simulator.render().astype(float))
assert images[0].shape == (480, 480, 3) and images[0].std() > 1
body = lambda image: ((image[..., 0] > 1.15 * image[..., 2]) & (image[..., 0] > 90)).sum()
assert min(map(body, images)) > 500, list(map(body, images))
simulator.close()
""")


@pytest.mark.parametrize(
    "name", ["halfcheetah_expert", "halfcheetah_medium", "halfcheetah_random", "walker2d_expert"]
)
def test_recorded_data_are_replayed(name):
    """States are recorded in single precision, from which chaotic motion departs soon."""
    path = DATA / f"{name}.hdf5"
    if not path.exists():
        pytest.skip(f"needs {path.name} of the shared data")
    simulator = build("Walker2d-v4" if name.startswith("walker") else "HalfCheetah-v4")
    with h5py.File(path) as file:
        arrays = [file[key][:1000] for key in ("observations", "actions", "rewards")]
        states = np.hstack([file["infos/qpos"][:1000], file["infos/qvel"][:1000]])
    observations, actions, rewards = arrays
    first = simulator.restore(states[0].astype(float))
    rows, got, _ = play(simulator, first, actions[:10])
    np.testing.assert_array_equal(rows[0], observations[0])
    np.testing.assert_allclose(rows, observations[:11], atol=1e-3)
    np.testing.assert_allclose(got, rewards[:10], atol=1e-4)
    for row in range(0, 990, 33):
        seen = simulator.restore(states[row].astype(float))["observation"]
        step = simulator.step(actions[row])
        np.testing.assert_array_equal(seen, observations[row])
        np.testing.assert_allclose(
            step.observation["observation"], observations[row + 1], atol=1e-3
        )
        assert step.reward == pytest.approx(rewards[row], abs=1e-4)


# Foot contacts from observations, against the contact list of a live simulation.


def foot_contacts(env_id, observations):
    contacts = FootContacts(env_id, build_environment(env_id).model)
    return np.array([contacts.at(row) for row in observations])


def live_env(env_id):
    return gymnasium.make(env_id).unwrapped


def touching_geoms(env):
    """Return the names of the geoms that touch the floor, pair by pair."""
    names = []
    for contact in env.data.contact:
        pair = {env.model.geom(contact.geom1).name, env.model.geom(contact.geom2).name}
        if "floor" in pair:
            names += pair - {"floor"}
    return set(names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is out of date")
@pytest.mark.parametrize("env_id", task_names())
def test_foot_contacts_are_those_of_the_simulator_at_the_same_state(env_id):
    env = live_env(env_id)
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    rows, expected = [], []
    for step in range(300):
        # Walker2d and Hopper would only lie about after their fall.
        if step % 60 == 0:
            observation, _ = env.reset(seed=step)
        mujoco.mj_forward(env.model, env.data)  # after a step the list is one substep old
        rows.append(observation)
        expected.append([name in touching_geoms(env) for name in geoms(env_id)])
        observation = env.step(rng.uniform(-1, 1, env.model.nu))[0]
    found, expected = foot_contacts(env_id, np.stack(rows)), np.array(expected)
    assert found.shape == expected.shape
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, expected)
    assert (expected.any(axis=0) & ~expected.all(axis=0)).all()


def geoms(env_id):
    return FEET[env_id.partition("-")[0]]


def test_where_the_body_stands_and_how_it_moves_do_not_matter():
    rows = np.random.default_rng(0).normal(scale=0.1, size=(50, 17))
    moved = rows.copy()
    moved[:, 8:] += 5.0
    found = foot_contacts("HalfCheetah-v4", rows)
    np.testing.assert_array_equal(found, foot_contacts("HalfCheetah-v4", moved))
    assert 0 < found.mean() < 1


def test_a_body_in_the_air_and_one_in_the_floor():
    rows = np.zeros((2, 17))
    rows[:, 0] = (0.5, -0.2)
    found = foot_contacts("HalfCheetah-v4", rows)
    np.testing.assert_array_equal(found, [[False, False], [True, True]])


def test_contact_forces_in_the_observation_change_nothing():
    rows = np.zeros((3, 27))
    rows[:, 0], rows[:, 1] = (0.3, 0.6, 2.0), 1.0
    longer = np.hstack([rows, np.ones((3, 84))])
    np.testing.assert_array_equal(foot_contacts("Ant-v4", longer), foot_contacts("Ant-v4", rows))


def test_measured_contacts_have_names():
    cheetah, walker, ant = (
        GymMujocoSimulator.behavior_measure(f"{body}-v4")
        for body in ("HalfCheetah", "Walker2d", "Ant")
    )
    assert cheetah.fractions
    assert cheetah.names == ("contact_bfoot", "contact_ffoot")
    assert cheetah.compute(np.zeros((2, 17))) == {"contact_bfoot": 0.0, "contact_ffoot": 0.0}
    assert walker.names == ("contact_foot", "contact_foot_left")
    assert len(ant.names) == 4


def test_unknown_feet_and_short_rows_are_refused():
    with pytest.raises(ConfigError, match="Swimmer"):
        FootContacts("Swimmer-v4", None)
    with pytest.raises(ValueError, match="shape"):
        foot_contacts("HalfCheetah-v4", np.zeros((1, 5)))
