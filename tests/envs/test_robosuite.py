"""robosuite itself; every test is left out where the extra is not installed."""

import subprocess
import sys
import types

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lwdctl.core.errors import ConfigError, MissingExtraError, SimulatorError
from lwdctl.core.records import EnvSpec
from lwdctl.envs.simulator import UnstablePhysicsError
from lwdctl.envs.table import ENVIRONMENTS

try:
    ENVIRONMENTS.load("robosuite")
except MissingExtraError as error:
    pytest.skip(error.message, allow_module_level=True)

from lwdctl.envs.robosuite import MAX_STEPS, RobosuiteSimulator

pytestmark = pytest.mark.sim

TASKS = ("Lift", "PickPlaceCan")
OSC_14 = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150, "damping": 1, "impedance_mode": "fixed", "kp_limits": [0, 300],
    "damping_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
KWARGS = {
    "robots": ["Panda"], "has_renderer": False, "has_offscreen_renderer": False,
    "ignore_done": True, "use_object_obs": True, "use_camera_obs": False, "control_freq": 20,
    "reward_shaping": False, "camera_depths": False, "camera_heights": 84, "camera_widths": 84,
}  # fmt: skip
ENV_ARGS_14 = {"env_version": "1.4.1", "env_kwargs": {**KWARGS, "controller_configs": OSC_14}}


def make(task="Lift", env_args=None):
    settings = {} if env_args is None else {"env_args": env_args}
    return RobosuiteSimulator(EnvSpec("robosuite", (task,), settings), task)


@pytest.fixture(scope="module")
def lift():
    simulator = make()
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def can():
    simulator = make("PickPlaceCan")
    yield simulator
    simulator.close()


@pytest.fixture(params=TASKS)
def simulator(request):
    return request.getfixturevalue({"Lift": "lift", "PickPlaceCan": "can"}[request.param])


def grasp(seen, step, top=0.0):
    """A scripted expert of Lift: over the cube, down, close, up."""
    offset = seen["object"][7:10].astype(float)
    action = np.zeros(7, dtype=np.float32)
    action[6] = 1.0 if step >= 40 else -1.0
    if step < 40:
        target = offset + np.array([0, 0, 0.06 if step < 20 else 0.0])
        action[:3] = np.clip(target / 0.05 * 1.5, -1, 1)
    elif step >= 50:
        action[2] = 0.6
    return action


def lift_cube(simulator, seen, steps=70, until=None):
    actions, rows, success = [], [seen], False
    for step in range(steps):
        actions.append(grasp(seen, step))
        taken = simulator.step(actions[-1])
        seen, success = taken.observation, success or taken.success
        rows.append(seen)
    return np.stack(actions), rows, success


@pytest.mark.slow
def test_recorded_actions_repeat_a_lift_bit_for_bit(lift):
    seen = lift.reset(100_000)
    actions, rows, success = lift_cube(lift, seen)
    assert success
    state, other = lift.initial_state(), make()
    again = [other.restore(state), *(other.step(action).observation for action in actions)]
    other.close()
    for first, second in zip(rows, again, strict=True):
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


@pytest.mark.slow
def test_lift_needs_four_centimetres(lift):
    seen = lift.reset(100_001)
    for step in range(70):
        taken = lift.step(grasp(seen, step))
        seen = taken.observation
        assert taken.success == (lift._env.sim.data.body_xpos[lift._env.cube_body_id][2] > 0.84)
        assert taken.metrics == {"success": float(taken.success)}
        assert not taken.terminated
    assert taken.success


@pytest.mark.slow
def test_can_needs_the_can_in_its_bin_and_the_hand_away(can):
    can.reset(100_000)
    state = can.initial_state()
    address = can._env.sim.model.get_joint_qpos_addr("Can_joint0")[0]
    bin_place = can._env.target_bin_placements[can._env.object_to_id["can"]]
    state[1 + address : 4 + address] = bin_place + np.array([0, 0, 0.05])
    can.restore(state)
    still = np.zeros(7, dtype=np.float32)
    assert [can.step(still).success for _ in range(10)][-1]
    can.reset(100_000)
    assert not can.step(still).success


