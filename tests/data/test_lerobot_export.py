"""Snippet stores written as LeRobot datasets, read back by our own reader and by pandas."""

import json
import shlex
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError, DataError, MissingExtraError, install_extra
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.data import lerobot_export
from lwdctl.data.lerobot_export import LeRobotTarget, export_lerobot
from lwdctl.data.reader import open_source

LENGTHS = (5, 1, 12, 3)
SPLITS = ("train", "validation", "train", "train")
SPEC = SourceSpec(
    observations=(ObservationSpec("agent", 2), ObservationSpec("observation.angle", 1)),
    action=ActionSpec(2, "absolute", "pixels", (0.0, -1.0), (512.0, 1.0), 10.0),
    env=EnvSpec("pusht", ("push the block", "pull it"), {}, 300),
    labels=("good", "poor"),
    source_format="made",
)


def make_episodes(spec, *, rewards=True, success=(True, False, True, True)):
    rng = np.random.default_rng(0)
    for index, length in enumerate(LENGTHS):
        yield Episode(
            source=f"demo_{index}",
            observations={
                item.name: rng.normal(size=(length, item.size)).astype(np.float32)
                for item in spec.observations
            },
            actions=rng.uniform(-1, 1, (length, spec.action.size)).astype(np.float32),
            rewards=rng.normal(size=length).astype(np.float32) if rewards else None,
            task=spec.env.tasks[index % 2],
            label=spec.labels[index % 2] if spec.labels else "",
            split=SPLITS[index],
            success=success[index],
        )


@pytest.fixture
def make(tmp_path):
    """Return a maker of a store and the list of what is in it."""

    def write(spec=SPEC, **how):
        made = list(make_episodes(spec, **how))
        writer = SnippetWriter(tmp_path / "store.zarr", spec)
        for episode in made:
            writer.append(episode)
        writer.close()
        return SnippetStore.open(tmp_path / "store.zarr"), made

    return write


def export(store, path, **more):
    return export_lerobot(store, LeRobotTarget(path, **more), SilentProgress())


def in_order(made):
    """Return the episodes as they are exported: those of the validation split last."""
    return [item for split in ("train", "validation") for item in made if item.split == split]


def test_our_reader_gives_back_the_same_episodes(make, tmp_path):
    store, made = make()
    result = export(store, tmp_path / "out")
    assert (result.episodes, result.steps, result.fps) == (4, sum(LENGTHS), 10.0)
    assert result.features == {
        "agent": "observation.agent", "observation.angle": "observation.angle",
    }  # fmt: skip
    config = IngestConfig(label_from="label", actions="recorded-absolute")
    with open_source("lerobot", (tmp_path / "out",), config) as reader:
        assert [item for item in reader.findings if item.severity != "note"] == []
        assert reader.spec.action.control_rate == 10
        assert set(reader.spec.env.tasks) == set(SPEC.env.tasks)
        assert len(reader.episodes) == 4
        for index, source in enumerate(in_order(made)):
            read = reader.read(index)
            assert (read.task, read.label, read.split, read.success) == (
                source.task, source.label, source.split, source.success,
            )  # fmt: skip
            np.testing.assert_array_equal(read.actions, source.actions)
            np.testing.assert_array_equal(read.rewards, source.rewards)
            for key, name in result.features.items():
                np.testing.assert_array_equal(read.observations[name], source.observations[key])


def test_the_files_are_those_of_version_3(make, tmp_path):
    store, made = make()
    export(store, tmp_path / "out")
    root, made = tmp_path / "out", in_order(made)
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 10, 21)
    assert info["splits"] == {"train": "0:3", "val": "3:4"}
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": None}
    assert info["features"]["next.done"]["dtype"] == "bool"
    tasks = pd.read_parquet(root / "meta/tasks.parquet")
    assert tasks.index.tolist() == ["push the block", "pull it"]
    assert tasks["task_index"].tolist() == [0, 1]
    data = pd.read_parquet(root / "data/chunk-000/file-000.parquet")
    assert data["index"].tolist() == list(range(21))
    assert data["frame_index"].tolist() == [step for item in made for step in range(item.length)]
    assert data["next.done"].sum() == 4
    np.testing.assert_allclose(data["timestamp"], data["frame_index"] / 10, rtol=1e-6)
    np.testing.assert_array_equal(
        np.stack(data["action"]), np.concatenate([item.actions for item in made])
    )
    metadata = pq.read_metadata(root / "data/chunk-000/file-000.parquet")
    assert metadata.num_row_groups == 4
    episodes = pd.read_parquet(root / "meta/episodes/chunk-000/file-000.parquet")
    assert episodes["dataset_to_index"].tolist() == np.cumsum([e.length for e in made]).tolist()
    assert [list(item) for item in episodes["tasks"]] == [[item.task] for item in made]


