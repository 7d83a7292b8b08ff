import numpy as np
import pytest

from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.records import EnvSpec
from lwdctl.envs.metaworld import MetaworldSimulator, task_names
from lwdctl.envs.metaworld_expert import MetaworldExpert
from lwdctl.envs.simulator import UnstablePhysicsError

SPEC = EnvSpec("metaworld", ("reach",), {}, 500)


def expert_steps(simulator, expert, observation, steps):
    rows = [observation["observation"]]
    success = False
    for _ in range(steps):
        step = simulator.step(expert.act(observation))
        observation, success = step.observation, success or step.success
        rows.append(observation["observation"])
    return np.stack(rows), success


def test_there_are_fifty_tasks_without_version_suffix():
    assert len(task_names()) == 50
    assert {"reach", "drawer-open", "button-press", "faucet-close"} <= set(task_names())


def test_the_version_suffix_is_accepted_and_old_versions_are_not():
    assert MetaworldSimulator(SPEC, "reach-v3").task == "reach"
    with pytest.raises(ConfigError) as caught:
        MetaworldSimulator(SPEC, "reach-v2")
    assert "'reach'" in caught.value.hint


def test_the_goal_stands_in_the_last_three_components_and_stays():
    simulator = MetaworldSimulator(SPEC, "reach")
    first = simulator.reset(100_000)["observation"]
    goal = simulator.initial_state()[3:]
    np.testing.assert_allclose(first[-3:], goal, atol=1e-6)
    rows, success = expert_steps(simulator, MetaworldExpert("reach"), {"observation": first}, 100)
    np.testing.assert_allclose(rows[:, -3:], np.tile(goal, (101, 1)), atol=1e-6)
    assert success


def test_the_frame_stack_starts_with_the_present_after_reset_and_restore():
    simulator = MetaworldSimulator(SPEC, "drawer-open")
    first = simulator.reset(100_000)["observation"]
    expert_steps(simulator, MetaworldExpert("drawer-open"), {"observation": first}, 60)
    state = simulator.initial_state()
    for start in (lambda: simulator.restore(state), lambda: simulator.reset(100_001)):
        now = start()["observation"]
        np.testing.assert_array_equal(now[18:36], now[:18])
        after = simulator.step(np.ones(4, dtype=np.float32)).observation["observation"]
        np.testing.assert_array_equal(after[18:36], now[:18])


@pytest.mark.slow
def test_starts_do_not_repeat_and_evaluation_never_meets_collection():
    simulator = MetaworldSimulator(SPEC, "reach")
    states = set()
    seeds = [*range(60), *range(100_000, 100_020)]
    for seed in seeds:
        simulator.reset(seed)
        states.add(simulator.initial_state().tobytes())
    assert len(states) == len(seeds)


def test_tasks_reject_starts_by_their_own_rule():
    # Push redraws while object and goal are closer than 15 cm.
    simulator = MetaworldSimulator(SPEC, "push")
    for seed in range(15):
        simulator.reset(seed)
        state = simulator.initial_state()
        assert np.linalg.norm(state[:2] - state[3:5]) >= 0.15


def test_the_same_seed_gives_unrelated_starts_to_different_tasks():
    reach, push = MetaworldSimulator(SPEC, "reach"), MetaworldSimulator(SPEC, "push")
    reach.reset(0)
    push.reset(0)
    assert not np.allclose(reach.initial_state()[:2], push.initial_state()[:2])


def assert_history_leaves_no_trace(task):
    fresh, used = MetaworldSimulator(SPEC, task), MetaworldSimulator(SPEC, task)
    expected, _ = expert_steps(fresh, MetaworldExpert(task), fresh.reset(7), 50)
    expert_steps(used, MetaworldExpert(task), used.reset(3), 120)
    used.perturb(0.1, np.random.default_rng(0))
    used.step(np.ones(4, dtype=np.float32))
    got, _ = expert_steps(used, MetaworldExpert(task), used.reset(7), 50)
    np.testing.assert_array_equal(got, expected)
    restored, _ = expert_steps(used, MetaworldExpert(task), used.restore(fresh.initial_state()), 50)
    np.testing.assert_array_equal(restored, expected)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["button-press", "drawer-open", "push", "reach"])
def test_history_leaves_no_trace(task):
    assert_history_leaves_no_trace(task)


@pytest.mark.long
@pytest.mark.sim
@pytest.mark.parametrize("task", task_names())
def test_history_leaves_no_trace_in_any_task(task):
    assert_history_leaves_no_trace(task)


def test_it_steps_beyond_metaworlds_own_limit():
    simulator = MetaworldSimulator(SPEC, "reach")
    simulator.reset(0)
    for _ in range(505):
        step = simulator.step(np.zeros(4, dtype=np.float32))
    assert not step.terminated


def test_success_is_not_the_end():
    simulator = MetaworldSimulator(SPEC, "reach")
    observation, expert = simulator.reset(100_000), MetaworldExpert("reach")
    for _ in range(150):
        step = simulator.step(expert.act(observation))
        observation = step.observation
        assert not step.terminated
    assert step.success
    assert step.metrics == {"success": 1.0}


def test_a_perturbation_moves_the_hand_by_its_magnitude():
    simulator = MetaworldSimulator(SPEC, "reach")
    simulator.reset(0)
    before = simulator._env.data.mocap_pos[0].copy()
    simulator.perturb(0.03, np.random.default_rng(0))
    moved = simulator._env.data.mocap_pos[0] - before
    assert np.linalg.norm(moved) == pytest.approx(0.03)


def test_a_state_of_another_task_is_refused():
    simulator = MetaworldSimulator(SPEC, "reach")
    with pytest.raises(SimulatorError, match="reach"):
        simulator.restore(np.zeros(2))


def test_diverged_physics_are_reported_and_forgotten_after_reset():
    simulator = MetaworldSimulator(SPEC, "reach")
    simulator.reset(0)
    simulator._env.data.warning[5].number = 1
    with pytest.raises(UnstablePhysicsError, match="reach"):
        simulator.step(np.zeros(4, dtype=np.float32))
    simulator.reset(0)
    simulator.step(np.zeros(4, dtype=np.float32))


def test_rendering_without_a_display_says_what_to_do(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    simulator = MetaworldSimulator(SPEC, "reach")
    simulator.reset(0)
    with pytest.raises(SimulatorError, match="display") as caught:
        simulator.render()
    assert "MUJOCO_GL" in caught.value.hint


@pytest.mark.slow
def test_rendering_off_screen_needs_no_setting(run_drawing):
    run_drawing("""
from lwdctl.core.records import EnvSpec
from lwdctl.envs.metaworld import MetaworldSimulator
simulator = MetaworldSimulator(EnvSpec("metaworld", ("reach",)), "reach")
simulator.reset(0)
image = simulator.render()
assert image.shape == (480, 480, 3) and image.dtype == "uint8" and image.std() > 1
simulator.close()
""")


def test_experts_keep_to_the_limits():
    simulator, expert = MetaworldSimulator(SPEC, "reach"), MetaworldExpert("reach")
    action = expert.act(simulator.reset(0))
    assert action.dtype == np.float32
    assert np.abs(action).max() == 1.0
