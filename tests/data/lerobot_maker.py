"""Small LeRobot datasets of versions 2.1 and 3.0, written with pyarrow, and how tests read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lwdctl.configs import IngestConfig
from lwdctl.data.reader import open_source

V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V3 = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
TASKS = ("put the cup on the plate", "open the drawer")
STATE, ACTION = "observation.state", "action"
LENGTHS = (5, 1, 12, 3)


def make_episodes(lengths=LENGTHS, seed=0):
    """Return the rows of episodes: column to list."""
    rng = np.random.default_rng(seed)
    return [
        {
            STATE: rng.normal(size=(length, 3)).astype(np.float32).tolist(),
            ACTION: rng.normal(size=(length, 2)).astype(np.float32).tolist(),
            "timestamp": (np.arange(length) / 10).astype(np.float32).tolist(),
            "frame_index": list(range(length)),
            "episode_index": [index] * length,
            "index": list(range(length)),
            "task_index": [index % 2] * length,
        }
        for index, length in enumerate(lengths)
    ]


def joined(episodes):
    return {key: [value for item in episodes for value in item[key]] for key in episodes[0]}


def table_of(columns, types=None):
    types = types or {}
    return pa.table({key: pa.array(values, types.get(key)) for key, values in columns.items()})


def write_table(path, columns, types=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table_of(columns, types), path, **options)


def info_of(version, episodes, **more):
    features = {
        STATE: {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
        ACTION: {"dtype": "float32", "shape": [2], "names": {"motors": ["arm", "gripper"]}},
    }
    for key in episodes[0]:
        features.setdefault(key, {"dtype": "float32", "shape": [1], "names": None})
    return {
        "codebase_version": version,
        "robot_type": "toy",
        "total_episodes": len(episodes),
        "total_frames": sum(len(item[ACTION]) for item in episodes),
        "total_tasks": 2,
        "fps": 10,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": V2 if version.startswith("v2") else V3,
        "features": {**features, **more},
    }


def write_info(root: Path, info):
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info))


def change_info(root: Path, **values):
    info = json.loads((root / "meta/info.json").read_text())
    write_info(root, {**info, **values})


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_v2(root: Path, episodes, facts=None, types=None, **more):
    """Write a dataset of version 2.1; `facts` are added to the episodes' metadata."""
    write_info(root, info_of("v2.1", episodes, **more))
    write_lines(
        root / "meta/tasks.jsonl",
        [{"task_index": index, "task": text} for index, text in enumerate(TASKS)],
    )
    rows = []
    for number, item in enumerate(episodes):
        index = item["episode_index"][0]
        place = V2.format(episode_chunk=0, episode_index=number)
        write_table(root / place, item, types)
        rows.append({
            "episode_index": index,
            "tasks": sorted({TASKS[task] for task in item["task_index"]}),
            "length": len(item[ACTION]),
            **(facts[number] if facts else {}),
        })  # fmt: skip
    write_lines(root / "meta/episodes.jsonl", rows)
    return root


def write_v3(root: Path, files, facts=None, types=None, options=None, **more):
    """Write a dataset of version 3.0; `files` holds lists of episodes, one per data file."""
    episodes = [item for part in files for item in part]
    write_info(root, info_of("v3.0", episodes, **more))
    # pandas calls an index without a name like this.
    write_table(
        root / "meta/tasks.parquet",
        {"task_index": [0, 1], "__index_level_0__": list(TASKS)},
    )
    rows, start = [], 0
    for number, part in enumerate(files):
        place = V3.format(chunk_index=0, file_index=number)
        write_table(root / place, joined(part), types, **(options or {}))
        for item in part:
            length = len(item[ACTION])
            rows.append({
                "episode_index": item["episode_index"][0],
                "tasks": sorted({TASKS[task] for task in item["task_index"]}),
                "length": length,
                "data/chunk_index": 0,
                "data/file_index": number,
                "dataset_from_index": start,
                "dataset_to_index": start + length,
                "stats/action/min": [0.0, 0.0],
            })  # fmt: skip
            start += length
    for row, more_facts in zip(rows, facts or [{}] * len(rows), strict=True):
        row.update(more_facts)
    write_table(
        root / "meta/episodes/chunk-000/file-000.parquet",
        {key: [row[key] for row in rows] for key in rows[0]},
    )
    return root


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
