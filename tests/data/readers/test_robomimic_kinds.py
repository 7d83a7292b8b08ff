"""Files of robomimic's layout as its relatives and their users write them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from subprocess import PIPE

import h5py
import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.ingest import assign_splits, ingest
from lwdctl.data.reader import open_source, recognize
from lwdctl.data.readers.robomimic_masks import Masks

STEPS = 5
OSC = {"type": "OSC_POSE", "control_delta": True}


def rows(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def numbers(count, size):
    """Rows that say which demonstration, row and component they are."""
    return np.arange(count * size, dtype=np.float32).reshape(count, size)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.hdf5"


def write(path, demos, *, env_args=None, masks=None, **attributes):
    """Write demonstrations given as mappings of paths to arrays; `attrs` are attributes."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if env_args is not None:
            data.attrs["env_args"] = json.dumps(env_args)
        data.attrs.update(attributes)
        for name, content in demos.items():
            group = data.create_group(name)
            for key, value in content.items():
                if key == "attrs":
                    group.attrs.update(value)
                else:
                    group[key] = value
        for name, members in (masks or {}).items():
            file[f"mask/{name}"] = np.array(members, dtype="S")
    return path


def demo(steps=STEPS, action=3, seed=0, **more):
    return {
        "actions": rows(steps, action, seed=seed),
        "obs/state": rows(steps, 4, seed=seed + 100),
        **more,
    }


def demos(count=3, **more):
    return {f"demo_{i}": demo(seed=i, **more) for i in range(count)}


def read_all(path, **options):
    with open_source(None, (path,), IngestConfig(**options)) as source:
        episodes = [source.read(index) for index in range(len(source.episodes))]
        return source.spec, episodes, source.findings


def only(findings, check, text=""):
    """Return the finding of a check whose message has a text; exactly one has."""
    found = [item for item in findings if item.check == check and text in item.message]
    assert len(found) == 1, findings
    return found[0]


def follow(hint):
    """Return the options that a hint begins with as settings of `ingest`."""
    words = shlex.split(hint.partition(" ")[0] + " " + hint.partition(" ")[2])
    options: dict[str, object] = {}
    name = words[0].removeprefix("--").replace("-", "_")
    value = words[1].rstrip(",")
    many = name in ("observation_keys", "drop")
    options[name] = tuple(value.split(",")) if many else value
    return options


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
    spec, _, findings = read_all(path, env="metaworld/reach")
    assert (spec.env.adapter, spec.env.tasks) == ("metaworld", ("reach",))
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
    assert read_all(path, env="metaworld/reach")[0].env.max_steps == 500


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


# Shapes


def test_rows_of_other_shapes_in_a_later_demonstration_are_named(path):
    content = demos()
    content["demo_2"] |= {"actions": rows(STEPS, 1, 3), "obs/state": numbers(STEPS, 4)[:, None]}
    _, episodes, findings = read_all(write(path, content))
    np.testing.assert_array_equal(episodes[2].observations["state"], numbers(STEPS, 4))
    np.testing.assert_array_equal(episodes[2].actions, rows(STEPS, 1, 3)[:, 0])
    finding = only(findings, "adjusted")
    assert finding.values["reshaped"] == {"actions": 1, "state": 1}
    assert f"state of demo_2, ({STEPS}, 1, 4)" in finding.message


@pytest.mark.parametrize("first", ["demo_0", "demo_1"])
def test_several_actions_per_step_in_some_demonstrations_are_refused(path, first):
    content = {"demo_0": demo(), "demo_1": demo()}
    content[first]["actions"] = rows(STEPS, 6, 3)
    with pytest.raises(DataError, match=r"data/demo_1/actions: has shape .* only some"):
        read_all(write(path, content), action_key="actions")


def test_whole_numbers_as_actions_are_noticed(path):
    actions = np.ones((STEPS, 3), np.int64)
    _, (episode,), findings = read_all(write(path, {"demo_0": demo() | {"actions": actions}}))
    np.testing.assert_array_equal(episode.actions, actions)
    assert only(findings, "discrete").severity == "warning"


