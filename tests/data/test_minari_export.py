"""Snippet stores written as Minari data sets, read back by minari and by our own reader."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError, DataError, MissingExtraError, install_extra
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.data.minari_package import MinariTarget, export_minari
from lwdctl.data.reader import open_source

minari = pytest.importorskip("minari")
# Gymnasium and minari warn of what a data set of ours does not have.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

LENGTHS = (5, 1, 12, 3)
SPEC = SourceSpec(
    observations=(ObservationSpec("agent", 2), ObservationSpec("block.angle", 1)),
    action=ActionSpec(2, "absolute", "pixels", (0.0, -1.0), (512.0, 1.0), 10.0),
    env=EnvSpec("pusht", ("push", "pull"), {}, 300),
    labels=("good", "poor"),
    source_format="made",
)
ONE_KEY = replace(
    SPEC,
    observations=(ObservationSpec("observation", 17),),
    action=ActionSpec(6, "torque", "normalized", (-1.0,) * 6, (1.0,) * 6, 20.0),
    env=EnvSpec("mujoco", ("HalfCheetah-v4",), {"id": "HalfCheetah-v4"}, 1000),
)


ANT = replace(
    ONE_KEY,
    observations=(ObservationSpec("observation", 111),),
    action=ActionSpec(8, "torque", "normalized", (-1.0,) * 8, (1.0,) * 8, 20.0),
    env=EnvSpec(
        "mujoco",
        ("Ant-v4",),
        {"id": "Ant-v4", "use_contact_forces": True, "zero_contact_forces": True},
        1000,
    ),
)


def episodes(spec, *, final=True, rewards=True, tasks=1):
    rng = np.random.default_rng(0)
    for index, length in enumerate(LENGTHS):
        rows = {
            item.name: rng.normal(size=(length + 1, item.size)).astype(np.float32)
            for item in spec.observations
        }
        yield Episode(
            source=f"demo_{index}",
            observations={key: values[:-1] for key, values in rows.items()},
            actions=rng.uniform(-1, 1, (length, spec.action.size)).astype(np.float32),
            rewards=rng.normal(size=length).astype(np.float32) if rewards else None,
            final_observation={key: values[-1] for key, values in rows.items()} if final else None,
            task=spec.env.tasks[index % tasks],
            label=spec.labels[index % 2],
            split="train",
            success=index == 2 if spec is SPEC else None,
            seed=70 + index,
        )


@pytest.fixture
def make(tmp_path):
    """Return a maker of a store and the list of what is in it."""

    def write(spec=SPEC, **how):
        made = list(episodes(spec, **how))
        path = tmp_path / "store.zarr"
        writer = SnippetWriter(path, spec)
        for episode in made:
            writer.append(episode)
        writer.close()
        return SnippetStore.open(path), made

    return write


def target(tmp_path, **more):
    return MinariTarget("toy/push/mixed-v0", tmp_path / "minari", **more)


def load(tmp_path, monkeypatch, name="toy/push/mixed-v0"):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return minari.load_dataset(name)


@pytest.mark.parametrize("spec", [SPEC, ONE_KEY], ids=["dictionary", "box"])
def test_minari_reads_the_same_episodes(make, tmp_path, monkeypatch, spec):
    store, made = make(spec)
    result = export_minari(store, target(tmp_path), SilentProgress())
    assert (result.episodes, result.steps, result.shortened) == (4, sum(LENGTHS), 0)
    data = load(tmp_path, monkeypatch)
    assert data.total_episodes == 4
    assert data.total_steps == sum(LENGTHS)
    for read, source in zip(data.iterate_episodes(), made, strict=True):
        found = (
            read.observations if len(spec.observations) > 1 else {"observation": read.observations}
        )
        assert set(found) == set(source.observations)
        for key, values in found.items():
            np.testing.assert_array_equal(values[:-1], source.observations[key])
            np.testing.assert_array_equal(values[-1], source.final_observation[key])
        np.testing.assert_array_equal(read.actions, source.actions)
        np.testing.assert_array_equal(read.rewards, source.rewards)
        assert read.truncations.tolist() == [False] * (source.length - 1) + [True]
        assert not read.terminations.any()
        assert data.action_space.contains(np.asarray(spec.action.high, dtype=np.float32))
    assert list(minari.list_local_datasets()) == ["toy/push/mixed-v0"]


def test_slashes_in_names_of_observations_become_dots(make, tmp_path, monkeypatch):
    names = (ObservationSpec("data/state", 2), ObservationSpec("data/angle", 1))
    store, made = make(replace(SPEC, observations=names))
    result = export_minari(store, target(tmp_path), SilentProgress())
    assert result.observations == ("data.state", "data.angle")
    data = load(tmp_path, monkeypatch)
    assert set(data.observation_space.spaces) == {*result.observations}
    read = data[2].observations
    np.testing.assert_array_equal(read["data.state"][:-1], made[2].observations["data/state"])


def test_names_that_differ_only_in_slashes_and_dots_are_refused(make, tmp_path):
    store, _ = make(
        replace(SPEC, observations=(ObservationSpec("a/b", 2), ObservationSpec("a.b", 1)))
    )
    with pytest.raises(ConfigError, match=r"two observations would be called 'a\.b'"):
        export_minari(store, target(tmp_path), SilentProgress())


@pytest.mark.parametrize("identifier", ["HalfCheetah-v4", "Foo-v0"])
def test_a_recorded_description_may_lack_fields(make, tmp_path, identifier):
    settings = {"id": identifier, "env_spec": {"id": identifier, "max_episode_steps": 50}}
    store, _ = make(replace(ONE_KEY, env=EnvSpec("mujoco", (identifier,), settings, 50)))
    exported = export_minari(store, target(tmp_path), SilentProgress())
    assert exported.has_environment is (identifier == "HalfCheetah-v4")


def test_a_gymnasium_environment_can_be_recovered(make, tmp_path, monkeypatch):
    store, _ = make(ONE_KEY)
    export_minari(store, target(tmp_path), SilentProgress())
    env = load(tmp_path, monkeypatch).recover_environment()
    assert env.spec.id == "HalfCheetah-v4"
    assert "total_steps" in repr(load(tmp_path, monkeypatch)[0])
    assert env.observation_space.shape == (17,)
    env.close()


def test_only_arguments_of_the_environment_go_into_its_description(make, tmp_path, monkeypatch):
    store, _ = make(ANT)
    assert export_minari(store, target(tmp_path), SilentProgress()).has_environment
    env = load(tmp_path, monkeypatch).recover_environment()
    assert env.spec.kwargs["use_contact_forces"] is True
    assert env.observation_space.shape == (111,)
    env.close()


@pytest.mark.parametrize("spec", [SPEC, ONE_KEY], ids=["dictionary", "box"])
def test_our_reader_gives_back_the_same_episodes(make, tmp_path, spec):
    store, made = make(spec)
    path = export_minari(store, target(tmp_path), SilentProgress()).path
    with open_source(
        "minari", (path,), IngestConfig(env=f"{spec.env.adapter}/{spec.env.tasks[0]}")
    ) as reader:
        assert [(item.name, item.size) for item in reader.spec.observations] == [
            (item.name, item.size) for item in spec.observations
        ]
        assert (reader.spec.action.low, reader.spec.action.high) == (
            spec.action.low, spec.action.high,
        )  # fmt: skip
        assert reader.spec.env.adapter == spec.env.adapter
        assert reader.spec.env.max_steps == spec.env.max_steps
        for index, source in enumerate(made):
            read = reader.read(index)
            assert (read.seed, read.success) == (source.seed, source.success)
            np.testing.assert_array_equal(read.actions, source.actions)
            np.testing.assert_array_equal(read.rewards, source.rewards)
            for key, values in source.observations.items():
                np.testing.assert_array_equal(read.observations[key], values)
                np.testing.assert_array_equal(
                    read.final_observation[key], source.final_observation[key]
                )


def test_without_a_last_observation_the_last_action_is_dropped(make, tmp_path, monkeypatch):
    store, made = make(final=False, rewards=False)
    result = export_minari(store, target(tmp_path), SilentProgress())
    assert (result.episodes, result.shortened, result.left_out) == (3, 3, 1)
    assert not result.has_rewards
    data = load(tmp_path, monkeypatch)
    kept = [episode for episode in made if episode.length > 1]
    for read, source in zip(data.iterate_episodes(), kept, strict=True):
        np.testing.assert_array_equal(read.actions, source.actions[:-1])
        np.testing.assert_array_equal(read.observations["agent"], source.observations["agent"])
        assert not read.rewards.any()
        assert read.truncations[-1]
    assert "rewards unknown" in data.storage.metadata["description"]


def test_one_task_and_label_of_several(make, tmp_path, monkeypatch):
    store, made = make(tasks=2)
    with pytest.raises(ConfigError, match="2 tasks") as caught:
        export_minari(store, target(tmp_path), SilentProgress())
    assert "--task push" in caught.value.hint
    with pytest.raises(ConfigError, match="no task 'plul'"):
        export_minari(store, target(tmp_path, task="plul"), SilentProgress())
    with pytest.raises(ConfigError, match="no episode"):
        export_minari(store, target(tmp_path, task="push", label="poor"), SilentProgress())
    result = export_minari(store, target(tmp_path, task="pull", label="poor"), SilentProgress())
    assert result.episodes == 2
    read = next(iter(load(tmp_path, monkeypatch).iterate_episodes()))
    np.testing.assert_array_equal(read.actions, made[1].actions)


def test_what_exists_is_not_overwritten_and_nothing_half_made_stays(make, tmp_path, monkeypatch):
    store, _ = make()
    monkeypatch.setattr(SnippetStore, "features", None)
    monkeypatch.setattr(SnippetStore, "read", lambda *words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_minari(store, target(tmp_path), SilentProgress())
    assert not list((tmp_path / "minari").rglob("*.hdf5"))
    monkeypatch.undo()
    export_minari(store, target(tmp_path), SilentProgress())
    with pytest.raises(DataError, match="exists already"):
        export_minari(store, target(tmp_path), SilentProgress())


@pytest.mark.parametrize("name", ["toy/push", "../../escape-v0", "", "/abs/x-v0"])
def test_a_malformed_name_is_refused(make, tmp_path, name):
    store, _ = make()
    with pytest.raises(ConfigError, match="not the name of a Minari dataset"):
        export_minari(store, MinariTarget(name, tmp_path / "minari"), SilentProgress())
    assert not (tmp_path / "minari").exists()


def test_minari_that_is_not_installed_names_its_extra(make, tmp_path, monkeypatch):
    import sys

    store, _ = make()
    monkeypatch.setitem(sys.modules, "minari.dataset.minari_dataset", None)
    with pytest.raises(MissingExtraError) as caught:
        export_minari(store, target(tmp_path), SilentProgress())
    assert caught.value.hint == install_extra("minari")


def publish(tmp_path, name, spec):
    with Workspace(tmp_path / "runs").begin("snippets", name, config={}, inputs=[]) as draft:
        writer = SnippetWriter(draft.path / "snippets.zarr", spec)
        for episode in episodes(spec):
            writer.append(episode)
        draft.publish(writer.close(), seed=0)


@pytest.mark.slow
def test_export_and_ingest_on_the_command_line(make, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    publish(tmp_path, "toy", SPEC)
    assert main(["export", "minari", "--json", "--id", "toy/mixed-v0"]) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert answer["artifact"] is None
    assert answer["path"] == "minari/toy/mixed-v0"
    assert answer["summary"]["source"] == "snippets/toy:v1"
    assert "reading snippets/toy:v1" in err
    assert "next" not in answer["summary"]
    assert "evaluate on snippets/toy:v1" in answer["summary"]["note"]
    words = ["ingest", "minari", answer["path"], "--env", "pusht/push"]
    assert main([*words, "--name", "back", "-q"]) == 0
    capfd.readouterr()
    assert main(["export", "minari", "toy", "-q"]) == 2
    assert "--id is missing" in capfd.readouterr().err
    assert main(["export", "arrow", "toy", "-q"]) == 2
    capfd.readouterr()
    assert main(["export", "minari", "--id", "toy/other-v0", "-q"]) == 1
    assert "hint: name one: lwdctl export minari NAME" in capfd.readouterr().err
    first, back = (
        SnippetStore.open(Workspace(tmp_path / "runs").resolve("snippets", name).path)
        for name in ("toy", "back")
    )
    order = np.argsort(back.episodes.seed)
    for index, other in enumerate(order.tolist()):
        length = LENGTHS[index]
        assert back.episodes.length[other] == length
        for key in ("agent", "block.angle", "action", "reward"):
            start, there = int(first.episodes.start[index]), int(back.episodes.start[other])
            np.testing.assert_array_equal(
                first.read(key, start, start + length), back.read(key, there, there + length)
            )


def test_a_set_that_gymnasium_can_rebuild_names_the_command_that_reads_it(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    publish(tmp_path, "cheetah", ONE_KEY)
    words = ["export", "minari", "cheetah", "--id", "toy/cheetah-v0", "--workspace", "runs"]
    assert main([*words, "--json", "-q"]) == 0
    summary = json.loads(capfd.readouterr().out)["summary"]
    assert summary["next"] == (
        "lwdctl ingest minari minari/toy/cheetah-v0 --env mujoco/HalfCheetah-v4"
    )
    assert "note" not in summary


def test_help_says_what_a_set_does_not_hold(capfd):
    assert main(["export", "minari", "--help"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "labels, recorded initial states" in text
    assert "every episode ends as a truncation" in text
