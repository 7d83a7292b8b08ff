"""`lwdctl ingest`: from somebody's file to a snippet store, or to nothing at all."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.configs import IngestConfig
from lwdctl.core.config import from_mapping, to_mapping
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import Episode
from lwdctl.data.formats import READERS
from lwdctl.data.readers.robomimic_writer import RobomimicWriter
from lwdctl.stages.ingest import run
from lwdctl.stages.stage import StageContext

LENGTHS = tuple(range(5, 25))


def write_demonstrations(path, *, splits=False):
    arguments = {"env_name": "metaworld", "type": "metaworld", "env_version": "3.1.1"}
    with RobomimicWriter(path, arguments) as writer:
        for index, length in enumerate(LENGTHS):
            rows = np.full((length + 1, 3), index, np.float32)
            writer.write(
                Episode(
                    source="",
                    observations={"observation": rows[:-1]},
                    final_observation={"observation": rows[-1]},
                    actions=np.full((length, 2), index / 100, np.float32),
                    rewards=np.ones(length, np.float32),
                    initial_state=np.array([index, -index], np.float64),
                    task="reach" if index % 2 else "push",
                    label="expert",
                    split=("validation" if index >= 17 else "train") if splits else "",
                    success=index != 0,
                    seed=index,
                )
            )
    return path


@pytest.fixture
def path(tmp_path):
    return write_demonstrations(tmp_path / "two tasks.hdf5")


class Recorder(SilentProgress):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


@pytest.fixture
def progress():
    return Recorder()


@pytest.fixture
def ingest(tmp_path, progress):
    workspace = Workspace(tmp_path / "runs")

    def start(*paths, name="", **settings):
        values = {"paths": [str(path) for path in paths], **settings}
        config = from_mapping(IngestConfig, values)
        return run(config, {}, StageContext(workspace, progress, name))

    return start


@pytest.mark.slow
def test_every_step_is_stored_once_in_a_seeded_random_order(ingest, path):
    artifact = ingest(path)
    store = SnippetStore.open(artifact.path)
    table = store.episodes
    assert store.steps == sum(LENGTHS)
    assert sorted(table.source) == sorted(f"demo_{index}" for index in range(20))
    assert list(table.source) != [f"demo_{index}" for index in range(20)]
    for row, source in enumerate(table.source):
        index = int(source.removeprefix("demo_"))
        assert table.length[row] == LENGTHS[index]
        stop = table.start[row] + table.length[row]
        assert (store.read("observation", table.start[row], stop) == index).all()
        assert store.initial_state(row).tolist() == [index, -index]
        assert store.final_observation(row)["observation"].tolist() == [index] * 3
        assert store.spec.env.tasks[table.task[row]] == ("reach" if index % 2 else "push")
        assert table.seed[row] == index
        assert table.success[row] == (index != 0)
    again = SnippetStore.open(ingest(path).path)
    other = SnippetStore.open(ingest(path, seed=1).path)
    assert again.episodes.source == table.source
    assert (again.episodes.split == table.split).all()
    assert other.episodes.source != table.source


def test_summary_and_name_say_what_was_read(ingest, path, progress):
    artifact = ingest(path)
    summary = artifact.manifest.summary
    assert artifact.name == "two_tasks"
    assert (summary["episodes"], summary["steps"]) == (20, sum(LENGTHS))
    assert summary["validation_episodes"] == 2
    assert summary["episodes_by_task"] == {"push": 10, "reach": 10}
    assert summary["return"]["mean"] == sum(LENGTHS) / 20
    assert summary["success"] == 0.95
    assert summary["sources"][0]["path"] == str(path)
    assert len(summary["sources"][0]["sha256"]) == 64
    assert any(str(path) in text for text in progress.messages)
    assert artifact.manifest.config == json.loads(
        json.dumps(to_mapping(IngestConfig(paths=(str(path),))))
    )


def test_validation_takes_from_every_task(ingest, path):
    table = SnippetStore.open(ingest(path, validation_fraction=0.3).path).episodes
    held = table.task[table.split == 1]
    assert sorted(held.tolist()) == [0, 0, 0, 1, 1, 1]


def test_validation_of_the_source_is_kept(ingest, tmp_path):
    path = write_demonstrations(tmp_path / "split.hdf5", splits=True)
    table = SnippetStore.open(ingest(path).path).episodes
    held = {source for source, split in zip(table.source, table.split, strict=True) if split}
    assert held == {"demo_17", "demo_18", "demo_19"}


def test_options_reach_the_reader(ingest, path):
    store = SnippetStore.open(ingest(path, max_episodes=7, label="mine", name="few").path)
    assert len(store.episodes) == 7
    assert store.spec.labels == ("mine",)
    tasks = store.episodes.task
    assert set(tasks.tolist()) == {0, 1}  # a random subset, not the first ones


@pytest.mark.slow
def test_no_label_has_more_episodes_than_asked_for(ingest, tmp_path):
    paths = []
    for word, count in (("few", 3), ("many", 9)):
        paths.append(tmp_path / f"{word}.hdf5")
        with RobomimicWriter(paths[-1], {"env_name": "metaworld", "type": "metaworld"}) as writer:
            for index in range(count):
                rows = np.full((5, 3), index, np.float32)
                writer.write(
                    Episode(
                        source="",
                        observations={"observation": rows[:-1]},
                        final_observation={"observation": rows[-1]},
                        actions=np.zeros((4, 2), np.float32),
                        task="reach",
                        label=word,
                    )
                )

    def counts(**settings):
        return ingest(*paths, name="both", **settings).manifest.summary["episodes_by_label"]

    assert counts() == {"few": 3, "many": 9}
    assert counts(max_per_label=4) == {"few": 3, "many": 4}
    assert sum(counts(max_per_label=4, max_episodes=5).values()) == 5


def test_tasks_and_labels_are_those_that_are_stored(ingest, path):
    artifact = ingest(path, max_episodes=1)
    store = SnippetStore.open(artifact.path)
    assert len(store.spec.env.tasks) == 1
    assert store.episodes.task.tolist() == [0]
    assert artifact.manifest.summary["episodes_by_task"] == {store.spec.env.tasks[0]: 1}


def test_several_files_become_one_store_named_by_what_they_share(ingest, tmp_path):
    files = [write_demonstrations(tmp_path / f"arm_{word}.hdf5") for word in ("left", "right")]
    artifact = ingest(*files)
    assert artifact.name == "arm"
    assert artifact.manifest.summary["episodes"] == 40


def spoil(path, value=np.nan):
    with h5py.File(path, "a") as file:
        file["data/demo_4/actions"][3, 1] = value


def test_bad_value_is_an_error_that_leaves_nothing_behind(ingest, path, tmp_path):
    spoil(path)
    with pytest.raises(DataError, match=r"data/demo_4/actions, row 3: value is nan") as caught:
        ingest(path)
    assert str(path) in caught.value.message
    assert "--on-nan" in caught.value.hint
    assert not [item for item in (tmp_path / "runs").rglob("*") if item.is_file()]
    assert not list((tmp_path / "runs").rglob(".partial*"))


def test_bad_episodes_are_left_out_on_request(ingest, path, progress):
    spoil(path, np.inf)
    artifact = ingest(path, on_nan="drop")
    assert artifact.manifest.summary["dropped_episodes"] == 1
    assert "demo_4" not in SnippetStore.open(artifact.path).episodes.source
    assert any("demo_4" in text for text in progress.messages)
    report = json.loads(artifact.payload("ingest_report.json").read_text())
    assert {item["check"]: item["values"] for item in report["findings"]}["not-finite"] == {
        "episodes": 1
    }


def test_dropping_everything_is_an_error(ingest, path):
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo["actions"][0, 0] = np.nan
    with pytest.raises(DataError, match="every episode"):
        ingest(path, on_nan="drop")


def test_broken_file_is_refused_before_the_workspace_is_touched(ingest, tmp_path):
    broken = tmp_path / "broken.hdf5"
    broken.write_bytes(b"nothing")
    for path in (broken, tmp_path / "absent.hdf5"):
        with pytest.raises(DataError, match=path.name):
            ingest(path)
    assert not (tmp_path / "runs").exists()


def test_newest_demonstrations_are_read_when_no_path_is_named(tmp_path):
    workspace = Workspace(tmp_path / "runs")
    with workspace.begin("demonstrations", "arms", config={}) as draft:
        write_demonstrations(draft.path / "demonstrations.hdf5")
        made = draft.publish({})
    artifact = run(IngestConfig(), {"demonstrations": made}, StageContext(workspace))
    assert artifact.name == "arms"
    assert [item.reference for item in artifact.manifest.inputs] == [made.reference]
    assert SnippetStore.open(artifact.path).spec.collection_seeds == (0, 19)


@pytest.mark.parametrize("name", list(READERS))
def test_without_path_and_demonstrations_the_user_gets_a_hint(name, tmp_path):
    with pytest.raises(ConfigError, match="no path") as caught:
        run(IngestConfig(format=name), {}, StageContext(Workspace(tmp_path)))
    assert caught.value.hint == f"lwdctl ingest {name} PATH"


def test_only_collected_files_are_read_without_a_path():
    assert {name for name in READERS if IngestConfig(format=name).reads()} == {"robomimic"}
    assert IngestConfig().reads() == ("demonstrations",)
    assert IngestConfig(format="robomimic", paths=("a.hdf5",)).reads() == ()


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("a/lift_mh.hdf5", "lift_mh"),
        ("a/buffer.zarr.zip", "buffer"),
        ("a/buffer.zarr", "buffer"),
        ("a/cube-v0.npz", "cube-v0"),
        ("a/expert-v0/data/main_data.hdf5", "expert-v0"),
        ("a/expert-v0/data", "expert-v0"),
        ("a/expert-v0", "expert-v0"),
        ("a/v1.2 final.hdf5", "v1.2_final"),
    ],
)
def test_store_is_named_after_its_file(word, name, tmp_path):
    from lwdctl.stages.ingest import _default_name

    assert _default_name([tmp_path / word], []) == name


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["absolute", "delta"])
def test_actions_are_what_was_asked_for_or_the_source_is_refused(ingest, path, tmp_path, asked):
    if asked == "delta":
        ingest(path, actions=asked)  # metaworld's are
        return
    with pytest.raises(ConfigError, match="--actions absolute: the recorded actions are delta"):
        ingest(path, actions=asked)
    assert not list((tmp_path / "runs").rglob("manifest.json"))


def test_the_announcement_says_what_the_actions_are(ingest, path, progress):
    ingest(path)
    assert "actions: 2 numbers, delta (normalized)" in progress.messages[0]


def test_the_announcement_does_not_say_what_the_file_does_not(ingest, tmp_path, progress):
    path = tmp_path / "unknown.npz"
    rows = np.random.default_rng(0).normal(size=(30, 3))
    np.savez(path, seen=rows, action=rows, ends=np.array([30]))
    ingest(path, observation_keys=("seen",), action_key="action", episode_ends="ends")
    assert progress.messages[0].endswith("actions: 3 numbers")


def test_the_report_is_a_part_of_the_artifact(ingest, path, progress):
    artifact = ingest(path)
    assert "ingest_report.json" in [file.path for file in artifact.manifest.files]
    report = json.loads(artifact.payload("ingest_report.json").read_text())
    (file,) = report["files"]
    assert file["path"] == str(path)
    assert "actions" in file["recognized_by"]
    assert report["statistics"]["steps"] == sum(LENGTHS)
    counts = artifact.manifest.summary["findings"]
    severities = [item["severity"] for item in report["findings"]]
    assert counts == {name: severities.count(name) for name in ("warning", "note")}
    for item in report["findings"]:
        assert any(item["message"] in text for text in progress.messages)


@pytest.mark.slow
def test_an_error_in_the_data_leaves_nothing_behind(ingest, path, tmp_path):
    with h5py.File(path, "a") as file:
        file["data/demo_4/actions"][2] = 7
    with pytest.raises(DataError, match="outside the limits of the environment") as caught:
        ingest(path)
    assert "--clip-actions clips them, as the environment does" in caught.value.hint
    assert not [item for item in (tmp_path / "runs").rglob("*") if item.is_file()]
    artifact = ingest(path, clip_actions=True)
    assert SnippetStore.open(artifact.path).moments(("action",)).maximum.tolist() == [1, 1]
