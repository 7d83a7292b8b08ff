"""Foot contacts from observations, against the contact list of a live simulation."""

import gymnasium
import mujoco
import numpy as np
import pytest

from lwdctl.core.errors import ConfigError
from lwdctl.envs.foot_contacts import feet_names, foot_contacts

IDS = [f"{body}-{v}" for body in ("HalfCheetah", "Walker2d", "Ant", "Hopper") for v in ("v4", "v5")]


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


@pytest.mark.filterwarnings("ignore:.*is out of date")
@pytest.mark.parametrize("env_id", IDS)
def test_they_are_those_of_the_simulator_at_the_same_state(env_id):
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
    feet = feet_names(env_id)
    return feet if env_id.startswith("HalfCheetah") else tuple(f"{foot}_geom" for foot in feet)


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


def test_no_rows_give_no_rows():
    assert foot_contacts("Ant-v4", np.zeros((0, 27))).shape == (0, 4)


def test_contact_forces_in_the_observation_change_nothing():
    rows = np.zeros((3, 27))
    rows[:, 0], rows[:, 1] = (0.3, 0.6, 2.0), 1.0
    longer = np.hstack([rows, np.ones((3, 84))])
    np.testing.assert_array_equal(foot_contacts("Ant-v4", longer), foot_contacts("Ant-v4", rows))


def test_names():
    assert feet_names("HalfCheetah-v4") == ("bfoot", "ffoot")
    assert feet_names("Walker2d-v4") == ("foot", "foot_left")
    assert len(feet_names("Ant-v4")) == 4


def test_unknown_feet_and_short_rows_are_refused():
    with pytest.raises(ConfigError, match="Swimmer"):
        foot_contacts("Swimmer-v4", np.zeros((1, 8)))
    with pytest.raises(ValueError, match="shape"):
        foot_contacts("HalfCheetah-v4", np.zeros((1, 5)))