def test_statistics_are_those_of_all_steps(make, tmp_path):
    store, made = make()
    export(store, tmp_path / "out")
    found = json.loads((tmp_path / "out/meta/stats.json").read_text())
    values = np.concatenate([item.actions for item in made]).astype(np.float64)
    assert found["action"]["count"] == [21]
    for part in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found["action"][part], getattr(values, part)(axis=0), rtol=1e-9)
    quantiles = np.average(
        [np.quantile(item.actions.astype(np.float64), 0.9, axis=0) for item in made],
        axis=0, weights=LENGTHS,
    )  # fmt: skip
    np.testing.assert_allclose(found["action"]["q90"], quantiles, rtol=1e-9)
    assert found["observation.angle"]["mean"][0] == pytest.approx(
        np.concatenate([item.observations["observation.angle"] for item in made]).mean(), rel=1e-5
    )


def test_large_exports_have_several_files(make, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_export, "FILE_MEGABYTES", 1e-6)
    monkeypatch.setattr(lerobot_export, "FILES_PER_CHUNK", 3)
    monkeypatch.setattr(lerobot_export, "METADATA_ROWS", 2)
    store, made = make()
    export(store, tmp_path / "out")
    names = sorted(str(p.relative_to(tmp_path / "out/data")) for p in tmp_path.glob("out/data/*/*"))
    assert names == [
        "chunk-000/file-000.parquet", "chunk-000/file-001.parquet",
        "chunk-000/file-002.parquet", "chunk-001/file-000.parquet",
    ]  # fmt: skip
    with open_source("lerobot", (tmp_path / "out",), IngestConfig()) as reader:
        assert not [item for item in reader.findings if item.check == "metadata"]
        for index, source in enumerate(in_order(made)):
            np.testing.assert_array_equal(reader.read(index).actions, source.actions)


def test_without_rewards_and_with_unknown_success(make, tmp_path):
    store, _ = make(rewards=False, success=(True, None, False, None))
    result = export(store, tmp_path / "out")
    assert (result.has_rewards, result.has_success) == (False, False)
    with open_source("lerobot", (tmp_path / "out",), IngestConfig()) as reader:
        assert reader.read(0).rewards is None
        assert reader.read(0).success is None


def test_one_task_and_label(make, tmp_path):
    store, made = make()
    result = export(store, tmp_path / "out", task="pull it", label="poor")
    assert (result.episodes, result.tasks, result.labels) == (2, ("pull it",), ("poor",))
    with open_source("lerobot", (tmp_path / "out",), IngestConfig()) as reader:
        np.testing.assert_array_equal(reader.read(0).actions, made[3].actions)
    with pytest.raises(ConfigError, match="no task 'plul'"):
        export(store, tmp_path / "other", task="plul")


def test_an_unknown_control_rate_is_asked_for_and_the_hint_works(make, tmp_path):
    store, _ = make(replace(SPEC, action=replace(SPEC.action, control_rate=0.0)))
    with pytest.raises(ConfigError, match="control rate") as caught:
        export(store, tmp_path / "out")
    assert "--fps 20" in caught.value.hint
    assert export(store, tmp_path / "out", fps=20).fps == 20
    with open_source("lerobot", (tmp_path / "out",), IngestConfig()) as reader:
        assert reader.spec.action.control_rate == 20


def test_what_exists_is_not_overwritten_and_nothing_half_made_stays(make, tmp_path, monkeypatch):
    store, _ = make()
    with monkeypatch.context() as patch:
        patch.setattr(SnippetStore, "episode", lambda *words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(store, tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["store.zarr"]
    export(store, tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):
        export(store, tmp_path / "out")


def test_pyarrow_that_is_not_installed_names_its_extra(monkeypatch):
    for name in ("lerobot_export", "files.parquet_files"):
        monkeypatch.delitem(sys.modules, f"lwdctl.data.{name}", raising=False)
        monkeypatch.delattr(f"lwdctl.data.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError) as caught:
        from lwdctl.data.lerobot_export import export_lerobot  # noqa: F401
    assert caught.value.hint == install_extra("parquet")


@pytest.mark.slow
def test_export_and_ingest_on_the_command_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    with Workspace(tmp_path / "runs").begin("snippets", "toy", config={}, inputs=[]) as run:
        writer = SnippetWriter(run.path / "snippets.zarr", SPEC)
        for episode in make_episodes(SPEC):
            writer.append(episode)
        run.publish(writer.close(), seed=0)
    assert main(["export", "lerobot", "toy", "out dir", "--json"]) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert (answer["artifact"], answer["path"]) == (None, "out dir")
    assert answer["summary"]["source"] == "snippets/toy:v1"
    assert "reading snippets/toy:v1" in err
    command = answer["summary"]["next"]
    assert main([*shlex.split(command)[1:], "--name", "back", "-q"]) == 0
    capfd.readouterr()
    store = SnippetStore.open(Workspace(tmp_path / "runs").resolve("snippets", "back").path)
    assert set(store.spec.labels) == {"good", "poor"}
    assert (store.spec.env.adapter, set(store.spec.env.tasks)) == ("pusht", set(SPEC.env.tasks))
    assert main(["export", "lerobot", "-q"]) == 1
    assert "hint: name one: lwdctl export lerobot NAME DIR" in capfd.readouterr().err
    assert main(["export", "lerobot", "toy", "-q"]) == 0
    assert (tmp_path / "toy-lerobot/meta/info.json").is_file()
    assert main(["export", "lerobot", "toy", "out dir", "-q"]) == 1
    assert "exists already" in capfd.readouterr().err
