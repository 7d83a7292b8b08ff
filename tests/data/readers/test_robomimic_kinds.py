"""Files of robomimic's layout as its relatives write them, and their descriptions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.ingest import ingest
from lwdctl.data.reader import open_source, recognize

sys.path.insert(0, str(Path(__file__).parents[1]))
from robomimic_maker import OSC, STEPS, demos, follow, numbers, only, read_all, rows, write

sys.path.pop(0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.hdf5"


# Isaac Lab


def isaac_demo(steps=STEPS, seed=0):
    return {
        "actions": rows(steps, 7, seed=seed),
        "processed_actions": rows(steps, 8, seed=seed + 10),
        "obs/eef_pos": rows(steps, 3, seed=seed + 20),
        "obs/joint_pos": rows(steps, 9, seed=seed + 30),
        "obs/policy/object": rows(steps, 39, seed=seed + 40),
        "obs/table_cam": np.zeros((steps, 8, 8, 3), np.uint8),
        "obs/datagen_info/eef_pose/franka": rows(steps, 4, 4),
        "obs/datagen_info/subtask_term_signals/grasp_1": np.zeros((steps, 1), bool),
        "states/articulation/robot/joint_position": rows(steps, 9),
        "states/rigid_object/cube_1/root_pose": rows(steps, 7),
        "initial_state/articulation/robot/joint_position": rows(1, 9),
        "attrs": {"num_samples": steps, "success": True, "seed": seed},
    }


ISAAC = {"env_name": "Isaac-Stack-Cube-Franka-IK-Rel-Mimic-v0", "type": 2}


def test_isaac_lab(path):
    write(path, {"demo_0": isaac_demo(), "demo_1": isaac_demo(7, 1)}, env_args=ISAAC, total=12)
    assert recognize(path).format == "robomimic"
    spec, episodes, findings = read_all(path)
    assert {item.name: item.size for item in spec.observations} == {
        "eef_pos": 3, "joint_pos": 9, "policy.object": 39,
    }  # fmt: skip
    np.testing.assert_array_equal(episodes[1].observations["policy.object"], rows(7, 39, seed=41))
    np.testing.assert_array_equal(episodes[1].actions, rows(7, 7, seed=1))
    assert episodes[1].initial_state is None
    assert (episodes[1].success, episodes[1].seed) == (True, 1)
    assert spec.env.adapter == ""
    assert spec.env.tasks == ("Isaac-Stack-Cube-Franka-IK-Rel-Mimic-v0",)
    assert spec.env.max_steps == 7
    # Isaac Lab's names say it: IK-Rel takes motions.
    assert (spec.action.semantics, spec.action.low, spec.action.limits) == ("delta", (), "")
    assert "IK-Rel" in only(findings, "semantics").message
    left = only(findings, "left-out", "observations are left out")
    assert left.values["reasons"] == {
        "table_cam": "images of shape (8, 8, 3)",
        "datagen_info.eef_pose.franka": "what the generator of the demonstrations works with",
        "datagen_info.subtask_term_signals.grasp_1": (
            "what the generator of the demonstrations works with"
        ),
    }
    assert "processed_actions" in only(findings, "left-out", "action arrays").message
    assert "states/articulation" in only(findings, "left-out", "neither observ").message
    assert "no table" in only(findings, "left-out", "states of 2").message


def test_the_other_action_array_of_isaac_lab_is_read_by_the_hint(path):
    write(path, {"demo_0": isaac_demo()}, env_args=ISAAC)
    hint = only(read_all(path)[2], "left-out", "action arrays").hint
    spec, episodes, findings = read_all(path, **follow(hint))
    np.testing.assert_array_equal(episodes[0].actions, rows(STEPS, 8, seed=10))
    assert spec.action.semantics == "absolute"
    assert only(findings, "semantics").severity == "warning"


def test_observations_in_one_array(path):
    content = {
        "actions": rows(STEPS, 2),
        "obs": numbers(STEPS, 6),
        "next_obs": 1 + numbers(STEPS, 6),
    }
    write(path, {"demo_0": content})
    spec, (episode,), _ = read_all(path)
    assert spec.network_keys == ("observation",)
    np.testing.assert_array_equal(episode.observations["observation"], numbers(STEPS, 6))
    np.testing.assert_array_equal(
        episode.final_observation["observation"], 1 + numbers(STEPS, 6)[-1]
    )


# LIBERO


def libero(path, instruction, bddl):
    content = {
        "actions": rows(STEPS, 7),
        "states": rows(STEPS, 110, dtype=np.float64),
        "robot_states": numbers(STEPS, 9),
        "rewards": np.array([0, 0, 0, 0, 1], np.uint8),
        "dones": np.array([0, 0, 0, 0, 1], np.uint8),
        "obs/ee_pos": rows(STEPS, 3, seed=1),
        "obs/ee_ori": rows(STEPS, 3, seed=2),
        "obs/ee_states": rows(STEPS, 6, seed=3),
        "obs/gripper_states": rows(STEPS, 2, seed=4),
        "obs/joint_states": rows(STEPS, 7, seed=5),
        "obs/agentview_rgb": np.zeros((STEPS, 8, 8, 3), np.uint8),
        "obs/eye_in_hand_rgb": np.zeros((STEPS, 8, 8, 3), np.uint8),
        "attrs": {"num_samples": STEPS, "init_state": np.zeros(110)},
    }
    env_args = {
        "type": 1,
        "env_name": "Libero_Kitchen_Tabletop_Manipulation",
        "problem_name": f"problem {bddl}",
        "bddl_file": bddl,
        "env_kwargs": {"robots": ["Panda"], "bddl_file_name": bddl, "controller_configs": OSC},
    }
    problem = {"problem_name": "x", "domain_name": "robosuite", "language_instruction": instruction}
    return write(
        path,
        {"demo_0": content, "demo_1": content},
        env_args=env_args,
        problem_info=json.dumps(problem),
        bddl_file_name=bddl,
    )


def test_libero(path):
    spec, episodes, findings = read_all(libero(path, "open the top drawer", "a.bddl"))
    assert spec.env.tasks == ("open the top drawer",)
    assert {item.name: item.size for item in spec.observations} == {
        "ee_pos": 3, "ee_ori": 3, "ee_states": 6, "gripper_states": 2, "joint_states": 7,
    }  # fmt: skip
    np.testing.assert_array_equal(
        episodes[0].observations["gripper_states"], rows(STEPS, 2, seed=4)
    )
    assert spec.action.semantics == "delta"
    assert spec.action.low == (-1.0,) * 7
    assert episodes[0].success
    np.testing.assert_array_equal(episodes[0].initial_state, rows(STEPS, 110, dtype=np.float64)[0])
    left = only(findings, "left-out", "observations are left out")
    assert left.values["reasons"]["agentview_rgb"] == "images of shape (8, 8, 3)"
    assert left.values["reasons"]["robot_states"] == "beside obs"
    spec, episodes, _ = read_all(path, **follow(left.hint))
    np.testing.assert_array_equal(episodes[0].observations["robot_states"], numbers(STEPS, 9))
    assert "ee_pos" in episodes[0].observations


@pytest.mark.parametrize("instruction", [list("pull the drawer"), ["pull", "the", "drawer"]])
def test_libero_instruction_in_parts(path, instruction):
    spec, _, _ = read_all(libero(path, instruction, "a.bddl"))
    assert spec.env.tasks == ("pull the drawer",)


def test_libero_files_of_several_tasks_are_one_source(tmp_path):
    paths = [
        libero(tmp_path / f"{i}.hdf5", text, f"{i}.bddl") for i, text in enumerate(("pull", "push"))
    ]
    with open_source(None, paths, IngestConfig()) as source:
        assert source.spec.env.tasks == ("pull", "push")


# RoboCasa


def robocasa(path):
    parts = {
        "right": {"type": "OSC_POSE", "input_type": "delta"},
        "base": {"type": "JOINT_VELOCITY"},
    }
    env_args = {
        "env_name": "PnPCounterToCab", "type": 1, "env_version": "1.5.0",
        "env_kwargs": {
            "robots": "PandaOmron",
            "controller_configs": {"type": "HYBRID_MOBILE_BASE", "body_parts": parts},
        },
    }  # fmt: skip
    content = {
        f"demo_{i}": {
            "actions": rows(STEPS, 12, seed=i),
            "actions_abs": rows(STEPS, 12, seed=10 + i),
            "action_dict/rel_pos": rows(STEPS, 3),
            "action_dict/abs_pos": rows(STEPS, 3),
            "obs/object": rows(STEPS, 14, seed=20 + i),
            "obs/robot0_base_to_eef_pos": rows(STEPS, 3),
            "obs/robot0_base_pos": rows(STEPS, 3),
            "obs/robot0_eef_pos": rows(STEPS, 3),
            "obs/robot0_eef_quat": rows(STEPS, 4),
            "obs/robot0_gripper_qpos": rows(STEPS, 2),
            "obs/robot0_joint_vel": rows(STEPS, 7),
            "obs/lang_emb": np.array([b"x"] * STEPS),
            "states": rows(STEPS, 20 + i, dtype=np.float64),
            "attrs": {
                "ep_meta": json.dumps(
                    {"lang": f"pick item {i % 2}", "layout_id": i, "x": {"y": 2}}
                ),
                "num_samples": STEPS,
                "model_file": "<mujoco/>",
            },
        }
        for i in range(3)
    }
    return write(path, content, env_args=env_args)


def test_robocasa(path):
    spec, episodes, findings = read_all(robocasa(path))
    assert [episode.task for episode in episodes] == ["pick item 0", "pick item 1", "pick item 0"]
    assert spec.network_keys == (
        "object", "robot0_base_pos", "robot0_base_to_eef_pos", "robot0_eef_pos", "robot0_eef_quat",
        "robot0_gripper_qpos",
    )  # fmt: skip
    assert (spec.action.semantics, spec.action.gripper) == ("delta", (6,))
    np.testing.assert_array_equal(episodes[1].actions, rows(STEPS, 12, seed=1))
    np.testing.assert_array_equal(episodes[2].observations["object"], rows(STEPS, 14, seed=22))
    assert episodes[2].initial_state.shape == (22,)
    left = only(findings, "left-out", "action arrays")
    assert list(left.values["reasons"]) == [
        "actions_abs", "action_dict/abs_pos", "action_dict/rel_pos",
    ]  # fmt: skip
    assert left.hint.startswith("--action-key actions_abs ")
    reasons = only(findings, "left-out", "observations are left").values["reasons"]
    assert reasons["robot0_joint_vel"] == "not a default key"
    assert "not numbers" in reasons["lang_emb"]


def test_another_action_array_is_what_its_name_says(path):
    spec, episodes, findings = read_all(robocasa(path), action_key="actions_abs")
    np.testing.assert_array_equal(episodes[1].actions, rows(STEPS, 12, seed=11))
    assert (spec.action.semantics, spec.action.low, spec.action.limits) == ("absolute", (), "")
    assert "actions_abs" in only(findings, "semantics").message
    right = spec.env.settings["env_args"]["env_kwargs"]["controller_configs"]["body_parts"]["right"]
    assert right["input_type"] == "absolute"
    spec, episodes, _ = read_all(path, action_key="action_dict.rel_pos")
    assert (spec.action.size, spec.action.semantics) == (3, "delta")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ep_meta.lang", ["pick item 0", "pick item 1", "pick item 0"]),
        ("ep_meta.layout_id", ["0", "1", "2"]),
        ("ep_meta.x.y", ["2", "2", "2"]),
        ("num_samples", ["5", "5", "5"]),
    ],
)
def test_tasks_and_labels_from_any_attribute(path, name, expected):
    robocasa(path)
    assert [episode.task for episode in read_all(path, task_from=name)[1]] == expected
    spec, episodes, _ = read_all(path, label_from=name)
    assert [episode.label for episode in episodes] == expected
    assert set(spec.labels) == set(expected)


@pytest.mark.parametrize("option", ["task_from", "label_from"])
def test_an_unknown_attribute_is_refused_with_the_known_ones(path, option):
    robocasa(path)
    with pytest.raises(DataError, match=f"--{option.replace('_', '-')}: has no") as caught:
        read_all(path, **{option: "ep_meta.long"})
    assert "ep_meta.lang" in caught.value.hint
    with pytest.raises(DataError) as caught:
        read_all(path, **{option: "zzz"})
    assert "num_samples" in caught.value.hint
    assert "model_file" not in caught.value.hint


@pytest.mark.parametrize("dtype", ["S", h5py.string_dtype()])
def test_texts_in_arrays_of_one_element_are_read(path, dtype):
    attrs = {"task": np.array(["lift"], dtype), "operator": np.array(["expert"], dtype)}
    write(path, demos(attrs=attrs))
    spec, *_ = read_all(path)
    assert (spec.env.tasks, spec.labels) == (("lift",), ("expert",))
    assert read_all(path, label="")[0].labels == ()


def test_an_episode_without_a_task_makes_no_task(path):
    write(path, demos())
    assert read_all(path)[0].env.tasks == ()


def test_tasks_and_labels_from_an_array_and_missing_ones(path):
    content = demos()
    for index, item in enumerate(content.values()):
        item["operator_id"] = np.full((STEPS, 1), index)
        item["instruction"] = f"text {index}"
    content["demo_1"]["attrs"] = {"skill": "good"}
    write(path, content, env_args={"env_name": "mine"})
    assert [e.label for e in read_all(path, label_from="operator_id")[1]] == ["0", "1", "2"]
    assert [e.task for e in read_all(path, task_from="instruction")[1]] == [
        "text 0", "text 1", "text 2",
    ]  # fmt: skip
    _, episodes, findings = read_all(path, label_from="skill")
    assert [episode.label for episode in episodes] == ["", "good", ""]
    assert "2 demonstrations have no behavior label" in only(findings, "metadata").message
    assert [e.task for e in read_all(path, task_from="skill")[1]] == ["mine", "good", "mine"]


# MimicGen, DexMimicGen: two arms


def two_arms(path, **env_args):
    content = {
        f"demo_{i}": {
            "actions": rows(STEPS, 14, seed=i),
            "obs/object": rows(STEPS, 20, seed=10 + i),
            **{
                f"obs/robot{robot}_{key}": rows(STEPS, size, seed=20 + robot)
                for robot in (1, 0)
                for key, size in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2))
            },
            "obs/robot1_joint_pos": rows(STEPS, 7),
            "datagen_info/eef_pose": rows(STEPS, 4, 4),
            "datagen_info/object_poses/cube": rows(STEPS, 4, 4),
            "datagen_info/subtask_term_signals/grasp": np.zeros(STEPS, int),
            "src_demo_inds": np.array([1, 4]),
            "src_demo_labels": np.zeros((STEPS, 1), int),
        }
        for i in range(2)
    }
    kwargs = {"robots": ["Panda", "Panda"], "controller_configs": [OSC, OSC]}
    arguments = {"env_name": "TwoArmThreading_D0", "type": 1, "env_kwargs": kwargs, **env_args}
    return write(path, content, env_args=arguments)


def test_two_arms_are_both_seen(path):
    spec, episodes, findings = read_all(two_arms(path))
    assert spec.network_keys == (
        "object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos",
        "robot1_eef_pos", "robot1_eef_quat", "robot1_gripper_qpos",
    )  # fmt: skip
    np.testing.assert_array_equal(
        episodes[1].observations["robot1_eef_pos"], rows(STEPS, 3, seed=21)
    )
    assert (spec.action.semantics, spec.action.gripper) == ("delta", (6, 13))
    assert "datagen_info/eef_pose" in only(findings, "left-out", "neither observ").message


def test_one_robot_with_two_arms(path):
    names = [f"robot0_{side}_{key}" for side in ("right", "left")
             for key in ("eef_pos", "eef_quat", "gripper_qpos")]  # fmt: skip
    parts = {
        side: {"type": "JOINT_POSITION", "input_type": "absolute"} for side in ("right", "left")
    }
    configs = {
        "type": "WHOLE_BODY_MINK_IK",
        "composite_controller_specific_configs": {"ik_input_type": "absolute"},
        "body_parts": {"arms": parts},
    }
    content = {"actions": rows(STEPS, 24), "obs/object": rows(STEPS, 5)}
    content |= {f"obs/{name}": rows(STEPS, 3) for name in names}
    kwargs = {"robots": ["GR1FixedLowerBody"], "controller_configs": configs}
    env_args = {"env_name": "TwoArmCanSortRandom", "type": 1, "env_kwargs": kwargs}
    spec, *_ = read_all(write(path, {"demo_0": content}, env_args=env_args))
    assert spec.network_keys == ("object", *sorted(names))
    # Fingers, torso and legs have limits of their own, which the file does not give.
    assert (spec.action.semantics, spec.action.low, spec.action.limits) == ("absolute", (), "")


# Recorded targets under a description of motions


TARGETS = {"type": "OSC_POSE", "input_type": "delta", "input_ref_frame": "base"}


@pytest.mark.parametrize(
    ("controller", "marked"),
    [
        (OSC, {"type": "OSC_POSE", "control_delta": False}),
        ([OSC], [{"type": "OSC_POSE", "control_delta": False}]),
        (None, {"type": "OSC_POSE", "control_delta": False, "interpolation": None,
                "ramp_ratio": 0.2}),
        (
            {"type": "BASIC", "body_parts": {"right": TARGETS}},
            {"type": "BASIC", "body_parts": {"right": {
                "type": "OSC_POSE", "input_type": "absolute", "input_ref_frame": "world"}}},
        ),
        (
            {"type": "BASIC", "body_parts": {"arms": {"right": TARGETS}}},
            {"type": "BASIC", "body_parts": {"arms": {"right": {
                "type": "OSC_POSE", "input_type": "absolute", "input_ref_frame": "world"}}}},
        ),
    ],
)  # fmt: skip
def test_recorded_absolute_marks_the_controller(path, controller, marked):
    recorded = np.clip(rows(STEPS, 7), -1, 1) + np.array([0.5, 0.2, 0.9, 3.0, 0, 0, 0])
    recorded[:, 6] = 1.0
    content = {"actions": recorded, "obs/object": rows(STEPS, 5)}
    kwargs = {} if controller is None else {"controller_configs": controller}
    env_args = {"env_name": "Stack", "type": 1, "env_kwargs": kwargs}
    write(path, {"demo_0": content}, env_args=env_args)
    spec, (episode,), findings = read_all(path, actions="recorded-absolute")
    np.testing.assert_array_equal(episode.actions, recorded.astype(np.float32))
    assert spec.action.semantics == "absolute"
    assert spec.action.units == "meters and radians"
    assert (spec.action.high, spec.action.limits) == ((), "")  # robosuite sets none on targets
    assert spec.env.settings["env_args"]["env_kwargs"]["controller_configs"] == marked
    assert "actions" not in spec.env.settings
    assert only(findings, "semantics").severity == "note"
    plain = read_all(path)[0]
    assert plain.action.semantics == "delta"
    assert plain.env.settings["env_args"] == env_args


def test_metaworld_takes_no_targets(path):
    write(path, demos(), env_args={"env_name": "metaworld/reach", "type": "metaworld"})
    with pytest.raises(DataError, match="Metaworld takes motions"):
        read_all(path, actions="recorded-absolute")


@pytest.mark.parametrize(("env", "takes"), [("metaworld/reach-v3", "4"), ("pusht/push_t", "2")])
def test_a_named_environment_takes_actions_of_this_size(path, env, takes):
    write(path, demos())
    said = f"actions have 3 components, '{env}' takes {takes}"
    with pytest.raises(DataError, match=said):
        read_all(path, env=env)


def test_an_action_too_short_for_a_gripper_has_none(path):
    """Wiping takes a pose and nothing else."""
    write(path, demos())
    assert read_all(path, env="robosuite/Wipe")[0].action.gripper == ()


# No env_args


def test_nothing_is_invented_for_a_real_robot(path):
    write(path, demos())
    spec, _, findings = read_all(path)
    assert (spec.action.low, spec.action.high, spec.action.limits) == ((), (), "")
    assert spec.env.adapter == ""
    assert spec.action.semantics == "absolute"
    warning = only(findings, "semantics")
    assert warning.severity == "warning"
    spec, _, findings = read_all(path, **follow(warning.hint))
    assert spec.action.semantics == "delta"
    assert only(findings, "semantics").severity == "note"
    spec, _, findings = read_all(path, actions="recorded-absolute")
    assert spec.action.semantics == "absolute"
    assert only(findings, "semantics").severity == "note"


REACH = json.dumps({"env_name": "metaworld/reach", "type": "metaworld"})


@pytest.mark.parametrize(
    "stored",
    [np.array([REACH], "S"), np.frombuffer(REACH.encode(), "u1"), np.bytes_(REACH)],
)
def test_env_args_as_an_array_or_bytes(path, stored):
    write(path, demos(), env_args=None)
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = stored
    spec, _, findings = read_all(path)
    assert spec.env.adapter == "metaworld"
    assert spec.action.low == (-1.0,) * 3
    if stored.ndim:
        assert "as an array" in only(findings, "metadata").message


@pytest.mark.parametrize("stored", ["{", "[1, 2]", np.array([1.0, 2.0])])
def test_env_args_that_say_nothing_need_the_environment(path, stored):
    write(path, demos())
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = stored
    with pytest.raises(DataError, match=r"attrs\[env_args\]: is not") as caught:
        read_all(path)
    assert "--env ADAPTER/NAME" in caught.value.hint
    spec, _, findings = read_all(path, env="toy/reach")
    assert (spec.env.adapter, spec.env.tasks) == ("toy", ("reach",))
    assert only(findings, "left-out", "not used")


DEEP = "[" * 3000 + "]" * 3000
NUMBERS = {
    "levels": (f'"a": {DEEP}', "more than 32 levels"),
    "digits": (f'"a": {"9" * 5000}', "limit"),
    "rate": (f'"control_freq": 1{"0" * 400}', "more than 64 bits"),
    "negative": ('"max_steps": -5', "max_steps that is not a number from 0 to"),
    "NaN": ('"max_steps": NaN', "max_steps that is not a number from 0 to"),
}


@pytest.mark.parametrize("kind", sorted(NUMBERS))
def test_env_args_are_read_within_bounds(path, kind):
    content, problem = NUMBERS[kind]
    text = f'{{"env_name": "reach", "type": "metaworld", "env_kwargs": {{{content}}}}}'
    write(path, demos())
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = text
    with pytest.raises(DataError, match=r"attrs\[env_args\]: (is not|has)") as caught:
        read_all(path)
    assert problem in caught.value.message
    assert read_all(path, env="toy/reach")[0].env.max_steps == 5  # the longest episode


def test_numbers_of_the_environment_that_are_not_finite_are_stored_as_null(path, tmp_path):
    kwargs = {"scale": np.nan, "limits": [1.0, -np.inf]}
    write(path, demos(), env_args={"env_name": "x", "type": 2, "env_kwargs": kwargs})
    with open_source(None, (path,), IngestConfig()) as source:
        assert only(source.findings, "adjusted").values["places"] == [
            "env_args.env_kwargs.scale", "env_args.env_kwargs.limits[1]",
        ]  # fmt: skip
        ingest(source, IngestConfig(), tmp_path / "store" / "snippets.zarr")
    spec = SnippetStore.open(tmp_path / "store" / "snippets.zarr").spec
    assert spec.env.settings["env_args"]["env_kwargs"] == {"scale": None, "limits": [1.0, None]}


def test_controller_settings_of_another_kind_need_a_declaration(path):
    content = {"actions": rows(STEPS, 3), "obs/object": rows(STEPS, 5)}
    kwargs = {"controller_configs": {"body_parts": {"legs": {}}}}
    write(path, {"demo_0": content}, env_args={"env_name": "X", "type": 1, "env_kwargs": kwargs})
    with pytest.raises(DataError, match="controller_configs is not") as caught:
        read_all(path)
    assert "--actions recorded-absolute" in caught.value.hint
    spec, *_ = read_all(path, actions="recorded-absolute")
    assert (spec.action.semantics, spec.action.low) == ("absolute", ())
    spec, *_ = read_all(path, actions="delta")
    assert (spec.action.semantics, spec.action.low) == ("delta", ())
