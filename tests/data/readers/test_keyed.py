"""Files with keys of their own: episodes and values, checks, and hints that work when followed."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.data.ingest import ingest
from lwdctl.data.reader import open_source, recognize

CONTAINERS = ("hdf5", "zarr", "npz")
ROWS = 12
OBS = np.arange(ROWS * 3, dtype=np.float64).reshape(ROWS, 3)
ACTION = -np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2)
KEYS = {"observation_keys": ("obs",), "action_key": "action"}


def save(path, arrays):
    """Write arrays into a file of the container that the suffix names."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".hdf5":
        with h5py.File(path, "w") as file:
            for key, values in arrays.items():
                file[key] = values
    else:
        group = zarr.open_group(path, mode="w", zarr_format=2)
        for key, values in arrays.items():
            group.create_array(
                key, data=values, chunks=values.shape, config={"write_empty_chunks": True}
            )
    return path


@pytest.fixture(params=CONTAINERS)
def container(request):
    return request.param


@pytest.fixture
def make(container, tmp_path):
    """Return a writer of a file with `obs`, `action` and more arrays in every container."""

    def write(**more):
        return save(tmp_path / f"a.{container}", {"obs": OBS, "action": ACTION, **more})

    return write


def read_all(data_format, path, **options):
    with open_source(data_format, (path,), IngestConfig(**options)) as reader:
        episodes = [reader.read(index) for index in range(len(reader.episodes))]
        return reader.spec, episodes, reader.findings


def checks(findings, check):
    return [item for item in findings if item.check == check]


def follow(hint):
    """Read what a proposed command reads, recognizing its file first."""
    words = shlex.split(hint)
    assert words[:2] == ["lwdctl", "ingest"]
    data_format, path, *options = words[2:]
    values = {}
    for name, value in zip(options[::2], options[1::2], strict=True):
        key = name.removeprefix("--").replace("-", "_")
        values[key] = tuple(value.split(",")) if key == "observation_keys" else value
    return read_all(data_format, Path(path), **values)


ENDS = {
    "episode_ends": ("ends", np.array([5, 12])),
    "lengths_key": ("lengths", np.array([5, 7], np.int32)),
    "terminals_key": ("dones", np.isin(np.arange(ROWS), [4, 11])),
}


@pytest.mark.parametrize("option", ENDS)
def test_episodes_have_the_rows_of_the_file(container, make, option):
    key, values = ENDS[option]
    path = make(**{key: values})
    spec, episodes, findings = read_all(container, path, **KEYS, **{option: key})
    assert [item.source for item in episodes] == ["rows 0:5", "rows 5:12"]
    np.testing.assert_array_equal(episodes[1].observations["obs"], OBS[5:])
    np.testing.assert_array_equal(episodes[0].actions, ACTION[:5])
    assert (spec.source_format, spec.network_keys, spec.env.max_steps) == (container, ("obs",), 7)
    assert (spec.action.low, spec.action.high, spec.action.limits) == ((), (), "")
    assert episodes[0].rewards is None
    assert [item.severity for item in findings if item.severity != "note"] == ["warning"]
    assert checks(findings, "semantics")[0].hint.startswith("--actions delta")


@pytest.mark.parametrize("option", ENDS)
def test_without_options_the_hint_is_a_command_that_reads_the_file(container, make, option):
    key, values = ENDS[option]
    path = make(**{key: values}, image=np.zeros((ROWS, 4, 4, 3), np.uint8))
    assert recognize(path).format == container
    with pytest.raises(DataError, match=r"obs \(12, 3\) float64") as caught:
        read_all(container, path)
    assert f"--{option.replace('_', '-')} {key}" in caught.value.hint
    _, episodes, findings = follow(caught.value.hint)
    np.testing.assert_array_equal(episodes[1].actions, ACTION[5:])
    np.testing.assert_array_equal(episodes[1].observations["obs"], OBS[5:])
    assert any("image" in item.message for item in checks(findings, "left-out"))


