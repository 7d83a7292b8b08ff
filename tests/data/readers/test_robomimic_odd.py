"""Files of robomimic's layout whose arrays, masks or attributes do not all fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import h5py
import numpy as np
import pytest

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.ingest import assign_splits
from lwdctl.data.reader import open_source, recognize
from lwdctl.data.readers.robomimic_masks import Masks

sys.path.insert(0, str(Path(__file__).parents[1]))
from robomimic_maker import STEPS, demo, demos, follow, numbers, only, read_all, rows, write

sys.path.pop(0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.hdf5"


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


def test_what_becomes_of_a_last_observation_is_said_once(path):
    longer, usual = {"obs/state": rows(STEPS + 1, 4)}, {"obs/eef": rows(STEPS, 2)}
    _, _, findings = read_all(write(path, {**demos(3), "demo_0": demo(), "demo_1": demo(**longer)}))
    found = only(findings, "adjusted", "one row more than the actions")
    assert (found.severity, found.values) == ("note", {"count": 1, "first": ["demo_1"]})
    assert "stored as the observation after the last action" in found.message
    _, episodes, findings = read_all(write(path, demos(20, **longer, **usual)))
    assert episodes[0].final_observation is None
    found = only(findings, "left-out", "one row more than the actions")
    assert found.values["count"] == 20
    assert "that row is left out" in found.message


def test_observations_that_have_too_many_rows_say_what_would_fit(path):
    write(path, demos(2, **{"obs/state": rows(STEPS + 5, 4)}))
    with pytest.raises(DataError, match="has 10 rows for 5 actions") as caught:
        read_all(path)
    assert "one row per action, or one more" in caught.value.hint


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


def test_an_array_beside_obs_does_not_hide_the_observation_of_its_name(path):
    same = {"state": numbers(STEPS, 3), "obs/image": np.zeros((STEPS, 8, 8, 3), np.uint8)}
    write(path, demos(**same, image=numbers(STEPS, 2), **{"obs/pos": numbers(STEPS, 2)}))
    spec, episodes, findings = read_all(path)
    assert {item.name: item.size for item in spec.observations} == {"state": 4, "pos": 2}
    np.testing.assert_array_equal(episodes[0].observations["state"], rows(STEPS, 4, seed=100))
    assert only(findings, "left-out", "2 arrays are left out").values["reasons"] == dict.fromkeys(
        ("image", "state"), "obs holds an array of this name"
    )


def test_steps_that_float32_rounds_away_are_said_once(path):
    coarse = 4198765.2 + 0.015 * np.arange(STEPS)[:, None]
    write(path, demos(3, **{"obs/utm": coarse}))
    found = only(read_all(path)[2], "rounded")
    assert (found.severity, found.values["remaining"]) == ("warning", 2)
    assert found.where.endswith("data/demo_0/obs/utm")


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


def test_masks_without_a_demonstration_of_the_file(path):
    write(path, demos(), masks={"gone": ["demo_7", "demo_8"], "empty": [], "good": ["data/demo_2"]})
    _, episodes, _ = read_all(path, filter_key="good")
    assert [episode.source for episode in episodes] == ["demo_2"]
    with pytest.raises(DataError, match=r"mask/gone: names none .*others: demo_7, demo_8\)"):
        read_all(path, filter_key="gone")
    with pytest.raises(DataError, match=r"mask/empty: names none .* \(it is empty\)"):
        read_all(path, filter_key="empty")


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


@pytest.mark.parametrize("kind", ["short", "nan", "none in one", "text", "never written"])
def test_rewards_that_cannot_be_used_are_not_needed(path, kind):
    content = demos(3, rewards=rows(STEPS, 1)[:, 0])
    if kind == "none in one":
        del content["demo_2"]["rewards"]
    else:
        content["demo_2"]["rewards"] = {
            "short": rows(STEPS - 1, 1)[:, 0],
            "nan": np.array([0, np.nan, 0, 0, 1]),
            "text": np.array([b"a"] * STEPS),
            "never written": np.zeros(STEPS),
        }[kind]
    write(path, content)
    if kind == "never written":
        with h5py.File(path, "a") as file:
            del file["data/demo_2/rewards"]
            file.create_dataset("data/demo_2/rewards", STEPS, np.float32)
    _, episodes, findings = read_all(path)
    assert [episode.rewards for episode in episodes] == [None] * 3
    assert "1 of 3 demonstrations cannot be used" in only(findings, "rewards").message
    assert only(findings, "rewards").severity == "warning"


def test_success_is_told_by_the_demonstrations_own_rewards(path):
    content = demos(3, rewards=np.eye(STEPS)[-1])
    content["demo_1"]["rewards"] = np.zeros(STEPS)
    content["demo_2"]["rewards"] = np.full(STEPS, np.nan)
    write(path, content, env_args={"env_name": "Lift", "type": 1, "env_kwargs": {}})
    _, episodes, _ = read_all(path)
    assert [episode.rewards for episode in episodes] == [None] * 3
    assert [episode.success for episode in episodes] == [True, False, None]
    with open_source("robomimic", (path,), IngestConfig()) as source:
        assert [source.succeeded(index) for index in range(3)] == [True, False, None]


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
