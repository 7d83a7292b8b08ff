"""ManiSkill's trajectory files: values, control modes, metadata that contradict, hints."""

from __future__ import annotations

import json
import shlex

import h5py
import numpy as np
import pytest

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.checks import NonFiniteError
from lwdctl.data.reader import open_source, recognize
from lwdctl.data.readers.maniskill import semantics_of


@pytest.fixture
def sample(make_sample, tmp_path):
    return make_sample("maniskill", tmp_path).path


def read_all(path, **options):
    with open_source("maniskill", (path,), IngestConfig(**options)) as reader:
        episodes = [reader.read(index) for index in range(len(reader.episodes))]
        return reader.spec, episodes, reader.findings


def change_json(path, change):
    beside = path.with_suffix(".json")
    content = json.loads(beside.read_text())
    change(content)
    beside.write_text(json.dumps(content))


def messages(findings, check):
    return " | ".join(item.message for item in findings if item.check == check)


def test_trajectories_have_the_numbers_of_the_file(sample):
    assert recognize(sample).format == "maniskill"
    spec, episodes, findings = read_all(sample)
    with h5py.File(sample) as file:
        obs, actions = file["traj_10/obs"][:], file["traj_10/actions"][:]
    np.testing.assert_array_equal(episodes[10].observations["observation"], obs[:-1])
    np.testing.assert_array_equal(episodes[10].final_observation["observation"], obs[-1])
    np.testing.assert_array_equal(episodes[10].actions, actions)
    assert (episodes[10].source, episodes[10].seed, episodes[10].success) == ("traj_10", 110, True)
    assert (spec.env.tasks, spec.env.max_steps, spec.labels) == (
        ("PickCube-v1",), 50, ("motionplanning",),
    )  # fmt: skip
    assert (spec.action.semantics, spec.action.limits, spec.action.gripper) == ("delta", "", (6,))
    assert [item for item in findings if item.severity != "note"] == []
    assert "env_states" in messages(findings, "left-out")


def test_dict_observations_leave_out_images_and_cameras(sample):
    with h5py.File(sample, "a") as file:
        for name in file:
            rows = len(file[name]["obs"])
            del file[name]["obs"]
            file[f"{name}/obs/agent/qpos"] = np.full((rows, 9), 2.0, np.float32)
            file[f"{name}/obs/extra/is_grasped"] = np.arange(rows) % 2 == 1
            file[f"{name}/obs/sensor_data/cam/rgb"] = np.zeros((rows, 4, 4, 3), np.uint8)
            file[f"{name}/obs/sensor_param/cam/extrinsic_cv"] = np.ones((rows, 3, 4), np.float32)
    spec, episodes, findings = read_all(sample)
    assert [(item.name, item.size) for item in spec.observations] == [
        ("agent.qpos", 9), ("extra.is_grasped", 1),
    ]  # fmt: skip
    np.testing.assert_array_equal(episodes[0].observations["extra.is_grasped"][:, 0], [0, 1, 0])
    assert episodes[0].final_observation["extra.is_grasped"] == [1]
    left_out = messages(findings, "left-out")
    assert "sensor_data.cam.rgb: images" in left_out
    assert "sensor_param.cam.extrinsic_cv: camera parameters" in left_out
    spec, _, _ = read_all(sample, observation_keys=("agent/qpos",))
    assert spec.network_keys == ("agent.qpos",)
    spec, _, _ = read_all(sample, drop=("agent.qpos",))
    assert spec.network_keys == ("extra.is_grasped",)


def test_file_without_observations_names_the_command_that_adds_them(sample):
    with h5py.File(sample, "a") as file:
        for name in file:
            del file[name]["obs"]
            file[name].create_group("obs")
    with pytest.raises(DataError, match="recorded without observations") as caught:
        read_all(sample)
    words = shlex.split(caught.value.hint)
    assert words[:3] == ["python", "-m", "mani_skill.trajectory.replay_trajectory"]
    assert words[words.index("--traj-path") + 1] == str(sample)
    assert words[words.index("-o") + 1] == "state"
    assert "--save-traj" in words


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("pd_joint_delta_pos", "delta"),
        ("pd_joint_target_delta_pos", "delta"),
        ("pd_ee_delta_pose", "delta"),
        ("pd_ee_target_delta_pose", "delta"),
        ("pd_joint_vel", "delta"),
        ("base_pd_joint_vel_arm_pd_ee_delta_pose", "delta"),
        ("pd_joint_pos", "absolute"),
        ("pd_joint_pos_vel", "absolute"),
        ("pd_ee_pose", "absolute"),
        ("passive", ""),
        ("", ""),
    ],
)
def test_control_mode_says_what_actions_are(mode, expected):
    assert semantics_of(mode)[0] == expected


def set_mode(mode):
    def change(content):
        for item in content["episodes"]:
            item["control_mode"] = mode

    return change


def test_velocities_and_unknown_modes_are_said(sample):
    change_json(sample, set_mode("pd_joint_vel"))
    spec, _, findings = read_all(sample)
    assert (spec.action.semantics, spec.action.gripper) == ("delta", ())
    assert "commands velocities" in messages(findings, "semantics")
    change_json(sample, set_mode("passive"))
    spec, _, findings = read_all(sample)
    assert spec.action.semantics == "absolute"
    assert "'passive' does not say" in messages(findings, "semantics")
    spec, _, findings = read_all(sample, actions="delta")
    assert (spec.action.semantics, messages(findings, "semantics")) == ("delta", "")


def test_mixed_control_modes_are_refused(sample):
    change_json(sample, lambda content: content["episodes"][3].update(control_mode="pd_joint_pos"))
    with pytest.raises(DataError, match=r"pd_ee_delta_pose, pd_joint_pos") as caught:
        read_all(sample)
    assert "-c pd_ee_delta_pose" in caught.value.hint


