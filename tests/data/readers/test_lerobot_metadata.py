"""LeRobot datasets whose metadata or numbers of frames contradict their rows."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from lerobot_maker import (
    ACTION,
    LENGTHS,
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


def test_facts_about_an_index_with_two_recordings_are_of_neither(write):
    episodes = make_episodes(LENGTHS)
    episodes[3]["episode_index"] = [0] * LENGTHS[3]
    facts = [{"success": value} for value in (True, False, True, True)]
    read, _ = read_all(write(episodes, facts=facts))
    assert [item.success for item in read] == [None, None, False, True]


def test_many_rows_without_numbers_before_numbered_ones_are_all_kept(tmp_path):
    (episode,) = make_episodes((120,))
    episode["frame_index"] = [0] * 105 + list(range(10)) + [0] * 5
    read, source = read_all(write_v3(tmp_path / "set", [[episode]]))
    check_equal(read, [episode])
    assert findings(source, "adjusted", "order of the files")


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


# Statistics


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