def test_object_is_in_the_convention_of_15(simulator):
    seen = {key: value.astype(float) for key, value in simulator.reset(100_002).items()}
    thing, hand = seen["object"], seen["robot0_eef_pos"]
    if simulator.task == "Lift":
        np.testing.assert_allclose(thing[7:10], thing[:3] - hand, atol=1e-6)
    else:
        name = simulator._env.obj_body_id["Can"]
        np.testing.assert_allclose(thing[7:10], simulator._env.sim.data.body_xpos[name], atol=1e-6)
        turn = Rotation.from_quat(seen["robot0_eef_quat"])
        np.testing.assert_allclose(thing[:3], turn.inv().apply(thing[7:10] - hand), atol=1e-5)
        assert np.abs(thing[:3]).max() > 0.05  # a single update leaves zeros


def test_networks_see_what_robomimic_shows_them(simulator):
    visible = [item.name for item in simulator.observations if item.network]
    assert visible == ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    sizes = {item.name: item.size for item in simulator.observations}
    assert sizes["object"] == (10 if simulator.task == "Lift" else 14)
    assert sizes["robot0_joint_pos"] == sizes["robot0_joint_vel"] == 7


def test_the_global_generator_is_left_as_it_was(lift):
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    lift.reset(100_000)
    lift.restore(lift.initial_state())
    lift.step(np.zeros(7, dtype=np.float32))
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002


@pytest.mark.slow
def test_the_scene_does_not_depend_on_the_global_generator(lift):
    sizes = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002
        other = make()
        sizes.append(other._env.sim.model.geom_size[other._env.sim.model.geom_name2id("cube_g0")])
        other.close()
    np.testing.assert_array_equal(*sizes)


def scaled_cube(simulator):
    """The recorded scene of a cube that is 5 mm taller than this simulator's own."""
    scene = simulator._own_record
    size = simulator._env.sim.model.geom_size[simulator._env.sim.model.geom_name2id("cube_g0")]
    text = " ".join(f"{value:.6g}" for value in size)
    assert scene.count(f'size="{text}"') == 2
    return scene.replace(f'size="{text}"', 'size="0.025 0.025 0.025"')


@pytest.mark.slow
def test_a_recorded_scene_is_used_and_leaves_no_trace():
    simulator = make()
    first = simulator.reset(100_000)
    state = simulator.initial_state()
    expected = [simulator.step(np.zeros(7, dtype=np.float32)).observation for _ in range(20)][-1]
    simulator.restore(state, scaled_cube(simulator))
    other = [simulator.step(np.zeros(7, dtype=np.float32)).observation for _ in range(20)][-1]
    assert other["object"][2] - expected["object"][2] == pytest.approx(
        0.025 - (expected["object"][2] - 0.8), abs=1e-3
    )
    again = simulator.reset(100_000)
    for key in first:
        np.testing.assert_array_equal(again[key], first[key])
    got = [simulator.step(np.zeros(7, dtype=np.float32)).observation for _ in range(20)][-1]
    simulator.close()
    for key in expected:
        np.testing.assert_array_equal(got[key], expected[key])


def test_its_own_scene_is_recognized_and_not_compiled_again(simulator):
    first = simulator.reset(100_000)
    before = simulator._env.sim
    again = simulator.restore(simulator.initial_state(), simulator._own_record)
    assert simulator._env.sim is before
    np.testing.assert_array_equal(again["object"], first["object"])


def test_a_scene_of_an_older_robosuite_is_replaced_by_its_own(lift):
    lift.reset(100_000)
    before = lift._env.sim
    old = lift._own_record.replace("gripper0_right_", "gripper0_")  # as 1.4 named them
    lift.restore(lift.initial_state(), old)
    assert lift._env.sim is before


@pytest.mark.parametrize(
    "scene", ["<gripper0_right_grip_site", "<mujoco><gripper0_right_grip_site/></mujoco>"]
)
def test_a_scene_that_cannot_be_read_is_an_error_and_is_forgotten(lift, scene):
    lift.reset(100_000)
    state = lift.initial_state()
    with pytest.raises(SimulatorError, match="scene"):
        lift.restore(state, scene)
    lift.restore(state)
    lift.step(np.zeros(7, dtype=np.float32))


def test_a_state_of_another_task_is_refused(lift):
    with pytest.raises(SimulatorError, match="'Lift'"):
        lift.restore(np.zeros(71))