def test_motions_beyond_what_the_controller_takes_are_a_warning(sample):
    with h5py.File(sample, "a") as file:
        file["traj_0/actions"][0, 0] = -2.5
    _, _, findings = read_all(sample)
    (found,) = [item for item in findings if item.check == "outside-limits"]
    assert found.values["largest"] == 2.5
    assert found.values["fraction"] == 1 / (102 * 7)
    assert found.hint == "--action-limits=-1,1 --clip-actions"


def test_json_that_contradicts_is_noticed_and_the_rows_are_trusted(sample):
    def change(content):
        content["episodes"][0]["elapsed_steps"] = 77
        content["episodes"][1]["success"] = False
        del content["episodes"][5]
        content["episodes"].append({"episode_id": 40})

    change_json(sample, change)
    _, episodes, findings = read_all(sample)
    assert episodes[0].length == 3
    assert episodes[1].success
    assert episodes[5].seed is None
    text = messages(findings, "metadata")
    for part in ("elapsed_steps of 1 trajectories", "success of 1", "not in the JSON file: traj_5",
                 "only there: traj_40"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_without_the_json_file_the_rows_are_read(sample, content):
    beside = sample.with_suffix(".json")
    if content is None:
        beside.unlink()
    else:
        beside.write_text(content)
    spec, episodes, findings = read_all(sample)
    assert (len(episodes), spec.env.tasks, spec.env.max_steps) == (12, (), 14)
    assert episodes[0].success
    assert "task, control mode and seeds are unknown" in messages(findings, "metadata")


def test_a_control_mode_that_is_no_text_is_that_of_the_environment(sample):
    change_json(sample, set_mode(["pd_joint_pos"]))
    change_json(sample, lambda content: content["env_info"].update(
        env_kwargs={"control_mode": "pd_ee_delta_pose"}
    ))  # fmt: skip
    spec, _, _ = read_all(sample)
    assert spec.action.semantics == "delta"


def test_labels_and_tasks_come_from_the_fields_of_an_episode(sample):
    change_json(sample, lambda content: [
        item.update(operator=f"o{index % 2}") for index, item in enumerate(content["episodes"])
    ])  # fmt: skip
    spec, episodes, _ = read_all(sample, label_from="operator", task_from="control_mode")
    assert spec.labels == ("o0", "o1")
    assert episodes[1].task == "pd_ee_delta_pose"
    assert read_all(sample, label_from="operator", label="mine")[0].labels == ("mine",)
    with pytest.raises(DataError, match="no field 'operatr'") as caught:
        read_all(sample, label_from="operatr")
    assert "'operator'" in caught.value.hint


def test_several_agents_are_refused_until_one_is_chosen(sample):
    with h5py.File(sample, "a") as file:
        for name in file:
            actions = file[name]["actions"][:]
            del file[name]["actions"]
            file[f"{name}/actions/panda-0"], file[f"{name}/actions/panda-1"] = actions, -actions
    assert recognize(sample).format == "maniskill"
    with pytest.raises(DataError, match="a group of 2 arrays") as caught:
        read_all(sample)
    option, key = caught.value.hint.split()
    assert option == "--action-key"
    _, episodes, findings = read_all(sample, action_key=key)
    with h5py.File(sample) as file:
        np.testing.assert_array_equal(episodes[4].actions, file["traj_4/actions/panda-0"])
    assert "panda-1" in messages(findings, "left-out")


def test_rewards_are_read_where_every_trajectory_has_them(sample):
    with h5py.File(sample, "a") as file:
        for name in file:
            file[name]["rewards"] = np.arange(len(file[name]["actions"]), dtype=np.float32)
    _, episodes, _ = read_all(sample)
    np.testing.assert_array_equal(episodes[0].rewards, [0, 1, 2])
    with h5py.File(sample, "a") as file:
        file["traj_3/rewards"][0] = np.nan
    _, episodes, findings = read_all(sample)
    assert episodes[0].rewards is None
    assert "never written, in traj_3" in messages(findings, "left-out")


@pytest.mark.parametrize("key", ["rewards", "success", "actions"])
def test_a_trajectory_that_was_never_written_can_be_left_out(sample, key):
    with h5py.File(sample, "a") as file:
        place = f"traj_3/{key}"
        values = file.pop(place)[()] if key != "rewards" else np.zeros(len(file["traj_3/actions"]))
        file.create_dataset(place, values.shape, values.dtype)
    with open_source("maniskill", (sample,), IngestConfig()) as source:
        unreadable = []
        for index, outline in enumerate(source.episodes):
            try:
                source.read(index)
            except NonFiniteError:
                unreadable.append(outline.source)
    assert unreadable == (["traj_3"] if key == "actions" else [])


def shorten(file, key):
    values = file[key][:-2]
    del file[key]
    file[key] = values


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: shorten(f, "traj_2/obs"), "traj_2/obs, row 4: has 4 rows, expected 6"),
        (lambda f: f.__delitem__("traj_2/obs"), r"observation \(missing in traj_2\)"),
        (lambda f: f["traj_3"].move("actions", "other"), None),
        (lambda f: [f[name].move("actions", "action") for name in f], "traj_0/actions: is missing"),
    ],
)
def test_structure_is_checked(sample, damage, expected):
    with h5py.File(sample, "a") as file:
        damage(file)
    if expected:
        with pytest.raises(DataError, match=expected):
            read_all(sample)
    else:
        _, episodes, findings = read_all(sample)
        assert len(episodes) == 11
        assert "trajectories without steps: traj_3" in messages(findings, "left-out")
