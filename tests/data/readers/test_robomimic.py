"""robomimic's layout: versions of env_args and `object`, masks, and our own writer."""

from __future__ import annotations

import dataclasses
import json

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import Episode
from lwdctl.data.reader import open_source
from lwdctl.data.readers.robomimic_writer import RobomimicWriter

OLD = {"type": "OSC_POSE", "control_delta": True}
NEW = {"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE", "input_type": "delta"}}}


def rotation(quaternion):
    """Rotation matrix of a unit quaternion x, y, z, w."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def scene(task, steps, seed, *, old):
    """Observations of a scene as robosuite before or from 1.5 writes them."""
    rng = np.random.default_rng(seed)
    effector = np.array([0.0, 0.0, 1.0]) + 0.1 * rng.normal(size=(steps, 3))
    quaternion = rng.normal(size=(steps, 4))
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    position = np.array([0.1, 0.1, 0.8]) + 0.1 * rng.normal(size=(steps, 3))
    turn = rng.normal(size=(steps, 4))
    offset = position - effector
    if task == "Lift":
        objects = np.concatenate([position, turn, -offset if old else offset], axis=1)
    else:
        pairs = zip(quaternion, offset, strict=True)
        relative = np.stack([rotation(item).T @ vector for item, vector in pairs])
        world, local = [position, turn], [relative, rng.normal(size=(steps, 4))]
        objects = np.concatenate([*world, *local] if old else [*local, *world], axis=1)
    return {
        "object": objects.astype(np.float32),
        "robot0_eef_pos": effector.astype(np.float32),
        "robot0_eef_quat": quaternion.astype(np.float32),
        "robot0_gripper_qpos": rng.normal(size=(steps, 2)).astype(np.float32),
        "robot0_joint_pos": rng.normal(size=(steps, 7)).astype(np.float32),
    }


@pytest.fixture
def robosuite_file(tmp_path):
    def make(task="Lift", version="1.5.1", *, old=False, controller=NEW, name="demo.hdf5"):
        path = tmp_path / name
        arguments = {
            "env_name": task,
            "type": 1,
            "env_version": version,
            "env_kwargs": {"controller_configs": controller, "control_freq": 20},
        }
        with RobomimicWriter(path, arguments) as writer:
            for seed in range(4):
                rows = scene(task, 9, seed, old=old)
                rewards = np.zeros(8, np.float32)
                rewards[-1] = seed % 2
                writer.write(
                    Episode(
                        source="",
                        observations={key: values[:-1] for key, values in rows.items()},
                        final_observation={key: values[-1] for key, values in rows.items()},
                        actions=np.zeros((8, 7), np.float32),
                        rewards=rewards,
                    )
                )
        return path

    return make


def read_all(path, **options):
    with open_source("robomimic", (path,), IngestConfig(**options)) as reader:
        return reader.spec, [reader.read(index) for index in range(len(reader.episodes))]


@pytest.mark.parametrize("task", ["Lift", "PickPlaceCan"])
def test_both_versions_of_object_become_one(robosuite_file, task):
    _, new = read_all(robosuite_file(task, "1.5.1", old=False, name="new.hdf5"))
    spec, old = read_all(robosuite_file(task, "1.4.1", old=True, controller=OLD, name="old.hdf5"))
    assert spec.env.settings["object_convention"] == "robosuite-1.5"
    for one, other in zip(new, old, strict=True):
        effector = one.observations["robot0_eef_pos"]
        for episode in (one, other):
            values = episode.observations["object"]
            if task == "Lift":
                np.testing.assert_allclose(values[:, 7:10], values[:, :3] - effector, atol=1e-6)
            else:
                distance = np.linalg.norm(values[:, 7:10] - effector, axis=1)
                np.testing.assert_allclose(
                    np.linalg.norm(values[:, :3], axis=1), distance, rtol=1e-4
                )
    np.testing.assert_allclose(
        old[0].final_observation["object"], new[0].final_observation["object"], atol=1e-6
    )


@pytest.mark.parametrize("task", ["Lift", "PickPlaceCan"])
@pytest.mark.parametrize("old", [True, False])
def test_version_is_told_from_the_data_where_the_file_names_none(robosuite_file, task, old):
    _, expected = read_all(robosuite_file(task, "1.5.1", name="expected.hdf5"))
    _, found = read_all(robosuite_file(task, "", old=old))
    np.testing.assert_allclose(
        found[1].observations["object"], expected[1].observations["object"], atol=1e-6
    )


@pytest.mark.parametrize("task", ["Lift", "PickPlaceCan"])
@pytest.mark.parametrize(("version", "old"), [("1.5.1", True), ("1.4.1", False)])
def test_version_that_the_data_contradict_is_refused(robosuite_file, task, version, old):
    with pytest.raises(DataError, match="env_version is") as caught:
        read_all(robosuite_file(task, version, old=old))
    assert "data/demo_0/obs/object, row 0" in caught.value.message


def test_object_that_fits_no_version_is_refused(robosuite_file):
    path = robosuite_file()
    with h5py.File(path, "a") as file:
        file["data/demo_1/obs/object"][:, 7:10] += 0.5
    with pytest.raises(DataError, match="data/demo_1/obs/object") as caught:
        read_all(path)
    assert caught.value.hint.startswith("--drop object ")
    spec, episodes = read_all(path, drop=("object",))
    assert "object" not in {item.name for item in spec.observations}
    assert len(episodes) == 4


@pytest.mark.parametrize("old", [False, True])
def test_a_conversion_of_object_is_said_once(robosuite_file, old):
    with open_source(
        "robomimic", (robosuite_file(version="1.4.1" if old else "1.5.1", old=old),), IngestConfig()
    ) as source:
        for index in range(len(source.episodes)):
            source.read(index)
        said = [item for item in source.findings if "before 1.5" in item.message]
    assert [(item.check, item.severity) for item in said] == [("adjusted", "note")] * old


def test_default_keys_are_what_networks_see_and_others_come_on_request(robosuite_file):
    path = robosuite_file()
    spec, _ = read_all(path)
    four = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
    assert spec.network_keys == four
    assert "robot0_joint_pos" not in [item.name for item in spec.observations]
    spec, episodes = read_all(path, observation_keys=("robot0_joint_pos", "object"))
    assert spec.network_keys == ("object",)
    assert list(episodes[0].observations) == ["robot0_joint_pos", "object"]
    spec, _ = read_all(path, observation_keys=("robot0_joint_pos",))
    assert spec.network_keys == ("robot0_joint_pos",)


@pytest.mark.parametrize(
    ("controller", "semantics"),
    [
        (OLD, "delta"),
        ({"type": "OSC_POSE"}, "delta"),
        ({"type": "OSC_POSE", "control_delta": False}, "absolute"),
        ([{"type": "OSC_POSE", "control_delta": False}] * 2, "absolute"),
        (NEW, "delta"),
        ({"body_parts": {"right": {"type": "OSC_POSE", "input_type": "absolute"}}}, "absolute"),
        ({"type": "JOINT_TORQUE"}, "torque"),
    ],
)
def test_action_semantics_of_every_version(robosuite_file, controller, semantics):
    spec, _ = read_all(robosuite_file(controller=controller))
    assert spec.action.semantics == semantics
    assert spec.action.control_rate == 20
    assert spec.env.adapter == "robosuite"
    assert spec.env.tasks == ("Lift",)
    assert spec.env.settings["env_args"]["env_kwargs"]["controller_configs"] == controller
    assert all(low < high for low, high in zip(spec.action.low, spec.action.high, strict=True))


def test_success_is_a_reward_of_one(robosuite_file):
    _, episodes = read_all(robosuite_file())
    assert [episode.success for episode in episodes] == [False, True, False, True]


def set_masks(path, **masks):
    with h5py.File(path, "a") as file:
        for name, members in masks.items():
            file[f"mask/{name}"] = np.array([f"demo_{member}" for member in members], dtype="S")


def test_operators_become_labels_and_masks_the_split(robosuite_file):
    path = robosuite_file()
    set_masks(
        path, better=[0, 1], better_operator_1=[0], better_operator_2=[1], worse=[2, 3],
        worse_operator_1=[2, 3], okay_better=[0, 1], better_operator_1_train=[0],
        train=[0, 1, 2], valid=[3],
    )  # fmt: skip
    spec, episodes = read_all(path)
    assert spec.labels == ("better_operator_1", "better_operator_2", "worse_operator_1")
    assert [episode.label for episode in episodes] == [*spec.labels, "worse_operator_1"]
    assert [episode.split for episode in episodes] == ["train"] * 3 + ["validation"]
    assert spec.env.max_steps == 500


def test_levels_are_labels_where_no_operator_is_named(robosuite_file):
    path = robosuite_file()
    set_masks(path, better=[0], okay=[1], worse=[2, 3], okay_better=[0, 1])
    assert read_all(path)[0].labels == ("better", "okay", "worse")


def test_operator_attribute_goes_before_masks(robosuite_file):
    path = robosuite_file()
    set_masks(path, better=[0, 1, 2, 3])
    with h5py.File(path, "a") as file:
        file["data/demo_2"].attrs["operator"] = "anna"
    assert [episode.label for episode in read_all(path)[1]] == [
        "better",
        "better",
        "anna",
        "better",
    ]


def test_filter_key_reads_a_subset_with_its_own_split(robosuite_file):
    path = robosuite_file()
    set_masks(path, half=[0, 3], half_train=[3], half_valid=[0], train=[0], valid=[3])
    _, episodes = read_all(path, filter_key="half")
    assert [(episode.source, episode.split) for episode in episodes] == [
        ("demo_0", "validation"), ("demo_3", "train"),
    ]  # fmt: skip


def test_states_and_model_are_kept(robosuite_file):
    path = robosuite_file()
    with h5py.File(path, "a") as file:
        file["data/demo_1/states"] = np.arange(16.0).reshape(8, 2)
        file["data/demo_1"].attrs["model_file"] = "<mujoco/>"
    _, episodes = read_all(path)
    np.testing.assert_array_equal(episodes[1].initial_state, [0.0, 1.0])
    assert episodes[0].initial_state is None
    assert {episode.model for episode in episodes} == {"<mujoco/>"}  # the only one there is


def test_writer_makes_what_robomimic_reads(make_sample, tmp_path):
    sample = make_sample("robomimic", tmp_path)
    with h5py.File(sample.path) as file:
        data = file["data"]
        assert json.loads(data.attrs["env_args"])["env_name"] == "metaworld/reach"
        assert data.attrs["total"] == sum(demo.attrs["num_samples"] for demo in data.values())
        demo = data["demo_4"]
        np.testing.assert_array_equal(
            demo["next_obs/observation"][:-1], demo["obs/observation"][1:]
        )
        assert demo["dones"][:].tolist() == [0] * (len(demo["dones"]) - 1) + [1]
        assert [name.decode() for name in file["mask/slow"]] == [f"demo_{i}" for i in range(6, 12)]


def test_writer_stores_models_beyond_the_old_attribute_limit(tmp_path):
    path = tmp_path / "a.hdf5"
    text = "<mujoco>" + "x" * 200_000
    with RobomimicWriter(path, {"type": "metaworld", "env_name": "metaworld/reach"}) as writer:
        rows = {"observation": np.zeros((2, 3), np.float32)}
        writer.write(Episode("", rows, np.zeros((2, 1), np.float32), model=text))
    assert read_all(path)[1][0].model == text


def test_writer_leaves_nothing_after_a_failure(tmp_path):
    path = tmp_path / "a.hdf5"
    with pytest.raises(DataError, match="no steps"), RobomimicWriter(path, {}) as writer:
        writer.write(Episode("", {}, np.zeros((0, 1), np.float32)))
    assert not path.exists()


finite = st.floats(-1e6, 1e6, width=32)


@st.composite
def episodes(draw):
    size = draw(st.integers(1, 4))
    result = []
    for seed in range(draw(st.integers(1, 4))):
        steps = draw(st.integers(1, 5))
        result.append(
            Episode(
                source=f"demo_{seed}",
                observations={
                    "observation": draw(arrays.arrays(np.float32, (steps, size), elements=finite))
                },
                final_observation={
                    "observation": draw(arrays.arrays(np.float32, (size,), elements=finite))
                },
                actions=draw(arrays.arrays(np.float32, (steps, 2), elements=finite)),
                rewards=draw(arrays.arrays(np.float32, (steps,), elements=finite)),
                initial_state=draw(arrays.arrays(np.float64, (3,), elements=st.floats(-1e9, 1e9))),
                task=draw(st.sampled_from(["reach", "drawer-open"])),
                label=draw(st.sampled_from(["", "expert", "novice"])),
                split=draw(st.sampled_from(["", "train", "validation"])),
                success=draw(st.sampled_from([True, False, None])),
                seed=draw(st.one_of(st.none(), st.integers(0, 99_999))),
            )
        )
    return result


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(written=episodes())
def test_what_is_written_is_read_back(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("round") / "a.hdf5"
    with RobomimicWriter(path, {"type": "metaworld", "env_name": "metaworld"}) as writer:
        for episode in written:
            writer.write(episode)
    _, found = read_all(path)
    for one, other in zip(written, found, strict=True):
        for field in dataclasses.fields(Episode):
            expected, value = getattr(one, field.name), getattr(other, field.name)
            np.testing.assert_equal(value, expected, err_msg=field.name)


STORAGE = {
    "contiguous": {"dtype": "<f8"},
    "single precision": {"dtype": "<f4"},
    "big-endian": {"dtype": ">f8"},
    "half precision": {"dtype": "<f2"},
    "chunks": {"dtype": "<f8", "chunks": (2, 2)},
    "compressed": {"dtype": "<f8", "compression": "gzip"},
    "integers": {"dtype": "<i8"},
    "unsigned bytes": {"dtype": "u1"},
}


@pytest.mark.parametrize("storage", STORAGE.values(), ids=STORAGE)
@pytest.mark.parametrize("block", [0, 1024])
def test_arrays_are_read_however_the_file_stores_them(tmp_path, storage, block):
    values = np.random.default_rng(0).uniform(0, 200, size=(5, 3))
    path = tmp_path / "stored.hdf5"
    with h5py.File(path, "w", userblock_size=block) as file:
        demo = file.create_group("data/demo_0")
        for key in ("obs/state", "next_obs/state", "actions"):
            demo.create_dataset(key, data=values.astype(storage["dtype"]), **storage)
        file["data/demo_1"] = h5py.SoftLink("/data/demo_0")
        file["data/demo_2"] = demo
    stored = values.astype(storage["dtype"]).astype(np.float32)
    with open_source("robomimic", [path], IngestConfig()) as source:
        assert len(source.episodes) == 3
        for number in range(3):
            episode = source.read(number)
            np.testing.assert_array_equal(episode.observations["state"], stored)
            np.testing.assert_array_equal(episode.final_observation["state"], stored[-1])
            np.testing.assert_array_equal(episode.actions, stored)


@pytest.mark.parametrize("block", [0, 512])
def test_data_that_was_never_written_is_not_read_as_its_fill_value(tmp_path, block):
    path = tmp_path / "sparse.hdf5"
    with h5py.File(path, "w", userblock_size=block) as file:
        file["data/demo_0/actions"] = np.ones((100, 3))
        file.create_dataset("data/demo_0/obs/state", (100, 3), "<f8", fillvalue=7.0)
    with (
        open_source("robomimic", [path], IngestConfig()) as source,
        pytest.raises(DataError, match=r"demo_0/obs/state, row 0: was never written"),
    ):
        source.read(0)


def test_observation_without_components_is_stored(tmp_path):
    path = tmp_path / "empty.hdf5"
    with h5py.File(path, "w") as file:
        for key, size in (("obs/none", 0), ("obs/state", 3), ("actions", 2)):
            file[f"data/demo_0/{key}"] = np.ones((5, size))
    with open_source("robomimic", [path], IngestConfig()) as source:
        store = SnippetStore.in_memory([source.read(0)], source.spec)
    assert store.features(("none", "state"), 0, 5).shape == (5, 3)


def test_disk_that_cannot_be_read_is_an_error_with_file_and_key(tmp_path, monkeypatch):
    path = tmp_path / "broken.hdf5"
    with h5py.File(path, "w") as file:
        for key in ("obs/state", "actions"):
            file[f"data/demo_0/{key}"] = np.ones((5, 3))

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    with open_source("robomimic", [path], IngestConfig()) as source:
        monkeypatch.setattr("os.preadv", fail)
        with pytest.raises(DataError, match=r"broken.hdf5: .*state, row 0: .*Input/output error"):
            source.read(0)


def test_array_that_was_cut_off_while_it_was_open_is_an_error(tmp_path):
    path = tmp_path / "shrinks.hdf5"
    with h5py.File(path, "w") as file:
        for key in ("obs/state", "actions"):
            file[f"data/demo_0/{key}"] = np.ones((100, 3))
    with open_source("robomimic", [path], IngestConfig()) as source:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 2000)
        with pytest.raises(DataError, match=r"demo_0/.*, row 0: cannot be read \(the file ends\)"):
            source.read(0)