def test_missing_ends_are_proposed_for_the_given_keys(container, make):
    path = make(meta=np.array([5, 12]), other=OBS)
    with pytest.raises(DataError, match="--episode-ends, --lengths-key") as caught:
        read_all(container, path, observation_keys=("other",), action_key="action")
    _, episodes, _ = follow(caught.value.hint)
    assert list(episodes[0].observations) == ["other"]
    assert [item.length for item in episodes] == [5, 7]


def test_file_without_ends_is_one_episode_when_asked_for(container, make):
    path = make()
    with pytest.raises(DataError) as caught:
        read_all(container, path)
    assert caught.value.hint.endswith("--terminals ignore")
    _, episodes, _ = follow(caught.value.hint)
    assert [item.length for item in episodes] == [ROWS]
    np.testing.assert_array_equal(episodes[0].actions, ACTION)


def test_two_ways_to_end_episodes_are_refused(container, make):
    with pytest.raises(DataError, match="--episode-ends and --lengths-key: give only one"):
        read_all(container, make(), **KEYS, episode_ends="a", lengths_key="b")


@pytest.mark.parametrize(
    ("option", "values", "expected"),
    [
        ("episode_ends", np.array([5, 13]), "row 1: last episode ends at 13"),
        ("episode_ends", np.array([5, 4, 12]), "row 1: episode ends at 4, not after 5"),
        ("episode_ends", np.array([0, 12]), "row 0: episode ends at 0"),
        ("episode_ends", np.array([5.5, 12.0]), "is not a list of row numbers"),
        ("lengths_key", np.array([5, 8]), "row 1: last episode ends at 13"),
        ("lengths_key", np.array([-1, 5]), "row 0: an episode of -1 steps"),
        ("lengths_key", np.array([0, 0]), "no episodes with steps"),
        ("terminals_key", np.zeros(11), "has 11 rows"),
        ("terminals_key", np.full(12, 0.5), "row 0: 0.5 is not a flag"),
        ("terminals_key", np.zeros((12, 2)), "not one flag a row"),
    ],
)
def test_wrong_ends_are_refused(container, make, option, values, expected):
    with pytest.raises(DataError, match=expected) as caught:
        read_all(container, make(e=values), **KEYS, **{option: "e"})
    assert "a." in caught.value.message


def test_rows_without_an_episode_and_episodes_without_rows_are_named(container, make):
    _, episodes, findings = read_all(
        container, make(n=np.array([3, 0, 4])), **KEYS, lengths_key="n"
    )
    assert [item.source for item in episodes] == ["rows 0:3", "rows 3:7"]
    messages = " ".join(item.message for item in checks(findings, "left-out"))
    assert "rows 7:12 belong to no episode" in messages
    assert "1 episodes have no steps" in messages


@pytest.mark.parametrize(
    ("terminals", "expected"),
    [
        ("first", ["rows 0:3", "rows 5:9", "rows 9:12"]),
        ("each", ["rows 0:3", "rows 3:4", "rows 4:5", "rows 5:9", "rows 9:12"]),
        ("ignore", ["rows 0:12"]),
    ],
)
def test_runs_of_flags(container, make, terminals, expected):
    flags = np.isin(np.arange(ROWS), [2, 3, 4, 8]).astype(np.float32)[:, None]
    _, episodes, findings = read_all(
        container, make(d=flags), **KEYS, terminals_key="d", terminals=terminals
    )
    assert [item.source for item in episodes] == expected
    runs = [item for item in findings if item.hint == "--terminals each"]
    assert [item.values for item in runs] == [{"rows": 2, "runs": 1}] * (terminals == "first")
    assert len(checks(findings, "adjusted")) == (terminals != "ignore")


