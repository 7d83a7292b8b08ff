"""LeRobot datasets of versions 2.1 and 3.0: their numbers, and which columns are taken."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from lerobot_maker import (
    ACTION,
    STATE,
    TASKS,
    change_info,
    check_equal,
    findings,
    make_episodes,
    opened,
    read_all,
    write_table,
    write_v2,
    write_v3,
)

sys.path.pop(0)

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError, MissingExtraError, install_extra
from lwdctl.data.reader import open_source, recognize
from lwdctl.data.readers.lerobot_files import DataFiles

# Good datasets


def test_both_versions_hold_the_same_episodes(write, episodes):
    root = write(episodes)
    read, source = read_all(root)
    check_equal(read, episodes)
    assert [item.source for item in read] == ["episode_0", "episode_1", "episode_2", "episode_3"]
    assert [item.task for item in read] == [*TASKS, *TASKS]
    spec = source.spec
    assert spec.env.tasks == TASKS
    assert (spec.action.size, spec.action.control_rate, spec.action.semantics) == (
        2,
        10,
        "absolute",
    )
    assert (spec.action.low, spec.action.high, spec.action.limits) == ((), (), "")
    assert spec.action.gripper == (1,)
    assert [item.success for item in read] == [None] * 4
    assert all(item.rewards is None for item in read)
    assert {item.check for item in source.findings} == {"semantics"}


def test_a_directory_is_recognized_by_its_metadata(write, episodes, tmp_path):
    found = recognize(write(episodes))
    assert found.format == "lerobot"
    assert "meta/info.json" in found.reason
    other = tmp_path / "other"
    (other / "meta").mkdir(parents=True)
    (other / "meta/info.json").write_text('{"name": "not a dataset of robots"}')
    assert recognize(other).format == ""


@pytest.mark.parametrize("rows", [None, 4, 1])
def test_rows_are_found_in_any_row_groups(tmp_path, episodes, rows):
    options = {"row_group_size": rows} if rows else {}
    root = write_v3(tmp_path / "set", [episodes], options=options)
    check_equal(read_all(root)[0], episodes)


@pytest.mark.parametrize("rows", [None, 20])
def test_steps_that_float32_rounds_away_are_said(tmp_path, rows):
    episodes = make_episodes((40, 40, 40))
    for number, item in enumerate(episodes):  # episodes begin far from each other
        place = 4198765.2 + 1000 * number + np.arange(40)[:, None] * [0.015, 1.5, 1.5]
        item[STATE] = place.tolist()
    options = {"row_group_size": rows} if rows else {}
    root = write_v3(tmp_path / "set", [episodes], types={STATE: pa.list_(pa.float64())},
                    options=options)  # fmt: skip
    _, source = read_all(root)
    (found,) = [item for item in source.findings if item.check == "rounded"]
    assert (found.severity, found.values["components"]) == ("warning", [0])
    assert found.where == f"{root}: {STATE}"


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float32(), 3),
        pa.large_list(pa.float64()),
        pa.list_(pa.float16()),
    ],
    ids=str,
)
def test_every_type_of_list_of_numbers_is_read(tmp_path, episodes, kind):
    root = write_v3(tmp_path / "set", [episodes], types={STATE: kind})
    read, _ = read_all(root)
    tolerance = 1e-2 if "halffloat" in str(kind) else 0
    np.testing.assert_allclose(
        read[2].observations[STATE], np.float32(episodes[2][STATE]), atol=tolerance
    )


def test_a_row_group_of_many_episodes_is_decoded_once(tmp_path, episodes, monkeypatch):
    decoded = []
    decode = DataFiles._decode

    def counted(self, file, group):
        decoded.append((file, group))
        return decode(self, file, group)

    monkeypatch.setattr(DataFiles, "_decode", counted)
    root = write_v3(tmp_path / "set", [episodes[:2], episodes[2:]])
    with opened(root) as source:
        for index in (3, 0, 2, 1, 3):
            np.testing.assert_array_equal(
                source.read(index).actions, np.float32(episodes[index][ACTION])
            )
    assert sorted(decoded) == [(0, 0), (1, 0)]


def test_scalars_matrices_and_flags_are_observations(write, episodes):
    rng = np.random.default_rng(1)
    for item in episodes:
        length = len(item[ACTION])
        item["observation.force"] = rng.normal(size=length).astype(np.float32).tolist()
        item["observation.pose"] = rng.normal(size=(length, 2, 3)).astype(np.float32).tolist()
        item["observation.contact"] = [bool(row % 2) for row in range(length)]
    shape = {"observation.pose": {"dtype": "float32", "shape": [2, 3], "names": None}}
    read, source = read_all(write(episodes, **shape))
    assert {item.name: item.size for item in source.spec.observations} == {
        STATE: 3, "observation.force": 1, "observation.pose": 6, "observation.contact": 1,
    }  # fmt: skip
    found, item = read[2].observations, episodes[2]
    np.testing.assert_array_equal(
        found["observation.force"][:, 0], np.float32(item["observation.force"])
    )
    np.testing.assert_array_equal(
        found["observation.pose"], np.float32(item["observation.pose"]).reshape(-1, 6)
    )
    assert found["observation.contact"][:, 0].tolist() == [0, 1] * 6


def test_what_is_left_out_is_listed_with_the_reason(write, episodes):
    for item in episodes:
        length = len(item[ACTION])
        item["observation.images.top"] = [{"bytes": b"not an image", "path": "x.png"}] * length
        item["note"] = ["fine"] * length
        item["robot.battery"] = [1.0] * length
    more = {
        "observation.images.top": {"dtype": "image", "shape": [4, 4, 3], "names": None},
        "observation.images.wrist": {"dtype": "video", "shape": [4, 4, 3], "names": None},
    }
    read, source = read_all(write(episodes, **more))
    check_equal(read, episodes)
    assert [item.name for item in source.spec.observations] == [STATE]
    (found,) = findings(source, "left-out")
    assert found.severity == "note"
    assert "--observation-keys" in found.hint
    for text in (
        "observation.images.top (images are not read)",
        "observation.images.wrist (videos are not read)",
        "note (holds string, not vectors)",
        "robot.battery (not in the default choice)",
    ):
        assert text in found.message


def test_a_damaged_image_column_does_no_harm(tmp_path, episodes):
    for item in episodes:
        item["observation.images.top"] = [
            {"bytes": b"unique" * 50, "path": ""} for _ in item[ACTION]
        ]
    root = write_v3(
        tmp_path / "set", [episodes], options={"compression": "none", "use_dictionary": False}
    )
    file = root / "data/chunk-000/file-000.parquet"
    content = file.read_bytes()
    at = content.index(b"unique")
    file.write_bytes(content[: at - 4] + b"\xff" * 40 + content[at + 36 :])
    check_equal(read_all(root)[0], episodes)
    with pytest.raises((OSError, ValueError, pa.ArrowException)):
        assert pq.read_table(file).num_rows < 0


def test_other_columns_are_observations_where_none_is_called_one(tmp_path, episodes):
    """As in the datasets of openpi: state, actions."""
    renamed = [
        {
            **{key: values for key, values in item.items() if key not in (STATE, ACTION)},
            "state": item[STATE],
            "actions": item[ACTION],
        }
        for item in episodes
    ]
    for item in renamed:
        item[ACTION] = item["actions"]  # for the maker's lengths
    root = write_v2(tmp_path / "set", renamed)
    for file in root.glob("data/*/*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns([ACTION]), file)
    read, source = read_all(root)
    assert [item.name for item in source.spec.observations] == ["state"]
    np.testing.assert_array_equal(read[2].actions, np.float32(episodes[2][ACTION]))
    np.testing.assert_array_equal(read[2].observations["state"], np.float32(episodes[2][STATE]))


# Rewards, success, labels, tasks, splits


def test_rewards_and_success(write, episodes):
    for number, item in enumerate(episodes):
        length = len(item[ACTION])
        item["next.reward"] = [0.5 * row for row in range(length)]
        item["next.success"] = [number == 2 and row == length - 1 for row in range(length)]
    read, source = read_all(write(episodes))
    assert [item.success for item in read] == [False, False, True, False]
    np.testing.assert_array_equal(read[2].rewards, 0.5 * np.arange(12))
    assert not findings(source, "left-out")


@pytest.mark.parametrize("bad", [None, float("nan")])
def test_rewards_that_are_missing_somewhere_are_left_out(write, episodes, bad):
    for item in episodes:
        item["next.reward"] = [1.0] * len(item[ACTION])
    episodes[2]["next.reward"][4] = bad
    read, source = read_all(write(episodes))
    assert all(item.rewards is None for item in read)
    assert "1 rows have none" in findings(source, "left-out", "next.reward")[0].message


@pytest.mark.parametrize(
    ("ends", "success"),
    [
        ([True, False, True, True], [True, False, True, True]),
        ([True] * 4, [None] * 4),
        ([False] * 4, [None] * 4),
    ],
)
def test_done_is_success_only_where_some_episodes_have_it(write, episodes, ends, success):
    for item, end in zip(episodes, ends, strict=True):
        item["next.done"] = [False] * (len(item[ACTION]) - 1) + [end]
    read, source = read_all(write(episodes))
    assert [item.success for item in read] == success
    assert findings(source, "success", "next.done")


def test_success_of_the_metadata(write, episodes):
    facts = [{"success": value} for value in (True, False, True, False)]
    read, _ = read_all(write(episodes, facts=facts))
    assert [item.success for item in read] == [True, False, True, False]


def test_labels_and_tasks_from_columns_and_metadata(write, episodes):
    for number, item in enumerate(episodes):
        length = len(item[ACTION])
        item["subtask"] = ["grasp" if number < 2 else "lift"] * length
        item["operator"] = [number] * length
        item["grid"] = [[[number, 1.5], [2.0, 3.0]]] * length
    facts = [{"quality": text} for text in ("good", "poor", "good", "good")]
    root = write(episodes, facts=facts)
    assert [e.label for e in read_all(root, label_from="quality")[0]] == [
        "good", "poor", "good", "good",
    ]  # fmt: skip
    assert [e.label for e in read_all(root, label_from="operator")[0]] == ["0", "1", "2", "3"]
    assert read_all(root, label_from="operator", label="")[1].spec.labels == ()
    assert read_all(root, label_from="grid")[0][1].label == "[1.0, 1.5], [2.0, 3.0]"
    assert [e.label for e in read_all(root, label_from="task")[0]] == [*TASKS, *TASKS]
    read, source = read_all(root, task_from="subtask")
    assert [e.task for e in read] == ["grasp", "grasp", "lift", "lift"]
    assert source.spec.env.tasks == ("grasp", "lift")
    assert [e.task for e in read_all(root, task_from="task_index")[0]] == ["0", "1", "0", "1"]
    with pytest.raises(DataError, match="--label-from qualty") as caught:
        opened(root, label_from="qualty")
    assert "'quality'" in caught.value.hint


def test_texts_of_another_table(tmp_path, episodes):
    for number, item in enumerate(episodes):
        item["subtask_index"] = [number % 2] * len(item[ACTION])
    root = write_v3(tmp_path / "set", [episodes])
    write_table(
        root / "meta/subtasks.parquet", {"subtask_index": [0, 1], "subtask": ["grasp", "lift"]}
    )
    assert [e.label for e in read_all(root, label_from="subtask")[0]] == ["grasp", "lift"] * 2


def test_a_task_that_changes_within_an_episode_is_noticed(write, episodes):
    episodes[2]["task_index"] = [0] * 6 + [1] * 6
    read, source = read_all(write(episodes))
    assert read[2].task == TASKS[0]
    (found,) = findings(source, "adjusted", "the task changes")
    assert "episode 2" in found.message
    assert "--task-from" in found.hint


def test_an_environment_names_the_task(write, episodes):
    read, source = read_all(write(episodes), env="pusht/push")
    assert {item.task for item in read} == {"push"}
    assert (source.spec.env.adapter, source.spec.env.tasks) == ("pusht", ("push",))


def test_an_environment_gives_limits_and_step_limit(write, episodes):
    _, source = read_all(write(episodes), env="pusht/push")
    action = source.spec.action
    assert (action.low, action.high, action.units) == ((0, 0), (512, 512), "pixels")
    assert (action.control_rate, action.gripper, source.spec.env.max_steps) == (10, (1,), 300)
    assert not findings(source, "semantics")
    with pytest.raises(DataError, match="actions have 2 components, 'metaworld/reach' takes 4"):
        opened(write(episodes), env="metaworld/reach")
    with pytest.raises(DataError, match="cannot be converted") as caught:
        opened(write(episodes), actions="absolute")
    assert "--actions recorded-absolute" in caught.value.hint


def test_a_validation_split_is_kept_and_chosen(write, episodes):
    root = write(episodes)
    change_info(root, splits={"train": "0:3", "val": "3:4"})
    read, _ = read_all(root)
    assert [item.split for item in read] == ["train"] * 3 + ["validation"]
    read, _ = read_all(root, filter_key="train")
    check_equal(read, episodes[:3])
    with pytest.raises(DataError, match="no subset 'test'"):
        opened(root, filter_key="test")


# Choosing


def test_what_says_something_about_a_step_is_no_observation(write, episodes):
    renamed = [
        {**{key: values for key, values in item.items() if key != STATE}, "state": item[STATE],
         "reward": [1.0] * len(item[ACTION]), "is_terminal": [False] * len(item[ACTION])}
        for item in episodes
    ]  # fmt: skip
    _, source = read_all(write(renamed))
    assert [item.name for item in source.spec.observations] == ["state"]
    left_out = findings(source, "left-out")[0].message
    assert "reward, is_terminal (not observed at its step)" in left_out


def test_keys_are_chosen_and_dropped(write, episodes):
    for item in episodes:
        item["observation.extra"] = [[1.0, 2.0]] * len(item[ACTION])
        item["command"] = [[3.0, 4.0, 5.0]] * len(item[ACTION])
    root = write(episodes)
    _, source = read_all(root, drop=("observation.extra",))
    assert [item.name for item in source.spec.observations] == [STATE]
    assert "observation.extra (--drop)" in findings(source, "left-out")[0].message
    read, source = read_all(root, observation_keys=("observation.extra", "command"))
    assert [(item.name, item.network) for item in source.spec.observations] == [
        ("observation.extra", True), ("command", False),
    ]  # fmt: skip
    np.testing.assert_array_equal(read[1].observations["command"], [[3, 4, 5]])
    read, source = read_all(root, action_key="command")
    assert source.spec.action.size == 3
    np.testing.assert_array_equal(read[1].actions, [[3, 4, 5]])
    with pytest.raises(DataError, match=r"--drop: no observation 'observation\.exta'") as caught:
        opened(root, drop=("observation.exta",))
    assert "'observation.extra'" in caught.value.hint
    with pytest.raises(DataError, match="comand: is missing") as caught:
        opened(root, action_key="comand")
    assert "'command'" in caught.value.hint


@pytest.mark.parametrize("name", ["terminals_key", "lengths_key", "episode_ends"])
def test_options_of_other_formats_are_refused(write, episodes, name):
    with pytest.raises(DataError, match=f"--{name.replace('_', '-')}"):
        opened(write(episodes), **{name: "x"})


def test_discrete_actions_are_refused_and_the_hint_works(write, episodes):
    for item in episodes:
        item["goal"] = item[ACTION]
        item[ACTION] = [1] * len(item[ACTION])
    root = write(episodes)
    with pytest.raises(DataError, match="discrete actions") as caught:
        opened(root)
    assert "--action-key" in caught.value.hint
    read, _ = read_all(root, action_key="goal")
    np.testing.assert_array_equal(read[2].actions, np.float32(episodes[2]["goal"]))


def test_semantics_are_declared_or_named_by_components(write, episodes):
    root = write(episodes)
    _, source = read_all(root)
    (found,) = findings(source, "semantics")
    assert (source.spec.action.semantics, found.severity) == ("absolute", "warning")
    _, source = read_all(root, actions="delta")
    assert source.spec.action.semantics == "delta"
    assert not findings(source, "semantics")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[ACTION]["names"] = ["delta_x", "gripper"]
    change_info(root, features=features)
    _, source = read_all(root)
    assert (source.spec.action.semantics, source.spec.action.gripper) == ("delta", (1,))
    _, source = read_all(root, actions="recorded-absolute")
    assert source.spec.action.semantics == "absolute"


# The command line


def test_pyarrow_that_is_not_installed_names_its_extra(write, episodes, monkeypatch):
    root = write(episodes)
    for name in ("readers.lerobot_files", "readers.lerobot_features", "files.parquet_files"):
        monkeypatch.delitem(sys.modules, f"lwdctl.data.{name}", raising=False)
        monkeypatch.delattr(f"lwdctl.data.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert recognize(root).format == "lerobot"
    with pytest.raises(MissingExtraError) as caught:
        opened(root)
    assert caught.value.hint == install_extra("parquet")


def test_a_name_of_the_hub_leads_to_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data_format in ("lerobot", None):
        with pytest.raises(DataError, match="no such file or directory") as caught:
            open_source(data_format, (Path("lerobot/pusht"),), IngestConfig())
        assert caught.value.hint.endswith("lwdctl download lerobot lerobot/pusht")
    with pytest.raises(DataError) as caught:
        open_source(None, (Path("data/lift.hdf5"),), IngestConfig())
    assert "download" not in caught.value.hint


def test_ingest_recognizes_a_directory(write, episodes, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    root = write(episodes)
    assert main(["ingest", str(root), "--name", "toy", "-q"]) == 0
    capfd.readouterr()
    store = SnippetStore.open(Workspace(tmp_path / "runs").resolve("snippets", "toy").path)
    assert store.spec.source_format == "lerobot"
    assert store.spec.env.tasks == TASKS
    number = store.episodes.source.index("episode_2")
    start = int(store.episodes.start[number])
    np.testing.assert_array_equal(
        store.read("action", start, start + 12), np.float32(episodes[2][ACTION])
    )


def test_several_datasets_are_one_source(tmp_path):
    one, other = make_episodes((3, 4), seed=1), make_episodes((2,), seed=2)
    first = write_v2(tmp_path / "a", one)
    second = write_v3(tmp_path / "b", [other])
    with open_source("lerobot", (first, second), IngestConfig()) as source:
        assert [item.source for item in source.episodes] == [
            "a:episode_0", "a:episode_1", "b:episode_0",
        ]  # fmt: skip
        np.testing.assert_array_equal(source.read(2).actions, np.float32(other[0][ACTION]))
