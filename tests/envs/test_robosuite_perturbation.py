"""Perturbations; every test is left out where the extra is not installed."""

import numpy as np
import pytest

from lwdctl.core.errors import MissingExtraError
from lwdctl.core.records import EnvSpec
from lwdctl.envs.table import ENVIRONMENTS

try:
    ENVIRONMENTS.load("robosuite")
except MissingExtraError as error:
    pytest.skip(error.message, allow_module_level=True)

from scipy.spatial.transform import Rotation

from lwdctl.envs.robosuite import RobosuiteSimulator, _Hand

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def lift():
    simulator = RobosuiteSimulator(EnvSpec("robosuite", ("Lift",)), "Lift")
    yield simulator
    simulator.close()


def motion(simulator, magnitude, seed):
    """Perturb, and return the translation and the rotation as vectors."""
    position, turn = _Hand(simulator._env).pose()
    simulator.perturb(magnitude, np.random.default_rng(seed))
    after, turned = _Hand(simulator._env).pose()
    return after - position, Rotation.from_matrix(turned @ turn.T).as_rotvec()


@pytest.mark.slow
@pytest.mark.parametrize(("magnitude", "degrees"), [(0.01, 5), (0.02, 10), (0.04, 20)])
def test_the_hand_is_moved_and_turned_by_the_magnitude(lift, magnitude, degrees):
    directions = []
    for seed in range(8):
        lift.reset(100_000)
        translation, rotation = motion(lift, magnitude, seed)
        assert np.linalg.norm(translation) == pytest.approx(magnitude, rel=1e-2)
        assert np.degrees(np.linalg.norm(rotation)) == pytest.approx(degrees, rel=1e-2)
        directions.append(translation / magnitude)
    assert np.linalg.norm(np.mean(directions, axis=0)) < 0.9


def test_a_motion_command_goes_on_from_where_the_hand_was_displaced(lift):
    # Also before the first step, when robosuite's controller has not looked at the robot yet.
    for steps in (0, 10):
        lift.reset(100_000)
        still = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)
        for _ in range(steps):
            lift.step(still)
        motion(lift, 0.04, 3)
        displaced = _Hand(lift._env).pose()[0]
        for _ in range(10):
            lift.step(still)
        assert np.linalg.norm(_Hand(lift._env).pose()[0] - displaced) < 0.015


@pytest.mark.slow
def test_the_table_stops_a_perturbation(lift):
    seen = lift.reset(100_000)
    for _ in range(60):
        action = np.zeros(7, dtype=np.float32)
        action[:3] = np.clip((np.array([-0.2, 0.2, 0.83]) - seen["robot0_eef_pos"]) / 0.05, -1, 1)
        seen = lift.step(action).observation
    qpos, qvel = lift._env.sim.data.qpos.copy(), lift._env.sim.data.qvel.copy()
    shorter = 0
    for seed in range(20):
        lift._env.sim.data.qpos[:], lift._env.sim.data.qvel[:] = qpos, qvel
        lift._env.sim.forward()
        translation, _ = motion(lift, 0.08, seed)
        shorter += np.linalg.norm(translation) < 0.075
        assert _Hand(lift._env)._pressed() < 0.005
        lift.step(np.zeros(7, dtype=np.float32))
        assert np.abs(lift._env.sim.data.qvel[:7]).max() < 5.0
    assert 0 < shorter < 20


@pytest.mark.slow
def test_the_reach_of_the_arm_ends_a_perturbation(lift):
    lift.reset(100_000)
    out = np.array([1, 0, 0.5, 0, 0, 0, -1], dtype=np.float32)
    for _ in range(80):
        lift.step(out)
    qpos = lift._env.sim.data.qpos.copy()
    lengths = []
    for seed in range(20):
        lift._env.sim.data.qpos[:] = qpos
        translation, _ = motion(lift, 0.08, seed)
        lengths.append(np.linalg.norm(translation))
    assert min(lengths) < 0.06
    assert max(lengths) == pytest.approx(0.08, rel=0.03)


@pytest.mark.slow
def test_what_the_hand_holds_goes_with_it(lift):
    seen = lift.reset(100_000)
    for step in range(60):
        action = np.zeros(7, dtype=np.float32)
        action[6] = 1.0 if step >= 40 else -1.0
        if step < 40:
            target = seen["object"][7:10] + np.array([0, 0, 0.06 if step < 20 else 0.0])
            action[:3] = np.clip(target / 0.05 * 1.5, -1, 1)
        elif step >= 50:
            action[2] = 0.6
        taken = lift.step(action)
        seen = taken.observation
    closed = np.array([0, 0, 0, 0, 0, 0, 1], dtype=np.float32)
    for _ in range(3):
        taken = lift.step(closed)
    assert taken.success or seen["object"][2] > 0.83
    hand = _Hand(lift._env).pose()[0]
    before = lift._env.sim.data.body_xpos[lift._env.cube_body_id].copy()
    translation, _ = motion(lift, 0.02, 1)
    after = lift._env.sim.data.body_xpos[lift._env.cube_body_id]
    offset = np.linalg.norm(before - hand)
    assert np.linalg.norm(after - hand - translation) == pytest.approx(offset, abs=1e-5)
    for _ in range(10):
        lift.step(closed)
    assert lift._env.sim.data.body_xpos[lift._env.cube_body_id][2] > 0.83


@pytest.mark.slow
def test_nothing_is_drawn_and_nothing_moves_at_magnitude_zero(lift):
    lift.reset(100_000)
    before = lift._env.sim.get_state().flatten()
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    lift.perturb(0.0, rng)
    assert rng.bit_generator.state == state
    np.testing.assert_array_equal(lift._env.sim.get_state().flatten(), before)