def test_other_shapes_are_reshaped_and_images_refused(container, make):
    pose = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
    path = make(
        pose=pose, width=np.arange(ROWS, dtype=np.float32), ends=np.array([12]),
        camera=np.zeros((ROWS, 4, 4, 3), np.uint8),
    )  # fmt: skip
    spec, (episode,), findings = read_all(
        container, path, observation_keys=("pose", "width"), action_key="action",
        episode_ends="ends",
    )  # fmt: skip
    assert [(item.name, item.size) for item in spec.observations] == [("pose", 6), ("width", 1)]
    np.testing.assert_array_equal(episode.observations["pose"], pose.reshape(ROWS, 6))
    np.testing.assert_array_equal(episode.observations["width"][:, 0], np.arange(ROWS))
    assert {item.values["keys"][0] for item in checks(findings, "adjusted")} == {"pose", "width"}
    with pytest.raises(DataError, match="camera: holds images"):
        read_all(container, path, observation_keys=("camera",), action_key="action",
                 episode_ends="ends")  # fmt: skip


def test_discrete_actions_are_refused(container, make):
    path = make(a=np.arange(ROWS), ends=np.array([12]))
    with pytest.raises(DataError, match=r"a: holds one whole number .* discrete"):
        read_all(container, path, observation_keys=("obs",), action_key="a", episode_ends="ends")


def test_unequal_rows_and_unknown_keys_are_refused(container, make):
    path = make(short=OBS[:-1], ends=np.array([12]))
    with pytest.raises(DataError, match="short, row 11: has 11 rows, but action has 12"):
        read_all(container, path, observation_keys=("short",), action_key="action",
                 episode_ends="ends")  # fmt: skip
    with pytest.raises(DataError, match="no array 'actoin'") as caught:
        read_all(container, path, observation_keys=("obs",), action_key="actoin",
                 episode_ends="ends")  # fmt: skip
    assert "'action'" in caught.value.hint
    with pytest.raises(DataError, match="no array 'endz'"):
        read_all(container, path, **KEYS, episode_ends="endz")
    with pytest.raises(DataError, match="--drop: no observation 'x'"):
        read_all(container, path, **KEYS, episode_ends="ends", drop=("x",))


def test_rewards_success_labels_and_tasks_are_read(container, make):
    path = make(
        ends=np.array([5, 12]), rewards=np.arange(ROWS, dtype=np.float64), success=np.array([0, 1]),
        operator=np.r_[np.full(5, 2.0), np.full(7, 3.0)], level=np.array([7, 8]),
    )  # fmt: skip
    spec, episodes, findings = read_all(
        container, path, **KEYS, episode_ends="ends", label_from="operator", task_from="level"
    )
    np.testing.assert_array_equal(episodes[1].rewards, np.arange(5, 12))
    assert [item.success for item in episodes] == [False, True]
    assert [item.label for item in episodes] == ["2", "3"]
    assert [item.task for item in episodes] == ["7", "8"]
    assert (spec.labels, spec.env.tasks) == (("2", "3"), ("7", "8"))
    options = {**KEYS, "episode_ends": "ends", "label_from": "operator"}
    assert read_all(container, path, **options, label="mine")[0].labels == ("mine",)
    assert len(checks(findings, "read")) == 2
    with pytest.raises(DataError, match="--label-from: no attribute or array 'operatr'") as caught:
        read_all(container, path, **KEYS, episode_ends="ends", label_from="operatr")
    assert "'operator'" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([20230101.0, 20230102.0]), ["20230101", "20230102"]),
        (np.array([0.1234567, 0.1234568]), ["0.1234567", "0.1234568"]),
        (np.array([0.1, 16777216.0], np.float32), ["0.1", "16777216"]),
    ],
)
def test_numbers_that_differ_are_different_labels(make, container, values, expected):
    options = {**KEYS, "episode_ends": "ends", "label_from": "day"}
    _, episodes, _ = read_all(container, make(ends=np.array([5, 12]), day=values), **options)
    assert [item.label for item in episodes] == expected


