"""`--actions absolute`: robosuite's motions as targets, from the file alone."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import Episode
from lwdctl.data.reader import open_source
from lwdctl.data.readers.robomimic_writer import RobomimicWriter
from lwdctl.data.readers.robosuite_poses import Scale

STEPS = 6
LARGEST = [0.05] * 3 + [0.5] * 3
OSC = {"type": "OSC_POSE", "output_max": LARGEST, "output_min": [-size for size in LARGEST]}
NEW = {"type": "BASIC", "body_parts": {"right": {**OSC, "input_type": "delta"}}}
OLD = {**OSC, "control_delta": True}
# The hand is turned by a quarter about z against the arm's last body, as Panda's is.
SCENE = """<mujoco><worldbody><body name="robot0_right_hand" quat="0 1 0 0">
<body name="gripper0_right_gripper" quat="0.70710678 0 0 -0.70710678"><body name="gripper0_eef">
<site name="gripper0_grip_site"/></body></body></body></worldbody></mujoco>"""


def matrix(quaternions):
    """Rotation matrices (time, 3, 3) of unit quaternions x, y, z, w."""
    x, y, z, w = np.asarray(quaternions, np.float64).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def exponential(vectors):
    """Rotation matrices of rotation vectors (time, 3), after Rodrigues."""
    found = []
    for vector in np.asarray(vectors, np.float64):
        angle = np.linalg.norm(vector)
        x, y, z = vector / (angle or 1.0)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        found.append(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)
    return np.stack(found)


def columns(matrices):
    return np.concatenate([matrices[..., 0], matrices[..., 1]], axis=-1)


QUARTER = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # by -90 degrees about z


@pytest.fixture
def write(tmp_path):
    def make(controller=NEW, version="1.5.1", *, size=7, without=(), site=False, model=SCENE):
        path = tmp_path / "demo.hdf5"
        kwargs = {"control_freq": 20}
        if controller is not None:
            kwargs["controller_configs"] = controller
        arguments = {
            "env_name": "Stack", "type": 1, "env_version": version, "env_kwargs": kwargs,
        }  # fmt: skip
        rng = np.random.default_rng(0)
        rows = {
            "object": rng.normal(size=(STEPS + 1, 5)),
            "robot0_eef_pos": rng.normal(size=(STEPS + 1, 3)),
            "robot0_eef_quat": rng.normal(size=(STEPS + 1, 4)),
            "robot0_gripper_qpos": rng.normal(size=(STEPS + 1, 2)),
        }
        if site:
            rows["robot0_eef_quat_site"] = rng.normal(size=(STEPS + 1, 4))
        for key in ("robot0_eef_quat", "robot0_eef_quat_site"):
            if key in rows:
                rows[key] /= np.linalg.norm(rows[key], axis=1, keepdims=True)
        rows = {key: value.astype(np.float32) for key, value in rows.items()}
        actions = rng.uniform(-1.3, 1.3, (STEPS, size)).astype(np.float32)
        with RobomimicWriter(path, arguments) as writer:
            writer.write(
                Episode(
                    source="",
                    observations={key: value[:-1] for key, value in rows.items()},
                    final_observation={key: value[-1] for key, value in rows.items()},
                    actions=actions,
                    rewards=np.zeros(STEPS, np.float32),
                    initial_state=np.zeros(3),
                    model=model,
                )
            )
        with h5py.File(path, "r+") as file:
            for key in without:
                del file[f"data/demo_0/obs/{key}"]
        return path, rows, actions.astype(np.float64)

    return make


def read(path, actions="absolute", keys=()):
    with open_source(
        "robomimic", [path], IngestConfig(actions=actions, observation_keys=keys)
    ) as reader:
        return reader.spec, reader.read(0).actions


def test_a_motion_is_added_to_where_the_hand_is(write):
    path, rows, actions = write()
    spec, targets = read(path)
    clipped = np.clip(actions, -1, 1)
    position = rows["robot0_eef_pos"][:-1] + 0.05 * clipped[:, :3]
    np.testing.assert_allclose(targets[:, :3], position, atol=1e-6)
    site = matrix(rows["robot0_eef_quat"][:-1]) @ QUARTER
    turned = exponential(0.5 * clipped[:, 3:6]) @ site
    np.testing.assert_allclose(targets[:, 3:9], columns(turned), atol=1e-6)
    np.testing.assert_allclose(targets[:, 9:], clipped[:, 6:], atol=1e-6)
    assert targets.dtype == np.float32
    assert (spec.action.size, spec.action.semantics) == (10, "absolute")
    assert spec.action.units == "meters and a 6-D rotation"
    assert (spec.action.high, spec.action.limits) == ((), "")  # robosuite sets none on targets
    assert spec.action.control_rate == 20
    assert spec.action.reference == ""
    assert spec.env.settings["actions"] == "absolute"
    assert spec.env.settings["env_args"]["env_kwargs"]["controller_configs"] == NEW


@pytest.mark.parametrize("asked", ["recorded", "delta"])
def test_recorded_motions_stay_motions(write, asked):
    path, _, actions = write()
    spec, found = read(path, asked)
    np.testing.assert_allclose(found, actions, atol=1e-6)
    assert (spec.action.size, spec.action.semantics) == (7, "delta")
    assert "actions" not in spec.env.settings


def test_the_orientation_of_the_site_is_taken_where_it_was_recorded(write):
    path, rows, actions = write(site=True, model="")
    turned = exponential(0.5 * np.clip(actions[:, 3:6], -1, 1))
    expected = columns(turned @ matrix(rows["robot0_eef_quat_site"][:-1]))
    np.testing.assert_allclose(read(path)[1][:, 3:9], expected, atol=1e-6)


def test_the_hands_pose_need_not_be_stored(write):
    path, *_ = write()
    spec, targets = read(path, keys=("object",))
    assert [item.name for item in spec.observations] == ["object"]
    np.testing.assert_array_equal(targets, read(path)[1])


@pytest.mark.parametrize("nested", [False, True])
def test_conditions_may_stand_one_level_deeper(write, nested):
    parts = NEW["body_parts"]
    path, *_ = write({"type": "BASIC", "body_parts": {"arms": parts} if nested else parts})
    assert read(path)[1].shape == (STEPS, 10)


def zero_turns(path, rows):
    with h5py.File(path, "r+") as file:
        actions = file["data/demo_0/actions"][:]
        actions[rows, 3:6] = 0
        file["data/demo_0/actions"][:] = actions


@pytest.mark.parametrize("version", ["1.4.1", ""])
def test_before_15_no_turn_keeps_the_orientation_aimed_at(write, version):
    path, rows, actions = write(OLD, version)
    zero_turns(path, [0, 3, 4])
    site = matrix(rows["robot0_eef_quat"][:-1]) @ QUARTER
    turned = exponential(0.5 * np.clip(actions[:, 3:6], -1, 1)) @ site
    aimed = np.stack([site[0], turned[1], turned[2], turned[2], turned[2], turned[5]])
    np.testing.assert_allclose(read(path)[1][:, 3:9], columns(aimed), atol=1e-6)


def test_from_15_on_no_turn_aims_at_the_orientation_there_is(write):
    path, rows, _ = write()
    zero_turns(path, [3])
    expected = matrix(rows["robot0_eef_quat"][3:4]) @ QUARTER
    np.testing.assert_allclose(read(path)[1][3:4, 3:9], columns(expected), atol=1e-6)


@pytest.mark.parametrize("version", ["", "1.5.1"])
def test_recorded_targets_get_six_numbers_and_keep_their_frame(write, version):
    controller = {"type": "BASIC", "body_parts": {"right": {**OSC, "input_type": "absolute"}}}
    path, _, actions = write(controller, version, without=["robot0_eef_pos"], model="")
    spec, targets = read(path, keys=("object",))
    np.testing.assert_allclose(targets[:, :3], actions[:, :3], atol=1e-6)
    np.testing.assert_allclose(targets[:, 3:9], columns(exponential(actions[:, 3:6])), atol=1e-6)
    assert spec.env.settings["actions"] == "absolute"
    assert read(path, "recorded", keys=("object",))[0].action.size == 7


def test_targets_that_are_no_poses_stay_as_they_are(write):
    path, _, actions = write({"type": "JOINT_POSITION", "input_type": "absolute"}, size=8)
    spec, targets = read(path)
    np.testing.assert_allclose(targets, actions, atol=1e-6)
    assert (spec.action.size, spec.action.semantics) == (8, "absolute")
    assert "actions" not in spec.env.settings


def test_scales_need_not_be_symmetric():
    ones = np.ones(6)
    scale = Scale(0 * ones, 2 * ones, -0.1 * ones, 0.3 * ones)
    given = np.array([[-5.0, 0, 0.5, 1, 2, 9]])
    np.testing.assert_allclose(scale.apply(given), [[-0.1, -0.1, 0, 0.1, 0.3, 0.3]], atol=1e-12)


def part(**settings):
    return {"type": "BASIC", "body_parts": {"right": {**NEW["body_parts"]["right"], **settings}}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"controller": None}, "controller_configs"),
        ({"controller": part(output_max=None)}, "output_max"),
        ({"controller": part(output_min=[1, 2])}, "output_min"),
        ({"controller": part(output_min="small")}, "output_min"),
        ({"controller": part(input_min=1)}, "input_min"),
        ({"controller": part(type="OSC_POSITION"), "size": 4}, "OSC_POSITION"),
        ({"controller": part(type="JOINT_VELOCITY"), "size": 8}, "JOINT_VELOCITY"),
        ({"controller": part(impedance_mode="variable")}, "impedance_mode"),
        ({"controller": part(position_limits=[[0] * 3, [1] * 3])}, "limits"),
        ({"size": 14}, "14 numbers"),
        ({"without": ["robot0_eef_pos"]}, "obs/robot0_eef_pos: is missing"),
        ({"without": ["robot0_eef_quat"]}, "obs/robot0_eef_quat: is missing"),
        ({"model": ""}, "model_file"),
        ({"model": "<mujoco"}, "model_file.*not XML"),
        ({"model": "<mujoco/>"}, "robot0_right_hand"),
        ({"model": SCENE.replace("robot0_right_hand", "arm")}, "robot0_right_hand"),
        ({"model": SCENE.replace('quat="0.7', 'euler="0.7')}, "gripper0_right_gripper"),
        ({"model": SCENE.replace('quat="0.70710678', 'quat="')}, "gripper0_right_gripper"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line(write, options, said):
    path, *_ = write(**options)
    with pytest.raises(DataError, match=said) as caught:
        read(path, keys=("object",))
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint == "leave --actions out to store the actions as recorded"


def test_a_quaternion_of_zeros_is_named_by_its_row(write):
    path, *_ = write()
    with h5py.File(path, "r+") as file:
        file["data/demo_0/obs/robot0_eef_quat"][2] = 0
    with pytest.raises(DataError, match="robot0_eef_quat, row 2"):
        read(path)


def test_a_pose_of_another_length_is_refused(write):
    path, *_ = write()
    with h5py.File(path, "r+") as file:
        rows = file["data/demo_0/obs/robot0_eef_pos"][:-1]
        del file["data/demo_0/obs/robot0_eef_pos"]
        file["data/demo_0/obs/robot0_eef_pos"] = rows
    with pytest.raises(DataError, match="robot0_eef_pos: has shape"):
        read(path, keys=("object",))


def test_without_the_group_of_observations_the_hands_pose_is_missing(write):
    path, *_ = write()
    with h5py.File(path, "r+") as file:
        file.move("data/demo_0/obs/object", "data/demo_0/object")
        del file["data/demo_0/obs"]
    with pytest.raises(DataError, match="obs/robot0_eef_pos: is missing"):
        read(path, keys=("object",))


def test_a_final_observation_in_the_same_array_changes_no_target(write):
    path, rows, _ = write()
    expected = read(path)[1]
    with h5py.File(path, "r+") as file:
        for key, values in rows.items():
            del file[f"data/demo_0/obs/{key}"]
            file[f"data/demo_0/obs/{key}"] = values
    np.testing.assert_array_equal(read(path)[1], expected)
