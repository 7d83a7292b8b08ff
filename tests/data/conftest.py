"""Small files of every data format, made from the same twelve episodes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

sys.path.insert(0, str(Path(__file__).parent))
from lerobot_maker import make_episodes, write_v2, write_v3
from limited import COUNTED

sys.path.pop(0)

from lwdctl.core.records import Episode
from lwdctl.data.readers.robomimic_writer import RobomimicWriter

LENGTHS = tuple(range(3, 15))  # twelve, so that "10" sorts before "2" where names are text


@dataclass(frozen=True)
class Sample:
    """A source on disk and where its numbers stand.

    `observation` is the numeric array in which tests plant bad values: its location in the
    HDF5 file, or its path in the zarr store, with the first row of episode 2 in it. `options` are
    what `ingest` needs to read it.
    """

    path: Path
    hdf5: Path | None
    observation: str
    action: str
    first_row: int
    options: dict[str, Any] = field(default_factory=dict)


def _numbers(rows: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)


def robomimic_sample(folder: Path) -> Sample:
    path = folder / "sample_mh.hdf5"
    arguments = {"env_name": "metaworld/reach", "type": "metaworld", "env_version": "3.1.1"}
    with RobomimicWriter(path, arguments) as writer:
        for index, length in enumerate(LENGTHS):
            rows = _numbers(length + 1, 5, index)
            writer.write(
                Episode(
                    source="",
                    observations={"observation": rows[:-1]},
                    actions=_numbers(length, 4, 100 + index).clip(-1, 1),
                    rewards=_numbers(length, 1, 200 + index)[:, 0],
                    final_observation={"observation": rows[-1]},
                    initial_state=np.arange(6, dtype=np.float64) + index,
                    task="reach" if index % 2 else "push",
                    label="fast" if index < 6 else "slow",
                    success=True,
                    seed=index,
                )
            )
    return Sample(path, path, "data/demo_2/obs/observation", "data/demo_2/actions", 0)


def d4rl_sample(folder: Path) -> Sample:
    path = folder / "halfcheetah_medium.hdf5"
    rows = sum(LENGTHS)
    flags = np.zeros((2, rows), dtype=bool)
    for index, end in enumerate(np.cumsum(LENGTHS)):
        flags[index % 2, end - 1] = True
    with h5py.File(path, "w") as file:
        file["observations"] = _numbers(rows, 17, 0)
        file["actions"] = _numbers(rows, 6, 1).clip(-1, 1)
        file["rewards"] = _numbers(rows, 1, 2)[:, 0]
        file["terminals"], file["timeouts"] = flags
        file["infos/qpos"], file["infos/qvel"] = _numbers(rows, 9, 3), _numbers(rows, 9, 4)
    return Sample(path, path, "observations", "actions", sum(LENGTHS[:2]))


def minari_sample(folder: Path) -> Sample:
    data = folder / "expert-v0" / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for index, length in enumerate(LENGTHS):
            group = file.create_group(f"episode_{index}")
            group.attrs.update(id=index, total_steps=length, seed=index)
            group["observations"] = _numbers(length + 1, 5, index)
            group["actions"] = _numbers(length, 2, 100 + index).clip(-2, 2)
            group["rewards"] = _numbers(length, 1, 200 + index)[:, 0].astype(np.float64)
            group["terminations"] = np.zeros(length, dtype=bool)
            group["truncations"] = np.arange(length) == length - 1
    metadata = {
        "data_format": "hdf5",
        "dataset_id": "toy/expert-v0",
        "env_spec": json.dumps({"id": "Toy-v0", "max_episode_steps": 50}),
        "action_space": json.dumps({"type": "Box", "low": [-2.0, -2.0], "high": [2.0, 2.0]}),
    }
    (data / "metadata.json").write_text(json.dumps(metadata))
    path = data / "main_data.hdf5"
    return Sample(folder / "expert-v0", path, "episode_2/observations", "episode_2/actions", 0)


def pusht_sample(folder: Path) -> Sample:
    path = folder / "sample_replay.zarr"
    rows = sum(LENGTHS)
    group = zarr.open_group(path, mode="w", zarr_format=2)
    write_zarr(group, "data/state", 256 + 50 * _numbers(rows, 5, 0))
    write_zarr(group, "data/action", 256 + 50 * _numbers(rows, 2, 1))
    write_zarr(group, "data/keypoint", _numbers(rows, 18, 2).reshape(rows, 9, 2))
    write_zarr(group, "meta/episode_ends", np.cumsum(LENGTHS))
    return Sample(path, None, "data/state", "data/action", sum(LENGTHS[:2]))


def keyed_arrays() -> dict[str, np.ndarray]:
    rows = sum(LENGTHS)
    return {
        "data/obs": _numbers(rows, 17, 0),
        "data/act": _numbers(rows, 6, 1).clip(-1, 1),
        "data/rewards": _numbers(rows, 1, 2)[:, 0],
        "meta/ends": np.cumsum(LENGTHS),
    }


def keyed_sample(path: Path) -> Sample:
    options = {
        "observation_keys": ("data/obs",), "action_key": "data/act", "episode_ends": "meta/ends",
        "env": "mujoco/HalfCheetah-v4",
    }  # fmt: skip
    hdf5 = path if path.suffix == ".hdf5" else None
    return Sample(path, hdf5, "data/obs", "data/act", sum(LENGTHS[:2]), options)


def hdf5_sample(folder: Path) -> Sample:
    path = folder / "sample.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in keyed_arrays().items():
            file[key] = values
    return keyed_sample(path)


def zarr_sample(folder: Path) -> Sample:
    path = folder / "sample.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=3)
    for key, values in keyed_arrays().items():
        write_zarr(group, key, values)
    return keyed_sample(path)


def npz_sample(folder: Path) -> Sample:
    path = folder / "sample.npz"
    np.savez(path, **keyed_arrays())
    return keyed_sample(path)


def dppo_sample(folder: Path) -> Sample:
    path = folder / "train.npz"
    rows = sum(LENGTHS)
    arrays = {
        "states": _numbers(rows, 17, 0),
        "actions": _numbers(rows, 6, 1).clip(-1, 1),
        "traj_lengths": np.array(LENGTHS),
    }
    np.savez(path, **arrays)
    return Sample(
        path, None, "states", "actions", sum(LENGTHS[:2]), {"env": "mujoco/HalfCheetah-v4"}
    )


def maniskill_sample(folder: Path) -> Sample:
    path = folder / "trajectory.state.pd_ee_delta_pose.physx_cpu.h5"
    with h5py.File(path, "w") as file:
        for index, length in enumerate(LENGTHS):
            group = file.create_group(f"traj_{index}")
            group["obs"] = _numbers(length + 1, 5, index)
            group["actions"] = np.tanh(_numbers(length, 7, 100 + index))
            group["terminated"] = group["truncated"] = np.zeros(length, bool)
            group["success"] = np.arange(length) == length - 1
            group["env_states/actors/cube"] = _numbers(length + 1, 13, 200 + index)
    episodes = [
        {
            "episode_id": index, "episode_seed": index + 100, "control_mode": "pd_ee_delta_pose",
            "elapsed_steps": length, "reset_kwargs": {}, "success": True,
        }
        for index, length in enumerate(LENGTHS)
    ]  # fmt: skip
    info = {
        "env_id": "PickCube-v1",
        "max_episode_steps": 50,
        "env_kwargs": {"obs_mode": "state", "control_mode": "pd_ee_delta_pose"},
    }
    content = {"env_info": info, "episodes": episodes, "source_type": "motionplanning"}
    path.with_suffix(".json").write_text(json.dumps(content))
    return Sample(path, path, "traj_2/obs", "traj_2/actions", 0)


def ogbench_sample(folder: Path) -> Sample:
    path = folder / "antmaze-large-navigate-v0.npz"
    rows = sum(LENGTHS) + len(LENGTHS)
    ends = np.cumsum([length + 1 for length in LENGTHS])
    np.savez_compressed(
        path,
        observations=_numbers(rows, 29, 0),
        actions=np.clip(_numbers(rows, 8, 1), -1, 1),
        terminals=np.isin(np.arange(rows), ends - 1),
        qpos=_numbers(rows, 15, 2),
        qvel=_numbers(rows, 14, 3),
    )
    return Sample(path, None, "observations", "actions", int(ends[1]))


def write_zarr(group: zarr.Group, key: str, values: np.ndarray) -> None:
    """Replace an array of a version 2 store."""
    group.create_array(
        key, data=np.ascontiguousarray(values), chunks=(16, *values.shape[1:]), overwrite=True
    )


def lerobot_sample(folder: Path) -> Sample:
    """Write a version 3 dataset: two files, of which the first holds ten episodes."""
    path = folder / "sample_lerobot"
    (path / "meta/episodes/chunk-000").mkdir(parents=True)
    (path / "data/chunk-000").mkdir(parents=True)
    rows = [
        {
            "observation.state": _numbers(length, 5, index).tolist(),
            "action": _numbers(length, 4, 100 + index).tolist(),
            "next.reward": _numbers(length, 1, 200 + index)[:, 0].tolist(),
            "timestamp": (np.arange(length) / 20).tolist(),
            "frame_index": list(range(length)),
            "episode_index": [index] * length,
            "task_index": [index % 2] * length,
        }
        for index, length in enumerate(LENGTHS)
    ]
    for file, part in enumerate([rows[:10], rows[10:]]):
        table = {key: [value for item in part for value in item[key]] for key in part[0]}
        pq.write_table(pa.table(table), path / f"data/chunk-000/file-{file:03d}.parquet")
    tasks = pa.table({"task_index": [0, 1], "task": ["push it", "pull it"]})
    pq.write_table(tasks, path / "meta/tasks.parquet")
    ends = np.cumsum(LENGTHS).tolist()
    episodes = {
        "episode_index": list(range(len(LENGTHS))),
        "length": list(LENGTHS),
        "tasks": [["push it", "pull it"][index % 2 :][:1] for index in range(len(LENGTHS))],
        "data/chunk_index": [0] * len(LENGTHS),
        "data/file_index": [int(index > 9) for index in range(len(LENGTHS))],
        "dataset_from_index": [0, *ends[:-1]],
        "dataset_to_index": ends,
    }
    pq.write_table(pa.table(episodes), path / "meta/episodes/chunk-000/file-000.parquet")
    info = {
        "codebase_version": "v3.0",
        "fps": 20,
        "total_episodes": len(LENGTHS),
        "total_frames": ends[-1],
        "total_tasks": 2,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [5], "names": None},
            "action": {"dtype": "float32", "shape": [4], "names": None},
        },
    }
    (path / "meta/info.json").write_text(json.dumps(info))
    return Sample(path, None, "observation.state", "action", sum(LENGTHS[:2]))


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "robomimic": robomimic_sample,
    "d4rl": d4rl_sample,
    "minari": minari_sample,
    "pusht": pusht_sample,
    "lerobot": lerobot_sample,
    "maniskill": maniskill_sample,
    "dppo": dppo_sample,
    "hdf5": hdf5_sample,
    "zarr": zarr_sample,
    "npz": npz_sample,
    "ogbench": ogbench_sample,
}


@pytest.fixture
def make_sample() -> Callable[[str, Path], Sample]:
    """Return a maker of the small source of a format."""

    def make(name: str, folder: Path) -> Sample:
        assert name in SAMPLES, f"add a small source of '{name}' to tests/data/conftest.py"
        folder.mkdir(exist_ok=True, parents=True)
        return SAMPLES[name](folder)

    return make


@pytest.fixture
def lengths() -> tuple[int, ...]:
    return LENGTHS


@pytest.fixture
def poison() -> Callable[[Sample, str, int, float], None]:
    """Return a function that writes a value into row `row` of a sample's episode 2."""

    def plant(sample: Sample, key: str, row: int, value: float) -> None:
        if sample.hdf5 is not None:
            with h5py.File(sample.hdf5, "a") as file:
                file[key][sample.first_row + row, 1] = value
        elif (sample.path / "meta/info.json").exists():
            file = sample.path / "data/chunk-000/file-000.parquet"
            columns = pq.read_table(file).to_pydict()
            columns[key][sample.first_row + row][1] = value
            pq.write_table(pa.table(columns), file)
        elif sample.path.suffix == ".npz":
            arrays = dict(np.load(sample.path))
            arrays[key][sample.first_row + row, 1] = value
            np.savez(sample.path, **arrays)
        else:
            zarr.open_group(sample.path, mode="a")[key][sample.first_row + row, 1] = value

    return plant


@pytest.fixture
def episodes():
    """Return the rows of the episodes of a LeRobot dataset."""
    return make_episodes()


@pytest.fixture(params=["v2.1", "v3.0"])
def write(request, tmp_path):
    """Return a writer of a LeRobot dataset of either version."""

    def make(episodes, **more):
        root = tmp_path / "set"
        if request.param == "v2.1":
            return write_v2(root, episodes, **more)
        return write_v3(root, [episodes[:2], episodes[2:]], **more)

    return make


def pytest_terminal_summary(terminalreporter):
    """Print what the fault campaigns counted."""
    if COUNTED:
        terminalreporter.section("faults of data files")
        for line in COUNTED:
            terminalreporter.line(line)