def test_rows_of_other_shapes_become_vectors(path):
    content = {
        "actions": rows(STEPS, 1, 3),
        "obs/gripper": numbers(STEPS, 1)[:, 0],
        "obs/eef": numbers(STEPS, 4)[:, None],
        "obs/column": numbers(STEPS, 2)[:, :, None],
        "next_obs/gripper": 1 + numbers(STEPS, 1)[:, 0],
        "next_obs/eef": 1 + numbers(STEPS, 4)[:, None],
        "next_obs/column": 1 + numbers(STEPS, 2)[:, :, None],
        "obs/image": np.zeros((STEPS, 4, 4, 3), np.uint8),
        "obs/depth": np.zeros((STEPS, 4, 4), np.float32),
        "obs/note": np.array([b"text"] * STEPS),
        "obs/scalar": 3.0,
        "obs/action": rows(STEPS, 3),
        "rewards": rows(STEPS, 1, seed=9),
    }
    spec, (episode,), findings = read_all(write(path, {"demo_0": content}))
    np.testing.assert_array_equal(episode.actions, rows(STEPS, 1, 3)[:, 0])
    np.testing.assert_array_equal(episode.observations["gripper"], numbers(STEPS, 1))
    np.testing.assert_array_equal(episode.observations["eef"], numbers(STEPS, 4))
    np.testing.assert_array_equal(episode.observations["column"], numbers(STEPS, 2))
    np.testing.assert_array_equal(episode.final_observation["eef"], 1 + numbers(STEPS, 4)[-1])
    np.testing.assert_array_equal(episode.final_observation["gripper"], [5.0])
    np.testing.assert_array_equal(episode.rewards, rows(STEPS, 1, seed=9)[:, 0])
    assert {item.name for item in spec.observations} == {"gripper", "eef", "column"}
    assert set(only(findings, "adjusted").values["reshaped"]) == {
        "actions", "gripper", "eef", "column",
    }  # fmt: skip
    reasons = only(findings, "left-out", "observations are left").values["reasons"]
    assert reasons == {
        "image": "images of shape (4, 4, 3)",
        "depth": "rows of shape (4, 4)",
        "note": "holds |S4, not numbers",
        "scalar": "a single value",
        "action": "its name is reserved in snippet stores",
    }
    with pytest.raises(DataError, match="'depth' cannot be an observation: rows of shape"):
        read_all(path, observation_keys=("depth",))


def test_one_observation_more_than_actions_is_the_final_one(path):
    content = {"actions": rows(STEPS, 2), "obs/state": numbers(STEPS + 1, 3)}
    _, (episode,), _ = read_all(write(path, {"demo_0": content}))
    np.testing.assert_array_equal(episode.observations["state"], numbers(STEPS + 1, 3)[:-1])
    np.testing.assert_array_equal(episode.final_observation["state"], numbers(STEPS + 1, 3)[-1])


@pytest.mark.parametrize("broken", [rows(STEPS - 2, 4), rows(STEPS, 6)])
def test_a_key_that_does_not_fit_can_be_dropped(path, broken):
    content = demos(3, **{"obs/other": rows(STEPS, 4)})
    content["demo_1"]["obs/other"] = broken
    write(path, content)
    with pytest.raises(DataError, match="data/demo_1/obs/other, row") as caught:
        read_all(path)
    spec, episodes, _ = read_all(path, **follow(caught.value.hint))
    assert spec.network_keys == ("state",)
    assert len(episodes) == 3


def test_drop(path):
    write(path, demos(2, **{"obs/a/b": rows(STEPS, 2), "obs/image": np.zeros((STEPS, 2, 2, 3))}))
    assert read_all(path, drop=("state",))[0].network_keys == ("a.b",)
    assert read_all(path, drop=("a/b", "image"))[0].network_keys == ("state",)
    with pytest.raises(DataError, match="--drop: no observation 'stat'") as caught:
        read_all(path, drop=("stat",))
    assert caught.value.hint == "did you mean 'state'?"


