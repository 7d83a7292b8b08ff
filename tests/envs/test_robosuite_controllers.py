import json

import numpy as np
import pytest

from lwdctl.core.errors import ConfigError
from lwdctl.envs.robosuite import (
    FIXED,
    action_spec,
    composite_controller,
    make_arguments,
    pose_arguments,
    pose_command,
)

OSC_12 = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "kp": 150, "damping": 1,
    "impedance_mode": "fixed", "kp_limits": [0, 300], "damping_limits": [0, 10],
    "position_limits": None, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
ARM_15 = {"type": "OSC_POSE", "input_type": "delta", "gripper": {"type": "GRIP"}}
OSC_15 = {"type": "BASIC", "body_parts": {"right": ARM_15}}


def env_args(version, config, **kwargs):
    kwargs = {"robots": ["Panda"], "controller_configs": config, "control_freq": 20, **kwargs}
    return {"env_name": "Lift", "env_version": version, "type": 1, "env_kwargs": kwargs}


@pytest.mark.parametrize("version", ["1.2.0", "1.3.2", "1.4.1"])
def test_an_old_controller_becomes_a_part_of_a_composite_one(version):
    arguments = make_arguments(env_args(version, OSC_12))
    config = arguments["controller_configs"]
    arm = config["body_parts"]["right"]
    assert config["type"] == "BASIC"
    assert arm["input_type"] == "delta"
    assert arm["input_ref_frame"] == "world"
    assert arm["gripper"] == {"type": "GRIP"}
    assert arm["damping_ratio"] == 1
    assert arm["damping_ratio_limits"] == [0, 10]
    assert not {"control_delta", "damping", "damping_limits"} & set(arm)
    assert arguments["lite_physics"] is False


def test_absolute_targets_stay_absolute():
    arguments = make_arguments(env_args("1.4.1", {**OSC_12, "control_delta": False}))
    assert arguments["controller_configs"]["body_parts"]["right"]["input_type"] == "absolute"
    spec = action_spec(arguments, 7)
    assert spec.semantics == "absolute"
    assert spec.high[:3] == (2.0, 2.0, 2.0)
    assert spec.high[6] == 1.0
    assert spec.low == tuple(-value for value in spec.high)


def test_motions_are_normalized():
    spec = action_spec(make_arguments(env_args("1.4.1", OSC_12)), 7)
    assert (spec.semantics, spec.units, spec.control_rate) == ("delta", "normalized", 20.0)
    assert spec.low == (-1.0,) * 7


def test_a_new_controller_stays_as_it_is():
    arguments = make_arguments(env_args("1.5.1", OSC_15))
    assert arguments["controller_configs"] == OSC_15
    assert "lite_physics" not in arguments


def test_what_the_data_say_about_the_physics_is_kept():
    assert make_arguments(env_args("1.4.1", OSC_12, lite_physics=True))["lite_physics"] is True
    assert make_arguments(env_args("1.5.1", OSC_15, lite_physics=False))["lite_physics"] is False


def test_without_a_version_the_controller_tells():
    old, new = env_args("", OSC_12), env_args("", OSC_15)
    assert make_arguments(old)["lite_physics"] is False
    assert "lite_physics" not in make_arguments(new)


def test_conditions_one_level_deeper_are_lifted():
    nested = {"type": "BASIC", "body_parts": {"arms": OSC_15["body_parts"]}}
    assert composite_controller(nested) == OSC_15


def test_a_controller_in_a_list_of_one_is_that_controller():
    assert make_arguments(env_args("1.4.1", [OSC_12])) == make_arguments(env_args("1.4.1", OSC_12))


def test_renamed_and_lost_settings():
    arguments = make_arguments(
        env_args("1.4.1", OSC_12, mount_types="default", use_indicator_object=False)
    )
    assert arguments["base_types"] == "default"
    assert not {"mount_types", "use_indicator_object"} & set(arguments)


def test_rendering_and_hard_resets_are_switched_off():
    arguments = make_arguments(
        env_args("1.5.1", OSC_15, use_camera_obs=True, has_offscreen_renderer=True, hard_reset=True)
    )
    assert {key: arguments[key] for key in FIXED} == FIXED


def test_the_data_are_not_changed():
    given = env_args("1.4.1", OSC_12)
    before = json.dumps(given)
    make_arguments(given)
    assert json.dumps(given) == before


def test_nothing_gives_a_panda():
    assert make_arguments({})["robots"] == ["Panda"]
    assert make_arguments({"env_kwargs": {"robots": "Sawyer"}})["robots"] == ["Sawyer"]


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"robots": ["Panda", "Panda"]}, "robots"),
        ({"controller_configs": "OSC_POSE"}, "controller_configs"),
        ({"controller_configs": [OSC_12, OSC_12]}, "controller_configs"),
        ({"controller_configs": {"kp": 150}}, "'type'"),
    ],
)
def test_what_cannot_be_understood_is_named(kwargs, said):
    with pytest.raises(ConfigError, match=said):
        make_arguments({"env_kwargs": kwargs})


def test_poses_are_given_to_a_controller_of_motions_in_the_worlds_frame():
    given = make_arguments(env_args("1.5.1", {**OSC_15, "body_parts": {"right": {**ARM_15}}}))
    before = json.dumps(given)
    arm = pose_arguments(given)["controller_configs"]["body_parts"]["right"]
    assert (arm["input_type"], arm["input_ref_frame"]) == ("absolute", "world")
    assert arm["gripper"] == ARM_15["gripper"]
    assert json.dumps(given) == before


def test_a_controller_of_targets_keeps_its_frame():
    arm = {**ARM_15, "input_type": "absolute", "input_ref_frame": "base"}
    given = make_arguments(env_args("1.5.1", {"type": "BASIC", "body_parts": {"right": arm}}))
    assert pose_arguments(given) == given


@pytest.mark.parametrize(
    ("config", "said"), [(None, "the default one"), ({**OSC_12, "type": "IK_POSE"}, "IK_POSE")]
)
def test_poses_need_osc_pose(config, said):
    with pytest.raises(ConfigError, match=said):
        pose_arguments(make_arguments(env_args("1.4.1", config)))


def test_six_numbers_become_a_rotation_vector():
    aimed = np.diag([1.0, -1.0, -1.0])  # half a turn about x
    action = np.array([1, 2, 3, 0, 0.5, 0, -0.5, 0, 0, -1])
    expected = [1, 2, 3, 0, 0, np.pi / 2, -1]
    np.testing.assert_allclose(pose_command(action, aimed), expected, atol=1e-12)
    action[3:9] = 0
    np.testing.assert_allclose(pose_command(action, aimed), [1, 2, 3, np.pi, 0, 0, -1], atol=1e-12)
