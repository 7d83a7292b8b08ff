"""LeRobot datasets of versions 2.1 and 3.0: their numbers, and what is noticed about them."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lerobot_maker import (
    ACTION,
    STATE,
    TASKS,
    change_info,
    make_episodes,
    write_table,
    write_v2,
    write_v3,
)

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError, MissingExtraError
from lwdctl.data.checks import NonFiniteError
from lwdctl.data.lerobot_files import DataFiles
from lwdctl.data.reader import open_source, recognize

LENGTHS = (5, 1, 12, 3)


@pytest.fixture
def episodes():
    return make_episodes(LENGTHS)


@pytest.fixture(params=["v2.1", "v3.0"])
def write(request, tmp_path):
    """Return a writer of a dataset of either version."""

    def make(episodes, **more):
        root = tmp_path / "set"
        if request.param == "v2.1":
            return write_v2(root, episodes, **more)
        return write_v3(root, [episodes[:2], episodes[2:]], **more)

    return make


def opened(root, **options):
    return open_source("lerobot", (root,), IngestConfig(**options))


def read_all(root, **options):
    with opened(root, **options) as source:
        return [source.read(index) for index in range(len(source.episodes))], source


def check_equal(read, episodes):
    assert len(read) == len(episodes)
    for found, item in zip(read, episodes, strict=True):
        np.testing.assert_array_equal(found.observations[STATE], np.float32(item[STATE]))
        np.testing.assert_array_equal(found.actions, np.float32(item[ACTION]))


def findings(source, check, text=""):
    return [item for item in source.findings if item.check == check and text in item.message]


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
    facts = [{"quality": text} for text in ("good", "poor", "good", "good")]
    root = write(episodes, facts=facts)
    assert [e.label for e in read_all(root, label_from="quality")[0]] == [
        "good", "poor", "good", "good",
    ]  # fmt: skip
    assert [e.label for e in read_all(root, label_from="operator")[0]] == ["0", "1", "2", "3"]
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


# Metadata that contradict the rows


def contradictions(root):
    read, source = read_all(root)
    return read, [item.message for item in findings(source, "metadata")]


def test_totals_that_are_wrong_are_noticed(write, episodes):
    root = write(episodes)
    change_info(root, total_episodes=9, total_frames=20)
    read, (text,) = contradictions(root)
    check_equal(read, episodes)
    assert "total_episodes 9 (rows: 4), total_frames 20 (rows: 21)" in text


def test_lengths_that_are_wrong_are_noticed(write, episodes):
    facts = [{"length": length} for length in (5, 1, 11, 3)]
    read, texts = contradictions(write(episodes, facts=facts))
    check_equal(read, episodes)
    assert any("episode 2 (11 for episode 2, rows: 12)" in text for text in texts)


def test_stale_file_indices_are_noticed(tmp_path, episodes):
    facts = [{}, {}, {"data/file_index": 0}, {}]
    root = write_v3(tmp_path / "set", [episodes[:2], episodes[2:]], facts=facts)
    read, (text,) = contradictions(root)
    check_equal(read, episodes)
    assert "other files for episode 2 (chunk and file (0, 0) for episode 2, rows: (0, 1))" in text


def test_scrambled_row_numbers_are_noticed(tmp_path, episodes):
    facts = [{}, {"dataset_from_index": 18, "dataset_to_index": 19}, {}, {}]
    root = write_v3(tmp_path / "set", [episodes], facts=facts)
    read, (text,) = contradictions(root)
    check_equal(read, episodes)
    assert "dataset_to_index are wrong for episode 1" in text


def test_episodes_without_rows_or_metadata_are_noticed(write, episodes):
    facts = [{}, {}, {"episode_index": 7}, {}]
    read, texts = contradictions(write(episodes, facts=facts))
    check_equal(read, episodes)
    assert any("no row belongs to episode 7" in text for text in texts)
    assert any("do not have episode 2" in text for text in texts)


def test_a_file_that_holds_another_episode_than_its_name_says(tmp_path, episodes):
    root = write_v2(tmp_path / "set", episodes)
    names = [root / f"data/chunk-000/episode_{number:06d}.parquet" for number in (0, 2)]
    content = [name.read_bytes() for name in names]
    names[0].write_bytes(content[1])
    names[1].write_bytes(content[0])
    check_equal(read_all(root)[0], episodes)


def test_files_of_equal_names_in_several_folders_are_all_read(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes[:2], episodes[2:]])
    for place in ("data", "meta/episodes"):
        (root / place / "chunk-001").mkdir(parents=True)
    (root / "data/chunk-000/file-001.parquet").rename(root / "data/chunk-001/file-000.parquet")
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    moved = table.to_pydict()
    moved["data/chunk_index"] = [0, 0, 1, 1]
    moved["data/file_index"] = [0, 0, 0, 0]
    pq.write_table(pa.table(moved).slice(0, 2), file)
    pq.write_table(pa.table(moved).slice(2), root / "meta/episodes/chunk-001/file-000.parquet")
    read, texts = contradictions(root)
    check_equal(read, episodes)
    assert texts == []


def test_missing_and_damaged_metadata_of_episodes_are_no_obstacle(write, episodes):
    root = write(episodes)
    shutil.rmtree(root / "meta/episodes", ignore_errors=True)
    (root / "meta/episodes.jsonl").unlink(missing_ok=True)
    read, texts = contradictions(root)
    check_equal(read, episodes)
    assert texts == ["there are no metadata of the episodes"]
    (root / "meta/episodes.jsonl").write_text("{")
    read, (text,) = contradictions(root)
    check_equal(read, episodes)
    assert "episodes.jsonl: line 1: not valid JSON" in text


def test_tasks_come_from_the_episodes_where_there_is_no_table(write, episodes):
    root = write(episodes)
    for name in ("tasks.jsonl", "tasks.parquet"):
        (root / "meta" / name).unlink(missing_ok=True)
    assert [item.task for item in read_all(root)[0]] == [*TASKS, *TASKS]
    episodes[2]["task_index"] = [0] * 6 + [1] * 6
    root = write(episodes)
    for name in ("tasks.jsonl", "tasks.parquet"):
        (root / "meta" / name).unlink(missing_ok=True)
    read, source = read_all(root)
    assert [item.task for item in read] == [TASKS[0], TASKS[1], "", TASKS[1]]
    assert "no text for the task of episode 2" in findings(source, "metadata")[0].message


def test_a_frame_rate_that_is_not_that_of_the_timestamps_is_noticed(write, episodes):
    root = write(episodes)
    change_info(root, fps=30)
    _, (text,) = contradictions(root)
    assert "30 steps per second, the timestamps 10" in text
    change_info(root, fps="fast")
    _, source = read_all(root)
    assert source.spec.action.control_rate == 0
    assert findings(source, "metadata", "gives no fps")


def test_a_shape_that_is_not_that_of_the_rows_is_noticed(write, episodes):
    root = write(episodes)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[STATE]["shape"] = [7]
    change_info(root, features=features)
    read, (text,) = contradictions(root)
    check_equal(read, episodes)
    assert "declares the shape [7] of observation.state" in text


# The order of rows


def test_rows_out_of_order_are_sorted(tmp_path, episodes):
    columns = {key: [v for item in episodes for v in item[key]] for key in episodes[0]}
    order = np.random.default_rng(0).permutation(sum(LENGTHS)).tolist()
    root = write_v3(tmp_path / "set", [episodes])
    shuffled = {key: [values[row] for row in order] for key, values in columns.items()}
    write_table(root / "data/chunk-000/file-000.parquet", shuffled, row_group_size=8)
    read, source = read_all(root)
    check_equal(read, episodes)
    (found,) = findings(source, "adjusted")
    assert found.severity == "note"
    assert "were sorted" in found.message


def test_missing_frames_are_noticed(write, episodes):
    for values in episodes[2].values():
        del values[4:6]
    read, source = read_all(write(episodes))
    check_equal(read, episodes)
    (found,) = findings(source, "metadata", "missing")
    assert "2 frames are missing inside episode 2" in found.message
    assert found.severity == "warning"


def test_an_episode_that_begins_late_is_noticed(write, episodes):
    for values in episodes[2].values():
        del values[:4]
    read, source = read_all(write(episodes))
    check_equal(read, episodes)
    assert findings(source, "metadata", "does not begin at 0 in episode 2")


def test_repeated_rows_are_left_out(write, episodes):
    right = [{key: list(values) for key, values in item.items()} for item in episodes]
    for values in episodes[2].values():
        values.extend(values[3:6])
    read, source = read_all(write(episodes))
    check_equal(read, right)
    assert "3 rows repeat" in findings(source, "adjusted")[0].message


def test_two_recordings_of_one_number_are_two_episodes(write):
    """As in datasets that were merged without renumbering."""
    episodes = make_episodes(LENGTHS)
    episodes[3]["episode_index"] = [0] * LENGTHS[3]
    read, source = read_all(write(episodes))
    assert [item.source for item in read] == ["episode_0", "episode_0.2", "episode_1", "episode_2"]
    check_equal(read, [episodes[0], episodes[3], episodes[1], episodes[2]])
    assert findings(source, "metadata", "episode_index 0 numbers more than one recording")


def test_a_recording_that_is_there_twice_is_read_once(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes[:2], episodes[2:], episodes[2:3]])
    read, source = read_all(root)
    check_equal(read, episodes)
    (found,) = findings(source, "left-out")
    assert "1 recordings that repeat another one" in found.message
    assert "episode 2" in found.message


@pytest.mark.parametrize("frames", [None, 0])
def test_frames_without_numbers_are_taken_in_order(write, episodes, frames):
    for item in episodes:
        if frames is None:
            del item["frame_index"]
        else:
            item["frame_index"] = [0] * len(item[ACTION])
    read, source = read_all(write(episodes))
    check_equal(read, episodes)
    assert findings(source, "adjusted", "order of the files")


# Files that are not trusted


def test_values_that_are_not_finite_name_file_and_row(write, episodes):
    episodes[2][STATE][7][1] = float("nan")
    root = write(episodes)
    with opened(root) as source, pytest.raises(NonFiniteError) as caught:
        source.read(2)
    # The file of version 2.1 holds one episode, that of version 3.0 two.
    assert "observation.state, row 7: value is nan" in caught.value.message


@pytest.mark.parametrize("where", ["element", "row", "all"])
def test_null_is_no_number(write, episodes, where):
    if where == "element":
        episodes[2][STATE][7][1] = None
    elif where == "row":
        episodes[2][STATE][7] = None
    else:
        episodes[2][STATE] = [None] * 12
    types = {STATE: pa.list_(pa.float32())}
    with opened(write(episodes, types=types)) as source:
        np.testing.assert_array_equal(source.read(3).actions, np.float32(episodes[3][ACTION]))
        with pytest.raises(NonFiniteError, match=r"observation\.state, row"):
            source.read(2)


def message_of(root, **options):
    with pytest.raises(DataError) as caught:
        read_all(root, **options)
    assert "\n" not in caught.value.message
    assert str(root) in caught.value.message
    return caught.value.message


def test_ragged_lists_are_refused(write, episodes):
    episodes[2][STATE][7] = [1.0, 2.0]
    assert "has 2 components, expected 3" in message_of(write(episodes))


def test_files_of_other_sizes_are_refused(tmp_path, episodes):
    episodes[2][STATE] = [[1.0, 2.0]] * 12
    root = write_v2(tmp_path / "set", episodes)
    message = message_of(root)
    assert "episode_000002.parquet: observation.state, row 0: has 2 components" in message


def drop_column(root, name):
    file = max(root.glob("data/*/*.parquet"))
    pq.write_table(pq.read_table(file).drop_columns([name]), file)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: (root / "meta/info.json").unlink(), "info.json: is missing"),
        (lambda root: (root / "meta/info.json").write_text("{"), "info.json: not valid JSON"),
        (lambda root: (root / "meta/info.json").write_text("[" * 10**5), "levels of nesting"),
        (lambda root: (root / "meta/info.json").write_text("[]"), "features: is missing"),
        (lambda root: shutil.rmtree(root / "data"), "holds no parquet files"),
        (lambda root: drop_column(root, STATE), "observation.state: is missing"),
        (lambda root: drop_column(root, "episode_index"), "episode_index: is missing"),
        (lambda root: change_info(root, data_path="../{episode_index}.parquet"), "leads out"),
        (lambda root: change_info(root, data_path="/etc/{episode_index}"), "leads out"),
        (lambda root: change_info(root, data_path="data/{0.__class__}"), "has the field"),
        (lambda root: change_info(root, data_path="data/{"), "no path with fields"),
    ],
)
def test_a_damaged_structure_is_one_line(write, episodes, damage, expected):
    root = write(episodes)
    damage(root)
    assert expected in message_of(root)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("episode_index", [None, 0, 0], "episode_index, row 0: is nan, not a whole number"),
        ("episode_index", ["a", "b", "c"], "holds"),
        ("frame_index", [0.5, 1.0, 2.0], "frame_index, row 0: is 0.5, not a whole number"),
        ("frame_index", [[0, 1], [1, 2], [2, 3]], "has 2 components, expected 1"),
        ("action", ["a", "b", "c"], "action: holds string"),
        ("observation.state", [{"x": 1}] * 3, "observation.state: holds struct"),
    ],
)
def test_columns_of_other_types_are_one_line(tmp_path, episodes, name, values, expected):
    root = write_v2(tmp_path / "set", episodes)
    episodes[3][name] = values
    write_table(root / "data/chunk-000/episode_000003.parquet", episodes[3])
    assert expected in message_of(root)


@pytest.mark.parametrize("place", ["data/chunk-000/file-000.parquet", "data", "meta/info.json"])
def test_links_that_lead_out_are_refused_and_the_hint_works(tmp_path, episodes, place):
    root = write_v3(tmp_path / "set", [episodes])
    outside = tmp_path / "outside"
    (root / place).rename(outside)
    (root / place).symlink_to(outside)
    with pytest.raises(DataError, match="is a link to") as caught:
        read_all(root)
    command, copy = caught.value.hint.split(", and read ")
    subprocess.run(shlex.split(command), check=True)
    check_equal(read_all(Path(copy))[0], episodes)


def test_the_cache_of_the_hub_is_recognized_and_refused_with_what_to_do(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes])
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate([path for path in root.rglob("*") if path.is_file()]):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    with pytest.raises(DataError, match="is a link to") as caught:
        open_source(None, (root,), IngestConfig())
    command, copy = caught.value.hint.split(", and read ")
    subprocess.run(shlex.split(command), check=True)
    check_equal(read_all(Path(copy))[0], episodes)


def test_links_inside_the_directory_are_followed(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes])
    file = root / "data/chunk-000/file-000.parquet"
    file.rename(root / "blob")
    file.symlink_to("../../blob")
    check_equal(read_all(root)[0], episodes)


def test_files_with_other_names_are_left_out_with_a_warning(write, episodes):
    root = write(episodes)
    file = min(root.glob("data/*/*.parquet"))
    shutil.copy(file, file.with_name("copy.parquet"))
    read, source = read_all(root)
    check_equal(read, episodes)
    (found,) = findings(source, "left-out", "copy.parquet")
    assert found.severity == "warning"


def test_the_declared_size_is_bounded_before_anything_is_read(tmp_path, episodes):
    rows = 10**6
    long = {
        STATE: pa.array(np.zeros(3 * rows, np.float32).reshape(rows, 3).tolist()),
        ACTION: pa.array(np.zeros((rows, 2), np.float32).tolist()),
        "frame_index": np.arange(rows),
        "episode_index": np.zeros(rows, np.int64),
    }
    root = write_v3(tmp_path / "set", [episodes])
    file = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pa.table(long), file, compression="zstd")
    assert file.stat().st_size < 6e6
    with pytest.raises(DataError, match="declares") as caught:
        opened(root, max_bytes=10**7)
    assert "--max-bytes" in caught.value.hint


def test_a_pointer_of_git_lfs_is_named(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes])
    (root / "data/chunk-000/file-000.parquet").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    with pytest.raises(DataError, match="Git LFS pointer") as caught:
        opened(root)
    assert "git lfs pull" in caught.value.hint


def test_random_damage_is_a_data_error_or_harmless(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes])
    names = ["data/chunk-000/file-000.parquet", "meta/tasks.parquet", "meta/info.json"]
    rng = np.random.default_rng(5)
    refused = 0
    for name in names:
        intact = (root / name).read_bytes()
        for _ in range(60):
            content = bytearray(intact)
            for position in rng.integers(len(content), size=4):
                content[position] = int(rng.integers(256))
            (root / name).write_bytes(bytes(content))
            try:
                read_all(root)
            except DataError as error:
                refused += 1
                assert str(root) in error.message  # noqa: PT017 - some damage is harmless
                assert "\n" not in error.message  # noqa: PT017
        (root / name).write_bytes(intact)
    assert refused > 60


def test_damage_in_pages_with_checksums_is_always_noticed(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes], types={STATE: pa.list_(pa.float32())}, options={
        "write_page_checksum": True, "compression": "none", "use_dictionary": False,
    })  # fmt: skip
    file = root / "data/chunk-000/file-000.parquet"
    content = bytearray(file.read_bytes())
    value = np.float32(episodes[2][STATE][5][1]).tobytes()
    content[content.index(value) + 3] ^= 1
    file.write_bytes(bytes(content))
    assert "file-000.parquet" in message_of(root)


# The command line


def test_pyarrow_that_is_not_installed_names_its_extra(write, episodes, monkeypatch):
    root = write(episodes)
    for name in ("lerobot_files", "lerobot_features", "parquet_files"):
        monkeypatch.delitem(sys.modules, f"lwdctl.data.{name}", raising=False)
        monkeypatch.delattr(f"lwdctl.data.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert recognize(root).format == "lerobot"
    with pytest.raises(MissingExtraError) as caught:
        opened(root)
    assert caught.value.hint == "pip install 'lwdctl[parquet]'"


def test_a_name_of_the_hub_leads_to_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such directory") as caught:
        opened(Path("lerobot/pusht"))
    assert "lwdctl download lerobot lerobot/pusht" in caught.value.hint


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


@pytest.mark.parametrize("relative", [False, True])
def test_statistics_of_relative_actions_are_noticed(write, episodes, relative):
    root = write(episodes)
    actions = np.concatenate([np.asarray(item[ACTION]) for item in episodes])
    shown = actions / 10 if relative else actions
    statistics = {ACTION: {"min": shown.min(0).tolist(), "max": shown.max(0).tolist()}}
    (root / "meta/stats.json").write_text(json.dumps(statistics))
    with opened(root) as source:
        read = [source.read(index) for index in range(len(source.episodes))]
        found = findings(source, "metadata", "stats.json")
    assert [item.severity for item in found] == ["warning"] * relative
    np.testing.assert_allclose(np.concatenate([item.actions for item in read]), actions, rtol=1e-6)


@pytest.mark.parametrize("text", ["[]", "{", '{"action": {"min": [0]}}', '{"action": 3}'])
def test_statistics_of_another_form_do_no_harm(write, episodes, text):
    root = write(episodes)
    (root / "meta/stats.json").write_text(text)
    with opened(root) as source:
        source.read(0)
        assert not findings(source, "metadata", "stats.json")
