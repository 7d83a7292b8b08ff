"""LeRobot's own reader and writer beside ours.

lerobot demands other versions of torch and numpy than lwdctl: install it elsewhere, and name that
interpreter in LWDCTL_LEROBOT_PYTHON.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.configs import IngestConfig
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.data.lerobot_export import LeRobotTarget, export_lerobot
from lwdctl.data.reader import open_source

PYTHON = os.environ.get("LWDCTL_LEROBOT_PYTHON", "")
SCRIPT = Path(__file__).with_name("run_lerobot.py")
SKIPPED = 77
LENGTHS = (5, 2, 12, 3)
TASKS = ("put the cup on the plate", "open the drawer")

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="LWDCTL_LEROBOT_PYTHON names no interpreter that has lerobot"
)


def run_lerobot(*words):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [PYTHON, str(SCRIPT), *map(str, words)],
        capture_output=True, text=True, timeout=170, check=False, env=environment,
    )  # fmt: skip
    if done.returncode == SKIPPED:
        pytest.skip("this version of lerobot does not read version 3 of its datasets")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
def test_lerobot_reads_what_we_export(tmp_path):
    spec = SourceSpec(
        observations=(ObservationSpec("agent", 2), ObservationSpec("angle", 1)),
        action=ActionSpec(2, "absolute", "pixels", (0.0, -1.0), (512.0, 1.0), 12.5),
        env=EnvSpec("pusht", TASKS, {}, 300),
        labels=("good",),
        source_format="made",
    )
    rng, made = np.random.default_rng(0), []
    writer = SnippetWriter(tmp_path / "store.zarr", spec)
    for index, length in enumerate(LENGTHS):
        episode = Episode(
            source=f"demo_{index}",
            observations={
                item.name: rng.normal(size=(length, item.size)).astype(np.float32)
                for item in spec.observations
            },
            actions=rng.normal(size=(length, 2)).astype(np.float32),
            rewards=rng.normal(size=length).astype(np.float32),
            task=TASKS[index % 2],
            label="good",
            split="train",
            success=index != 1,
        )
        made.append(episode)
        writer.append(episode)
    writer.close()
    store = SnippetStore.open(tmp_path / "store.zarr")
    export_lerobot(store, LeRobotTarget(tmp_path / "out"), SilentProgress())

    run_lerobot("read", tmp_path / "out", tmp_path / "read.npz")

    read = np.load(tmp_path / "read.npz")
    actions = np.concatenate([item.actions for item in made])
    np.testing.assert_array_equal(read["action"], actions)
    for key in ("agent", "angle"):
        np.testing.assert_array_equal(
            read[f"observation.{key}"].reshape(len(actions), -1),
            np.concatenate([item.observations[key] for item in made]),
        )
    np.testing.assert_array_equal(read["next.reward"], np.concatenate([e.rewards for e in made]))
    assert read["task"].tolist() == [item.task for item in made for _ in range(item.length)]
    assert read["next.success"].sum() == 3
    assert read["episode_index"].tolist() == [i for i, n in enumerate(LENGTHS) for _ in range(n)]
    assert read["fps"] == 12.5
    np.testing.assert_allclose(read["mean"], actions.astype(np.float64).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(read["std"], actions.astype(np.float64).std(axis=0), rtol=1e-9)


@pytest.mark.usefixtures("cache")
def test_we_read_what_lerobot_writes(tmp_path):
    run_lerobot("write", tmp_path / "set")
    with open_source("lerobot", (tmp_path / "set",), IngestConfig(
        observation_keys=("observation.state", "observation.pose", "force")
    )) as source:  # fmt: skip
        assert [item for item in source.findings if item.check == "metadata"] == []
        assert source.spec.action.control_rate == 25
        assert [item.length for item in source.episodes] == list(LENGTHS)
        for index, length in enumerate(LENGTHS):
            episode, rng = source.read(index), np.random.default_rng(index)
            shapes = {
                "observation.state": (3,), "observation.pose": (2, 2), "action": (2,), "force": (1,)
            }  # fmt: skip
            written = {
                name: rng.normal(size=(length, *shape)).astype(np.float32).reshape(length, -1)
                for name, shape in shapes.items()
            }
            np.testing.assert_array_equal(episode.actions, written.pop("action"))
            for name, values in written.items():
                np.testing.assert_array_equal(episode.observations[name], values)
            np.testing.assert_array_equal(episode.rewards, np.arange(length) / 2)
            assert (episode.task, episode.success) == (TASKS[index % 2], index != 1)