def test_text_labels_are_read(tmp_path):
    arrays = {"obs": OBS, "action": ACTION, "ends": np.array([5, 12])}
    npz = save(tmp_path / "a.npz", {**arrays, "who": np.array(["ann", "bob"])})
    hdf5 = save(tmp_path / "a.hdf5", {**arrays, "who": np.array([b"ann", b"bob"])})
    store = save(tmp_path / "a.zarr", arrays)
    zarr.open_group(store, mode="a").create_array("who", shape=(2,), dtype=str, chunks=(2,))[:] = [
        "ann", "bob",
    ]  # fmt: skip
    for data_format, path in (("npz", npz), ("hdf5", hdf5), ("zarr", store)):
        _, episodes, _ = read_all(data_format, path, **KEYS, episode_ends="ends", label_from="who")
        assert [item.label for item in episodes] == ["ann", "bob"]


def test_labels_of_attributes_are_one_value(tmp_path):
    for name in ("a.hdf5", "a.zarr"):
        path = grouped(tmp_path / name)
        if path.suffix == ".zarr":
            for index in range(4):
                group = zarr.open_group(path, mode="a")[f"demos/ep_{index}"]
                group.attrs.update(user=f"u{index % 2}")
        options = {"observation_keys": ("obs/q",), "action_key": "act", "label_from": "user"}
        _, episodes, _ = read_all(path.suffix[1:], path, **options)
        assert [item.label for item in episodes] == ["u0", "u1", "u1"]
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["demos/ep_1"].attrs["user"] = [1, 2]
    with pytest.raises(DataError, match="--label-from: 'user' holds several values"):
        read_all("hdf5", tmp_path / "a.hdf5", **options)


def test_terminals_without_flags_are_refused(container, make):
    path = make(ends=np.array([5, 12]))
    with pytest.raises(DataError, match="--terminals: an array of ends"):
        read_all(container, path, **KEYS, episode_ends="ends", terminals="each")


def test_rewards_that_are_not_finite_are_left_out(container, make):
    rewards = np.zeros(ROWS)
    rewards[7] = np.nan
    _, episodes, findings = read_all(
        container, make(ends=np.array([5, 12]), reward=rewards), **KEYS, episode_ends="ends"
    )
    assert [item.rewards for item in episodes] == [None, None]
    assert any("reward: holds NaN" in item.message for item in checks(findings, "left-out"))


@pytest.mark.parametrize("kind", ["float64", "int64"])
def test_steps_that_float32_rounds_away_are_said(container, make, kind):
    steps = np.arange(ROWS)[:, None] * [0.015, 1.5] + [4198765.2, 4198765.2]
    if kind == "int64":
        steps = (steps * 1000).astype(np.int64)
    path = make(still=np.full((ROWS, 1), 1e9) + 1e-7 * OBS[:, :1], place=steps)
    keys = ("obs", "still", "place")
    _, _, findings = read_all(
        container, path, observation_keys=keys, action_key="action", terminals="ignore"
    )
    (found,) = checks(findings, "rounded")
    assert found.severity == "warning"
    assert found.where.endswith("place")
    assert found.values["components"] == [0]
    assert found.values["distinct"] == ROWS > 2 >= found.values["remaining"]


def test_environment_gives_limits_rate_and_step_limit(container, make):
    path = make(a=np.zeros((ROWS, 6), np.float32), ends=np.array([12]))
    spec, _, findings = read_all(
        container, path, observation_keys=("obs",), action_key="a", episode_ends="ends",
        env="mujoco/HalfCheetah-v4",
    )  # fmt: skip
    assert (spec.env.adapter, spec.env.tasks, spec.env.max_steps) == (
        "mujoco", ("HalfCheetah-v4",), 1000,
    )  # fmt: skip
    assert (spec.action.semantics, spec.action.control_rate) == ("torque", 20.0)
    assert spec.action.low == (-1.0,) * 6
    assert not checks(findings, "semantics")
    with pytest.raises(DataError, match=r"actions have 2 components, 'metaworld/reach' takes 4"):
        read_all(container, path, **KEYS, episode_ends="ends", env="metaworld/reach")


