"""Minari data sets: one that minari itself makes, and what its layout allows."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.reader import open_source


@pytest.mark.filterwarnings("ignore")
def test_data_set_made_by_minari_is_read_as_it_was_recorded(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    buffers = pytest.importorskip("minari.data_collector.episode_buffer")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    recorded = []
    for index in range(12):
        steps = 4 + index
        recorded.append(
            buffers.EpisodeBuffer(
                id=index,
                seed=1000 + index,
                observations=rng.normal(size=(steps + 1, 3)).astype(np.float32),
                actions=rng.uniform(-2, 2, (steps, 1)).astype(np.float32),
                rewards=list(rng.normal(size=steps)),
                terminations=[False] * steps,
                truncations=[False] * (steps - 1) + [True],
                infos={"success": [False] * steps + [index == 3]},
            )
        )
    minari.create_dataset_from_buffers(
        "toy/pendulum/expert-v0", recorded, env="Pendulum-v1", algorithm_name="none",
        author="nobody", author_email="nobody@example.org", code_permalink="none", description="",
    )  # fmt: skip
    with open_source(
        "minari", (tmp_path / "toy" / "pendulum" / "expert-v0",), IngestConfig()
    ) as reader:
        assert [item.source for item in reader.episodes] == [
            f"episode_{index}" for index in range(12)
        ]
        assert reader.spec.env.tasks == ("Pendulum-v1",)
        assert reader.spec.env.max_steps == 200
        assert reader.spec.labels == ("expert",)
        assert reader.spec.action.high == (2.0,)
        assert reader.spec.collection_seeds == (1000, 1011)
        for index, source in enumerate(recorded):
            episode = reader.read(index)
            np.testing.assert_array_equal(
                episode.observations["observation"], source.observations[:-1]
            )
            np.testing.assert_array_equal(
                episode.final_observation["observation"], source.observations[-1]
            )
            np.testing.assert_array_equal(episode.actions, source.actions)
            np.testing.assert_allclose(episode.rewards.sum(), sum(source.rewards), rtol=1e-5)
            assert episode.seed == source.seed
            assert episode.success is (index == 3)


def test_directory_data_directory_and_file_are_the_same(make_sample, tmp_path):
    path = make_sample("minari", tmp_path).path
    specs = []
    for form in (path, path / "data", path / "data" / "main_data.hdf5"):
        with open_source("minari", (form,), IngestConfig()) as reader:
            specs.append(reader.spec)
    assert specs[0] == specs[1] == specs[2]
    assert specs[0].env.max_steps == 50


def test_dictionary_observations_are_flattened(make_sample, tmp_path):
    sample = make_sample("minari", tmp_path)
    with h5py.File(sample.hdf5, "a") as file:
        for group in file.values():
            rows = group["observations"][:]
            del group["observations"]
            group["observations/pose/hand"] = rows
            group["observations/goal"] = rows[:, 0]
    with open_source("minari", (sample.path,), IngestConfig()) as reader:
        assert [(item.name, item.size) for item in reader.spec.observations] == [
            ("goal", 1), ("pose.hand", 5),
        ]  # fmt: skip
        episode = reader.read(2)
    np.testing.assert_array_equal(
        episode.observations["goal"][:, 0], episode.observations["pose.hand"][:, 0]
    )


def test_an_observation_may_be_called_actions(make_sample, tmp_path):
    sample = make_sample("minari", tmp_path)
    with h5py.File(sample.hdf5, "a") as file:
        for group in file.values():
            rows = group["observations"][:]
            del group["observations"]
            group["observations/actions"] = rows
            size = group["actions"].shape[1]
    assert size != 5
    with open_source("minari", (sample.path,), IngestConfig()) as reader:
        assert [(item.name, item.size) for item in reader.spec.observations] == [("actions", 5)]
        assert reader.spec.action.size == size


def test_file_without_metadata_is_read(make_sample, tmp_path):
    sample = make_sample("minari", tmp_path)
    path = tmp_path / "copy.hdf5"
    shutil.copy(sample.hdf5, path)
    with open_source("minari", (path,), IngestConfig(env="toys/Toy-v0")) as reader:
        assert (reader.spec.env.adapter, reader.spec.env.tasks) == ("toys", ("Toy-v0",))
        assert reader.spec.env.max_steps == max(item.length for item in reader.episodes)


@pytest.mark.parametrize("force", [0.0, 0.5])
def test_ants_zero_forces_are_distinguished_from_real_ones(make_sample, tmp_path, force):
    sample = make_sample("minari", tmp_path)
    recorded = {"id": "Ant-v4", "kwargs": {"use_contact_forces": True}}
    metadata = sample.path / "data" / "metadata.json"
    metadata.write_text(json.dumps({"env_spec": json.dumps(recorded)}))
    with h5py.File(sample.hdf5, "a") as file:
        for name, group in file.items():
            steps = len(group["actions"])
            for key in ("observations", "actions"):
                del group[key]
            observations = np.ones((steps + 1, 111), np.float32)
            observations[:, 27:] = 0.0
            observations[1, 50] = force if name == "episode_1" else 0.0
            group["observations"] = observations
            group["actions"] = np.zeros((steps, 8), np.float32)
    with open_source("minari", (sample.path,), IngestConfig()) as reader:
        settings = reader.spec.env.settings
    assert settings["use_contact_forces"] is True
    assert settings.get("zero_contact_forces", False) is (force == 0.0)


def test_another_version_of_a_known_environment_keeps_its_name(make_sample, tmp_path):
    sample = make_sample("minari", tmp_path)
    metadata = sample.path / "data" / "metadata.json"
    metadata.write_text(json.dumps({"env_spec": json.dumps({"id": "Hopper-v5"})}))
    with open_source("minari", (sample.path,), IngestConfig()) as reader:
        assert (reader.spec.env.adapter, reader.spec.env.tasks) == ("mujoco", ("Hopper-v5",))
        assert reader.spec.action.low == (-1.0, -1.0)


@pytest.mark.parametrize(
    ("recorded", "env"),
    [("my_pkg/pen-v0", None), ("AntMaze_UMaze-v4", None), ("dm_control/cartpole-balance-v0", None),
     ("Toy-v0", "mysim:Sim/pen"), ("", "mysim:Sim/pen")],
)  # fmt: skip
def test_a_word_of_a_name_makes_no_known_environment(make_sample, tmp_path, recorded, env):
    sample = make_sample("minari", tmp_path)
    metadata = sample.path / "data" / "metadata.json"
    metadata.write_text(json.dumps({"env_spec": json.dumps({"id": recorded})}))
    with open_source("minari", (sample.path,), IngestConfig(env=env)) as reader:
        task = "pen" if env else recorded
        assert (reader.spec.env.adapter, reader.spec.env.tasks) == (
            "mysim:Sim" if env else "", (task,),
        )  # fmt: skip
        assert reader.spec.env.settings["id"] == task
        assert (reader.spec.action.units, reader.spec.action.limits) == ("unknown", "")


def test_directory_that_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"main_data\.hdf5: no such file"):
        open_source("minari", (tmp_path,), IngestConfig())
