import numpy as np
import pytest

from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import EnvSpec
from lwdctl.envs.pusht import KEYPOINTS, PushTSimulator

SPEC = EnvSpec("pusht", ("push_t",), {}, 300)


@pytest.fixture
def simulator():
    simulator = PushTSimulator(SPEC, "push_t")
    yield simulator
    simulator.close()


def test_restore_gives_exactly_the_state_asked_for(simulator):
    state = np.array([100.0, 120.0, 300.0, 250.0, 2.5])
    seen = simulator.restore(state)
    np.testing.assert_allclose(seen["agent_position"], state[:2], atol=1e-4)
    np.testing.assert_allclose(seen["block_position"], state[2:4], atol=1e-4)
    np.testing.assert_allclose(seen["block_angle_sincos"], [np.sin(2.5), np.cos(2.5)], atol=1e-6)


def test_a_block_left_alone_stays_where_it_was_put(simulator):
    state = np.array([50.0, 50.0, 300.0, 250.0, 2.5])
    simulator.restore(state)
    step = simulator.step(np.array([50.0, 50.0], dtype=np.float32))
    np.testing.assert_allclose(step.observation["block_position"], state[2:4], atol=1e-4)


def test_keypoints_turn_and_move_with_the_block(simulator):
    flat = simulator.restore(np.array([50.0, 50.0, 200.0, 210.0, 0.0]))["keypoint"]
    np.testing.assert_allclose(flat.reshape(9, 2), KEYPOINTS + np.array([200.0, 210.0]), rtol=1e-5)
    turned = simulator.restore(np.array([50.0, 50.0, 200.0, 210.0, np.pi / 2]))["keypoint"]
    quarter = np.stack([-KEYPOINTS[:, 1], KEYPOINTS[:, 0]], axis=1)
    np.testing.assert_allclose(turned.reshape(9, 2), quarter + np.array([200.0, 210.0]), rtol=1e-5)


def test_only_keypoints_are_hidden_from_networks():
    visible = [item.name for item in PushTSimulator.observations if item.network]
    assert visible == ["agent_position", "block_position", "block_angle_sincos"]


def test_the_target_pose_ends_the_episode_with_full_overlap(simulator):
    simulator.restore(np.array([50.0, 50.0, 256.0, 256.0, np.pi / 4]))
    step = simulator.step(np.array([50.0, 50.0], dtype=np.float32))
    assert step.success
    assert step.terminated
    assert step.metrics["overlap"] == 1.0


def test_overlap_is_the_covered_share_over_095(simulator):
    simulator.restore(np.array([50.0, 50.0, 270.0, 256.0, np.pi / 4]))
    step = simulator.step(np.array([50.0, 50.0], dtype=np.float32))
    coverage = simulator._env._get_coverage()
    assert 0.3 < coverage < 0.95
    assert step.metrics["overlap"] == pytest.approx(coverage / 0.95, abs=1e-8)
    assert not step.success


def test_a_perturbation_displaces_the_block_by_its_magnitude(simulator):
    state = np.array([50.0, 50.0, 256.0, 256.0, 0.3])
    directions = []
    for seed in range(5):
        simulator.restore(state)
        simulator.perturb(25.0, np.random.default_rng(seed))
        moved = np.array(simulator._env.block.position) - state[2:4]
        assert np.linalg.norm(moved) == pytest.approx(25.0)
        assert simulator._env.block.angle == pytest.approx(0.3)
        directions.append(tuple(moved))
    assert len(set(directions)) == 5


def test_a_perturbation_keeps_the_block_in_the_arena(simulator):
    for seed in range(20):
        simulator.restore(np.array([256.0, 256.0, 20.0, 500.0, 0.0]))
        simulator.perturb(50.0, np.random.default_rng(seed))
        position = np.array(simulator._env.block.position)
        assert (position >= 0).all()
        assert (position <= 512).all()


def test_a_state_of_the_wrong_size_is_refused(simulator):
    with pytest.raises(SimulatorError, match="shape"):
        simulator.restore(np.zeros(4))


def test_render_gives_an_image(simulator):
    simulator.reset(0)
    image = simulator.render()
    assert image.shape == (680, 680, 3)
    assert image.dtype == np.uint8