@pytest.mark.parametrize(
    ("actions", "semantics"), [("delta", "delta"), ("recorded-absolute", "absolute")]
)
def test_semantics_are_declared(container, make, actions, semantics):
    spec, _, findings = read_all(
        container, make(ends=np.array([12])), **KEYS, episode_ends="ends", actions=actions,
        max_steps=40,
    )  # fmt: skip
    assert (spec.action.semantics, spec.env.max_steps) == (semantics, 40)
    assert not checks(findings, "semantics")


def test_unknown_actions_cannot_be_converted(container, make):
    with pytest.raises(DataError, match="cannot be converted") as caught:
        read_all(container, make(e=np.array([12])), **KEYS, episode_ends="e", actions="absolute")
    assert "--actions recorded-absolute" in caught.value.hint


# --- one group per episode


def grouped(path, extra=0):
    arrays = {"note": np.zeros(3)}
    for index, length in enumerate((4, 3, 0, 5)):
        start = 10 * index
        rows = np.arange(start, start + length + extra, dtype=np.float32)
        arrays[f"demos/ep_{index}/obs/q"] = np.stack([rows, rows + 0.5], 1)
        arrays[f"demos/ep_{index}/act"] = np.arange(length, dtype=np.float32)[:, None] - start
    save(path, arrays)
    if path.suffix == ".hdf5":
        with h5py.File(path, "a") as file:
            for index in range(4):
                file[f"demos/ep_{index}"].attrs["user"] = f"u{index % 2}"
    return path


def test_groups_are_episodes(tmp_path):
    path = grouped(tmp_path / "a.hdf5")
    assert recognize(path).format == "hdf5"
    with pytest.raises(DataError, match="needs --observation-keys") as caught:
        read_all("hdf5", path)
    assert "--observation-keys obs/q --rename obs/q=q --action-key act" in caught.value.hint
    _, episodes, findings = follow(caught.value.hint)
    assert [item.source for item in episodes] == ["demos/ep_0", "demos/ep_1", "demos/ep_3"]
    np.testing.assert_array_equal(episodes[1].observations["q"][:, 1], [10.5, 11.5, 12.5])
    np.testing.assert_array_equal(episodes[2].actions[:, 0], np.arange(5) - 30)
    assert episodes[0].final_observation is None
    assert any("demos/ep_2" in item.message for item in checks(findings, "left-out"))
    _, episodes, _ = read_all(
        "hdf5", path, observation_keys=("obs/q",), action_key="act", label_from="user"
    )
    assert [item.label for item in episodes] == ["u0", "u1", "u1"]


def test_groups_with_one_more_observation_have_a_final_one(tmp_path):
    _, episodes, _ = read_all(
        "zarr", grouped(tmp_path / "a.zarr", extra=1), observation_keys=("obs/q",),
        action_key="act",
    )  # fmt: skip
    assert [item.length for item in episodes] == [4, 3, 5]
    np.testing.assert_array_equal(episodes[0].final_observation["obs/q"], [4.0, 4.5])
    np.testing.assert_array_equal(episodes[0].observations["obs/q"][-1], [3.0, 3.5])


def test_groups_inside_an_episode_are_no_episodes(container, tmp_path):
    arrays = {}
    for index in range(3):
        arrays[f"ep_{index}/action"] = ACTION + index
        arrays[f"ep_{index}/obs/q"] = OBS
        arrays[f"ep_{index}/obs/action"] = arrays[f"ep_{index}/raw/action"] = ACTION
    path = save(tmp_path / f"a.{container}", arrays)
    with pytest.raises(DataError, match="needs --observation-keys") as caught:
        read_all(container, path)
    _, episodes, findings = follow(caught.value.hint)
    assert [item.source for item in episodes] == ["ep_0", "ep_1", "ep_2"]
    np.testing.assert_array_equal(episodes[2].actions, ACTION + 2)
    left_out = checks(findings, "left-out")[-1]
    assert sorted(left_out.values["keys"]) == ["obs/action", "raw/action"]