def test_arrays_that_are_not_one_row_per_action_are_left_out(path):
    constant = {"obs/intrinsics": np.eye(3), "obs/goal": np.ones(7), "src_demo_inds": np.ones(2)}
    write(path, demos(3, **constant))
    spec, _, findings = read_all(path)
    assert spec.network_keys == ("state",)
    assert only(findings, "left-out", "observations are left").values["reasons"] == {
        "intrinsics": "has 3 rows for 5 actions",
        "goal": "has 7 rows for 5 actions",
    }
    assert only(findings, "left-out", "observations are left").severity == "warning"
    assert "src_demo_inds" in only(findings, "left-out", "neither observ").message
    with pytest.raises(DataError, match="'goal' cannot be an observation: has 7 rows"):
        read_all(path, observation_keys=("goal",))


def test_keys_that_only_some_demonstrations_have(path):
    content = demos(4, **{"obs/force": rows(STEPS, 6)})
    del content["demo_2"]["obs/force"]
    content["demo_3"]["obs/extra"] = rows(STEPS, 2)
    write(path, content)
    spec, _, findings = read_all(path)
    assert spec.network_keys == ("state",)
    left = only(findings, "left-out", "observations are left")
    assert left.severity == "warning"
    assert left.values["reasons"] == {
        "force": "in only 3 of the demonstrations", "extra": "in only 1 of the demonstrations",
    }  # fmt: skip
    with pytest.raises(DataError, match="data/demo_2/obs/force: is missing"):
        read_all(path, observation_keys=("force",))


# Actions under another name


def egomimic(path):
    content = {
        f"demo_{i}": {
            "actions_joints_act": rows(STEPS, 10, 7, seed=i),
            "actions_xyz_act": rows(STEPS, 10, 3, seed=i),
            "actions_xyz": rows(STEPS, 3, seed=5 + i),
            "obs/joint_positions": rows(STEPS, 7),
            "obs/ee_pose": rows(STEPS, 3),
            "obs/front_img_1": np.zeros((STEPS, 4, 4, 3), np.uint8),
        }
        for i in range(3)
    }
    names = ["demo_0", "demo_1"], ["demo_1", "demo_2"]
    return write(path, content, masks={"train": names[0], "valid": names[1]})


def test_actions_under_another_name_are_named(path):
    assert recognize(egomimic(path)).format == "robomimic"
    with pytest.raises(DataError, match="data/demo_0/actions: is missing") as caught:
        read_all(path)
    for name in ("actions_xyz", "actions_joints_act"):
        assert name in caught.value.message
    spec, episodes, _ = read_all(path, **follow(caught.value.hint))
    np.testing.assert_array_equal(episodes[2].actions, rows(STEPS, 3, seed=7))
    assert {item.name for item in spec.observations} == {"joint_positions", "ee_pose"}
    _, episodes, findings = read_all(path, action_key="actions_joints_act")
    np.testing.assert_array_equal(episodes[2].actions, rows(STEPS, 10, 7, seed=2)[:, 0])
    assert "first of the 10 actions" in only(findings, "adjusted").message
    with pytest.raises(DataError, match="actions_xzy: is missing") as caught:
        read_all(path, action_key="actions_xzy")
    assert "actions_xyz" in caught.value.hint


def test_several_actions_per_step_need_a_decision(path):
    write(path, {"demo_0": {"actions": rows(STEPS, 8, 2), "obs/state": rows(STEPS, 3)}})
    with pytest.raises(DataError, match="several actions per step") as caught:
        read_all(path)
    _, (episode,), _ = read_all(path, **follow(caught.value.hint))
    np.testing.assert_array_equal(episode.actions, rows(STEPS, 8, 2)[:, 0])


def test_observations_beside_no_group_are_named(path):
    write(path, {"demo_0": {"actions": rows(STEPS, 2), "qpos": numbers(STEPS, 3)}})
    with pytest.raises(DataError, match="data/demo_0/obs: is missing") as caught:
        read_all(path)
    _, (episode,), _ = read_all(path, **follow(caught.value.hint))
    np.testing.assert_array_equal(episode.observations["qpos"], numbers(STEPS, 3))