def test_diverged_physics_are_the_policys_failure_and_forgotten_after_reset(
    lift, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT
    lift.reset(100_000)
    lift._env.sim.data.qvel[0] = 1e12
    with pytest.raises(UnstablePhysicsError, match="Lift"):
        lift.step(np.zeros(7, dtype=np.float32))
    lift.reset(100_000)
    lift.step(np.zeros(7, dtype=np.float32))


@pytest.mark.slow
def test_env_args_of_14_give_the_same_robot(lift):
    old = make(env_args=ENV_ARGS_14)
    try:
        assert not old._env.lite_physics
        first, same = old.reset(100_000), lift.reset(100_000)
        for key in first:
            np.testing.assert_allclose(first[key], same[key], atol=1e-6)
        _, _, success = lift_cube(old, first)
        assert success
    finally:
        old.close()


@pytest.mark.slow
def test_absolute_targets_are_reached():
    config = {**OSC_14, "control_delta": False}
    simulator = make(
        env_args={"env_version": "1.4.1", "env_kwargs": {**KWARGS, "controller_configs": config}}
    )
    seen = simulator.reset(100_000)
    assert simulator.action.semantics == "absolute"
    target = seen["robot0_eef_pos"] + np.array([0.05, -0.05, -0.05], dtype=np.float32)
    turn = Rotation.from_quat(seen["robot0_eef_quat_site"]).as_rotvec()
    for _ in range(40):
        seen = simulator.step(np.concatenate([target, turn, [-1]]).astype(np.float32)).observation
    simulator.close()
    np.testing.assert_allclose(seen["robot0_eef_pos"], target, atol=0.01)


def test_an_unknown_setting_is_named():
    with pytest.raises(ConfigError, match="no 'color'"):
        make(env_args={"env_kwargs": {"color": "red"}})


def test_a_robot_that_does_not_exist_is_an_error():
    with pytest.raises(SimulatorError, match="Lift"):
        make(env_args={"env_kwargs": {"robots": ["Pandda"]}})


@pytest.mark.slow
def test_the_limit_is_the_datas_own(lift):
    assert lift.max_steps == MAX_STEPS
    limited = RobosuiteSimulator(EnvSpec("robosuite", ("Lift",), {}, 500), "Lift")
    limited.close()
    assert limited.max_steps == 500


@pytest.mark.slow
def test_importing_is_quiet_and_changes_no_setting():
    code = (
        "import os, sys\n"
        "before = dict(os.environ)\n"
        "from lwdctl.core.records import EnvSpec\n"
        "from lwdctl.envs.table import make_simulator, ENVIRONMENTS\n"
        "assert 'robosuite' not in sys.modules\n"
        "simulator = make_simulator(EnvSpec('robosuite', ('Lift',)), 'Lift')\n"
        "simulator.reset(0)\n"
        "simulator.close()\n"
        "assert os.environ.get('MUJOCO_GL') == before.get('MUJOCO_GL')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def robomimic_judge():
    """Import robomimic's `EnvRobosuite`; its `mujoco_py` is a name it never uses with 1.5."""
    saved = sys.modules.get("mujoco_py")
    sys.modules["mujoco_py"] = types.ModuleType("mujoco_py")
    try:
        from robomimic.envs.env_robosuite import EnvRobosuite
        from robomimic.utils import obs_utils
    except ImportError as error:
        pytest.skip(f"robomimic cannot be imported: {error}")
    finally:
        if saved is None:
            del sys.modules["mujoco_py"]
        else:
            sys.modules["mujoco_py"] = saved
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["object"], "rgb": []}})
    return EnvRobosuite


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_robomimics_own_environment_agrees(task, capsys):
    from lwdctl.envs.robosuite import make_arguments

    judge_class = robomimic_judge()
    simulator = make(task, ENV_ARGS_14)
    seen = simulator.reset(100_004)
    # As EnvRobosuite is made from env_args of robosuite 1.5.
    judge = judge_class(task, **make_arguments(ENV_ARGS_14))
    given = {"model": simulator._env.model.get_xml(), "states": simulator.initial_state()}
    judge.reset_to(given)
    # robomimic looks once, and Can's relative poses need a second look.
    theirs = judge.get_observation()
    for item in simulator.observations:
        np.testing.assert_allclose(seen[item.name], theirs[item.name], atol=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(40):
        action = rng.uniform(-1, 1, 7).astype(np.float32)
        taken = simulator.step(action)
        _, reward, _, _ = judge.step(action.astype(np.float64))
        np.testing.assert_array_equal(
            simulator._env.sim.get_state().flatten(), judge.env.sim.get_state().flatten()
        )
        assert (taken.reward, taken.success) == (reward, judge.is_success()["task"])
    simulator.close()
    judge.env.close()