def test_groups_that_disagree_are_refused(tmp_path):
    path = grouped(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["demos/ep_1/obs/q"]
    options = {"observation_keys": ("obs/q",), "action_key": "act"}
    with pytest.raises(DataError, match="no array 'demos/ep_1/obs/q'"):
        read_all("hdf5", path, **options)
    with h5py.File(path, "a") as file:
        file["demos/ep_1/obs/q"] = np.zeros((3, 4))
    with pytest.raises(DataError, match="ep_1/obs/q, row 0: has 4 components"):
        read_all("hdf5", path, **options)
    with pytest.raises(DataError, match="every group with 'act' is an episode"):
        read_all("hdf5", path, **options, lengths_key="note")


# --- replay buffers


def test_replay_buffer_has_default_keys(tmp_path):
    pose = np.arange(ROWS * 6, dtype=np.float64).reshape(ROWS, 6)
    path = save(tmp_path / "replay.zarr", {
        "data/robot_eef_pose": pose,
        "data/robot_joint": OBS,
        "data/action": ACTION,
        "data/timestamp": np.arange(ROWS, dtype=np.float64),
        "data/camera_0": np.zeros((ROWS, 8, 8, 3), np.uint8),
        "data/img": np.zeros((ROWS, 8, 8, 3), np.float32),
        "meta/episode_ends": np.array([5, 10]),
    })  # fmt: skip
    found = recognize(path)
    assert (found.format, found.reason) == (
        "zarr", "data/action and meta/episode_ends of a replay buffer",
    )  # fmt: skip
    spec, episodes, findings = read_all(None, path)
    assert spec.network_keys == ("data/robot_eef_pose", "data/robot_joint")
    np.testing.assert_array_equal(episodes[1].observations["data/robot_eef_pose"], pose[5:10])
    np.testing.assert_array_equal(episodes[1].actions, ACTION[5:10])
    messages = " ".join(item.message for item in checks(findings, "left-out"))
    for word in ("data/camera_0, data/img: images", "data/timestamp: not observed", "rows 10:12"):
        assert word in messages
    spec, _, _ = read_all("zarr", path, drop=("data/robot_joint",))
    assert spec.network_keys == ("data/robot_eef_pose",)


def test_replay_buffer_goes_into_a_store(tmp_path):
    path = save(tmp_path / "replay.zarr", {
        "data/obs": OBS, "data/action": ACTION, "meta/episode_ends": np.array([5, 12]),
    })  # fmt: skip
    config = IngestConfig(validation_fraction=0)
    with open_source(None, (path,), config) as reader:
        store, _ = ingest(reader, config, tmp_path / "snippets.zarr")
    rows = np.sort(store.read("data/obs", 0, ROWS)[:, 0])
    np.testing.assert_array_equal(rows, OBS[:, 0])


# --- npz files are not trusted


def test_objects_are_not_unpickled(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, obs=OBS, action=ACTION, ends=np.array([12]), info=np.array([{"a": 1}]))
    _, episodes, findings = read_all("npz", path, **KEYS, episode_ends="ends")
    assert len(episodes) == 1
    assert any("info: no numbers (object)" in item.message for item in findings)
    with pytest.raises(DataError, match="info: holds object, not numbers"):
        read_all("npz", path, observation_keys=("info",), action_key="action", episode_ends="ends")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
def test_every_storage_gives_the_same_numbers(tmp_path, save_npz, order):
    path = tmp_path / "a.npz"
    save_npz(
        path, obs=np.asarray(OBS, order=order), action=ACTION.astype(">f4"), n=np.array([5, 7])
    )
    _, episodes, _ = read_all("npz", path, **KEYS, lengths_key="n")
    np.testing.assert_array_equal(episodes[1].observations["obs"], OBS[5:])
    np.testing.assert_array_equal(episodes[1].actions, ACTION[5:])


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
def test_changed_bytes_are_noticed_by_the_checksum(tmp_path, save_npz):
    path = tmp_path / "a.npz"
    save_npz(path, obs=OBS, action=ACTION, ends=np.array([12]))
    with zipfile.ZipFile(path) as archive:
        item = archive.getinfo("obs.npy")
    content = bytearray(path.read_bytes())
    content[item.header_offset + 30 + len("obs.npy") + item.compress_size - 20] ^= 0x55
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="obs: is damaged"):
        read_all("npz", path, **KEYS, episode_ends="ends")