# Masks, success, odd demonstrations


def splits_of(path):
    with open_source(None, (path,), IngestConfig()) as source:
        return assign_splits(source.episodes, 0.4, 0), source.findings


def test_what_is_in_both_masks_is_not_trained_on(path):
    splits, findings = splits_of_egomimic(path)
    assert splits == ["train", "validation", "validation"]
    assert only(findings, "split").values["both"] == ["demo_1"]
    assert "not trained on" in only(findings, "split").message


def splits_of_egomimic(path):
    egomimic(path)
    with open_source(None, (path,), IngestConfig(action_key="actions_xyz")) as source:
        return assign_splits(source.episodes, 0.4, 0), source.findings


def test_masks_that_leave_nothing_to_train_on_are_not_used(path):
    names = [f"demo_{i}" for i in range(5)]
    write(path, demos(5), masks={"train": names, "valid": names})
    splits, findings = splits_of(path)
    assert sorted(splits) == ["train"] * 3 + ["validation"] * 2
    assert "--validation-fraction decides" in only(findings, "split").message


def test_masks_that_name_deleted_demonstrations(path):
    masks = {"train": ["demo_0", "demo_7"], "valid": ["demo_1"], "good": ["demo_9", "demo_2"]}
    write(path, demos(), masks=masks)
    splits, findings = splits_of(path)
    assert splits == ["train", "validation", "train"]
    found = only(findings, "metadata")
    assert found.values["missing"] == {"good": ["demo_9"], "train": ["demo_7"]}
    _, episodes, _ = read_all(path, filter_key="good")
    assert [episode.source for episode in episodes] == ["demo_2"]


def test_masks_that_are_no_lists_of_names(path):
    write(path, demos())
    with h5py.File(path, "a") as file:
        file["mask/numbers"] = np.arange(3)
        file["mask/valid"] = np.array(["demo_1"], dtype="S")
        file.create_group("mask/folder")
    splits, findings = splits_of(path)
    assert splits == ["train", "validation", "train"]
    assert set(only(findings, "left-out", "masks").values["masks"]) == {"numbers", "folder"}
    with pytest.raises(DataError, match="mask/numbers: is not a list of names"):
        read_all(path, filter_key="numbers")


def test_a_mask_group_that_is_an_array(path):
    write(path, demos())
    with h5py.File(path, "a") as file:
        file["mask"] = np.arange(3)
        masks = Masks(file, ["demo_0"])
    assert "mask is not a group" in masks.findings[0].message


def test_failures_are_kept_and_said(path):
    content = demos(4)
    for index, item in enumerate(content.values()):
        item["attrs"] = {"success": np.bool_(index % 2)}
    _, episodes, findings = read_all(write(path, content))
    assert [episode.success for episode in episodes] == [False, True, False, True]
    found = only(findings, "success")
    assert found.values["count"] == 2
    assert found.hint.startswith("--only-successful ")


@pytest.mark.parametrize("success", ["False", np.nan, np.array([True, False]), 2.0])
def test_success_that_is_neither_true_nor_false_is_unknown(path, success):
    content = demos(2)
    content["demo_1"]["attrs"] = {"success": success}
    _, episodes, findings = read_all(write(path, content))
    assert [episode.success for episode in episodes] == [None, None]
    assert "success of 1 demonstrations" in only(findings, "metadata").message


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(7, 7), ("7", 7), (7.0, 7), (np.array([7]), 7), (0, 0), (np.inf, None), (3.7, None),
     (-1, None), ("abc", None), (np.array([1, 2]), None)],
)  # fmt: skip
def test_seeds_are_whole_numbers(path, seed, expected):
    content = demos(1)
    content["demo_0"]["attrs"] = {"seed": seed}
    _, (episode,), findings = read_all(write(path, content))
    assert episode.seed == expected
    assert any("seed of 1" in item.message for item in findings) == (expected is None)