def header(shape):
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (118 - len(text) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_arrays_larger_than_their_member_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, action=ACTION, ends=np.array([12]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("obs.npy", header((12, 10**6)) + b"1234")
    with pytest.raises(DataError, match=r"obs: is damaged .declares shape"):
        read_all("npz", path, **KEYS, episode_ends="ends")
    with pytest.raises(DataError, match="more than 1,000") as caught:
        read_all("npz", path, **KEYS, episode_ends="ends", max_bytes=1000)
    assert "--max-bytes" in caught.value.hint


def test_zip_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lwdctl.data.files.bounds.SUSPICIOUS_BYTES", 2**20)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, obs=np.zeros((ROWS, 2**17)), action=ACTION, ends=np.array([12]))
    with pytest.raises(DataError, match="no recording compresses so well"):
        read_all("npz", path, **KEYS, episode_ends="ends")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x93NUMPY"])
def test_what_is_no_npz_file_is_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not an npz file"):
        read_all("npz", path, **KEYS, episode_ends="ends")


@pytest.mark.parametrize("container_name", ["hdf5", "npz"])
def test_random_damage_is_a_data_error_or_changes_nothing_that_a_checksum_sees(
    container_name, tmp_path
):
    path = save(tmp_path / f"a.{container_name}",
                {"obs": OBS, "action": ACTION, "ends": np.array([5, 12])})  # fmt: skip
    intact = path.read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(60):
        content = bytearray(intact)
        for position in rng.integers(len(content), size=4):
            content[position] = int(rng.integers(256))
        path.write_bytes(bytes(content))
        try:
            _, episodes, _ = read_all(container_name, path, **KEYS, episode_ends="ends")
        except (DataError, ConfigError) as error:
            refused += 1
            assert str(path) in error.message  # noqa: PT017 - some damage is harmless
        else:
            if container_name == "npz" and len(episodes) == 2:
                np.testing.assert_array_equal(episodes[0].observations["obs"], OBS[:5])
    assert refused


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    shape=st.lists(st.integers(1, 3), max_size=2),
    container_name=st.sampled_from(CONTAINERS),
    option=st.sampled_from(list(ENDS)),
)
def test_any_layout_is_read_back(tmp_path_factory, lengths, shape, container_name, option):
    path = tmp_path_factory.mktemp("layout") / f"a.{container_name}"
    rows = sum(lengths)
    obs = np.random.default_rng(rows).normal(size=(rows, *shape)).astype(np.float32)
    ends = np.cumsum(lengths)
    flags = np.isin(np.arange(rows), ends - 1)
    where = {"episode_ends": ends, "lengths_key": np.array(lengths), "terminals_key": flags}
    save(path, {"x/obs": obs, "x/u": obs.reshape(rows, -1), "e": where[option]})
    _, episodes, _ = read_all(
        container_name, path, observation_keys=("x/obs",), action_key="x/u", **{option: "e"},
        **({"terminals": "each"} if option == "terminals_key" else {}),
    )  # fmt: skip
    assert [item.length for item in episodes] == lengths
    found = np.concatenate([item.observations["x/obs"] for item in episodes])
    np.testing.assert_array_equal(found, obs.reshape(rows, -1))