def test_empty_demonstrations_and_other_groups_are_left_out(path):
    content = demos()
    content["demo_0"] = {"actions": np.zeros((0, 3))}
    content["demo_3"] = {"attrs": {"num_samples": 0}}
    content["statistics"] = {"mean": np.zeros(3)}
    _, episodes, findings = read_all(write(path, content))
    assert [episode.source for episode in episodes] == ["demo_1", "demo_2"]
    np.testing.assert_array_equal(episodes[0].actions, rows(STEPS, 3, seed=1))
    assert "demo_0" in only(findings, "left-out", "have no steps").message
    assert only(findings, "left-out", "groups beside").values["first"] == ["demo_3", "statistics"]


def test_metadata_that_contradict_the_rows_are_said(path):
    content = demos(3, rewards=rows(STEPS, 1)[:, 0])
    content["demo_1"]["attrs"] = {"num_samples": STEPS - 1, "seed": "abc"}
    _, episodes, findings = read_all(write(path, content, total=999))
    assert [episode.length for episode in episodes] == [STEPS] * 3
    assert "demo_1 (4 for 5 rows)" in only(findings, "metadata", "num_samples").message
    assert "demo_1" in only(findings, "metadata", "seed").message


@pytest.mark.parametrize("kind", ["short", "nan", "none in one", "text"])
def test_rewards_that_cannot_be_used_are_not_needed(path, kind):
    content = demos(3, rewards=rows(STEPS, 1)[:, 0])
    if kind == "none in one":
        del content["demo_2"]["rewards"]
    else:
        content["demo_2"]["rewards"] = {
            "short": rows(STEPS - 1, 1)[:, 0],
            "nan": np.array([0, np.nan, 0, 0, 1]),
            "text": np.array([b"a"] * STEPS),
        }[kind]
    _, episodes, findings = read_all(write(path, content))
    assert [episode.rewards for episode in episodes] == [None] * 3
    assert "1 of 3 demonstrations cannot be used" in only(findings, "rewards").message
    assert only(findings, "rewards").severity == "warning"


def test_no_rewards_at_all(path):
    assert only(read_all(write(path, demos()))[2], "rewards").severity == "note"


def test_states_that_do_not_fit_are_left_out(path):
    content = demos(3, states=numbers(STEPS, 2).astype(np.float64))
    content["demo_1"]["states"] = numbers(STEPS - 1, 2)
    content["demo_2"]["states"] = numbers(STEPS + 1, 2)
    _, episodes, findings = read_all(write(path, content))
    np.testing.assert_array_equal(episodes[0].initial_state, [0.0, 1.0])
    assert episodes[1].initial_state is None
    np.testing.assert_array_equal(episodes[2].initial_state, [0.0, 1.0])
    assert "demo_1" in only(findings, "left-out", "states of 1").message


def test_max_steps(path):
    write(path, demos())
    assert read_all(path)[0].env.max_steps == STEPS
    assert read_all(path, max_steps=70)[0].env.max_steps == 70


def test_options_without_a_use_are_refused(path):
    write(path, demos())
    for options in ({"terminals": "each"}, {"lengths_key": "x"}, {"episode_ends": "x"}):
        with pytest.raises(DataError, match="has nothing that it applies to"):
            read_all(path, **options)


WRITER = """
import sys, h5py
with h5py.File(sys.argv[1], "a", locking=True) as file:
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_a_recorder_has_locked_is_read(path):
    write(path, demos())
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as recorder:
        assert recorder.stdout.readline() == "open\n"
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r", locking=True)
        _, episodes, _ = read_all(path)
        recorder.communicate()
    np.testing.assert_array_equal(episodes[2].actions, rows(STEPS, 3, seed=2))


def test_groups_that_contain_each_other_end(path):
    write(path, demos(1))
    with h5py.File(path, "a") as file:
        for name in "abcdefgh":
            file[f"data/demo_0/obs/{name}"] = file["data/demo_0"]
        file["data/demo_0/obs/linked"] = h5py.SoftLink("/data/demo_0/obs/state")
    spec, (episode,), _ = read_all(path)
    assert set(spec.network_keys) == {"state", "linked"}
    np.testing.assert_array_equal(episode.observations["linked"], rows(STEPS, 4, seed=100))
