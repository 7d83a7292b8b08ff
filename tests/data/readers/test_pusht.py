"""Diffusion Policy's PushT buffers: directory or zip, and the angle as sine and cosine."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.checks import NonFiniteError
from lwdctl.data.ingest import ingest
from lwdctl.data.reader import open_source, recognize


def test_zip_is_read_like_the_directory(make_sample, tmp_path):
    path = make_sample("pusht", tmp_path).path
    archive = tmp_path / "sample.zarr.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                target.write(file, file.relative_to(path))
    with (
        open_source("pusht", (path,), IngestConfig()) as one,
        open_source("pusht", (archive,), IngestConfig()) as other,
    ):
        assert [item.length for item in one.episodes] == [item.length for item in other.episodes]
        for index in range(len(one.episodes)):
            first, second = one.read(index), other.read(index)
            for key, values in first.observations.items():
                np.testing.assert_array_equal(values, second.observations[key])
            np.testing.assert_array_equal(first.actions, second.actions)


def test_keys_match_the_simulators(make_sample, tmp_path):
    with open_source("pusht", (make_sample("pusht", tmp_path).path,), IngestConfig()) as reader:
        spec = reader.spec
        assert spec.network_keys == ("agent_position", "block_position", "block_angle_sincos")
        assert [item.name for item in spec.observations if not item.network] == ["keypoint"]
        assert spec.action.reference == "agent_position"
        assert (spec.env.adapter, spec.env.tasks, spec.env.max_steps) == ("pusht", ("push_t",), 300)
        episode, second = reader.read(0), reader.read(1)
    np.testing.assert_array_equal(
        episode.initial_state[:2].astype(np.float32), episode.observations["agent_position"][0]
    )
    assert len(episode.actions) + len(second.actions) == 7


def test_keypoints_are_optional(make_sample, tmp_path):
    path = make_sample("pusht", tmp_path).path
    del zarr.open_group(path, mode="a")["data/keypoint"]
    with open_source("pusht", (path,), IngestConfig()) as reader:
        assert "keypoint" not in [item.name for item in reader.spec.observations]


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    angle=st.floats(-20, 20, width=32),
    chunk=st.integers(1, 20),
)
def test_episodes_partition_the_rows_and_angles_wrap(tmp_path_factory, lengths, angle, chunk):
    path = tmp_path_factory.mktemp("buffer") / "a.zarr"
    rows = sum(lengths)
    group = zarr.open_group(path, mode="w", zarr_format=2)
    state = np.arange(1, rows * 5 + 1, dtype=np.float32).reshape(rows, 5)
    state[:, 4] = angle
    for key, values in {
        "data/state": state,
        "data/action": state[:, :2] + 1,
        "meta/episode_ends": np.cumsum(lengths),
    }.items():
        group.create_array(key, data=values, chunks=(chunk, *values.shape[1:]))
    with open_source("pusht", (path,), IngestConfig()) as reader:
        episodes = [reader.read(index) for index in range(len(reader.episodes))]
        assert [item.length for item in reader.episodes] == lengths
    positions = np.concatenate([item.observations["agent_position"] for item in episodes])
    np.testing.assert_array_equal(positions, state[:, :2])
    turn = np.concatenate([item.observations["block_angle_sincos"] for item in episodes])
    np.testing.assert_allclose(turn[:, 0] ** 2 + turn[:, 1] ** 2, 1, atol=1e-5)
    np.testing.assert_allclose(np.arctan2(turn[:, 0], turn[:, 1]) % (2 * np.pi),
                               np.float64(np.float32(angle)) % (2 * np.pi), atol=1e-4)  # fmt: skip


def read_all(path, data_format="pusht", **options):
    with open_source(data_format, (path,), IngestConfig(**options)) as reader:
        return [reader.read(index) for index in range(len(reader.episodes))], reader.findings


def fill(group, values):
    for key, array in values.items():
        group.create_array(key, data=array, chunks=(4, *array.shape[1:]))


def small_buffer(path, rows=16, zarr_format=2):
    state = np.arange(1, rows * 5 + 1, dtype=np.float64).reshape(rows, 5)
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    fill(group, {"data/state": state, "data/action": state[:, :2] + 0.5,
                 "meta/episode_ends": np.array([6, rows])})  # fmt: skip
    return group, state


def test_rows_after_the_last_episode_are_left_out_and_named(tmp_path):
    group, state = small_buffer(tmp_path / "a.zarr")
    group["meta/episode_ends"][:] = [6, 11]
    episodes, findings = read_all(tmp_path / "a.zarr")
    assert [item.length for item in episodes] == [6, 5]
    np.testing.assert_array_equal(episodes[1].actions, state[6:11, :2] + 0.5)
    (found,) = findings
    assert (found.check, found.severity, found.values) == ("left-out", "note", {"rows": 5})
    assert "rows 11:16" in found.message


def test_ends_that_look_like_last_rows_are_a_warning(tmp_path):
    group, _ = small_buffer(tmp_path / "a.zarr")
    group["meta/episode_ends"][:] = [5, 15]
    _, (found,) = read_all(tmp_path / "a.zarr")
    assert (found.severity, found.values) == ("warning", {"rows": 1})


def test_image_with_a_codec_that_is_not_installed_does_no_harm(tmp_path):
    path = tmp_path / "a.zarr"
    group, state = small_buffer(path)
    fill(group, {"data/img": np.ones((16, 4, 4, 3), np.uint8)})
    metadata = path / "data" / "img" / ".zarray"
    content = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**content, "compressor": {"id": "imagecodecs_jpegxl"}}))
    assert recognize(path).format == "pusht"
    episodes, (found,) = read_all(path)
    np.testing.assert_array_equal(episodes[0].observations["agent_position"], state[:6, :2])
    assert (found.check, found.values) == ("left-out", {"keys": ["data/img"]})


@pytest.mark.parametrize("top", ["pusht_cchi_v7_replay.zarr", "data/pusht/replay.zarr"])
def test_zip_with_folders_around_the_store_is_opened(tmp_path, top):
    path = tmp_path / "a.zarr"
    _, state = small_buffer(path)
    archive = tmp_path / "pusht.zarr.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("__MACOSX/._replay", b"x")
        for file in sorted(path.rglob("*")):
            target.write(file, Path(top) / file.relative_to(path))
    assert recognize(archive).format == "pusht"
    episodes, findings = read_all(archive)
    np.testing.assert_array_equal(episodes[1].observations["block_position"], state[6:, 2:4])
    assert not findings


def test_zip_of_another_store_is_refused(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    fill(group, {"data/state": np.zeros((4, 3)), "data/action": np.zeros((4, 2))})
    archive = tmp_path / "a.zarr.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for file in sorted((tmp_path / "a.zarr").rglob("*")):
            target.write(file, file.relative_to(tmp_path / "a.zarr"))
    with pytest.raises(DataError, match=r"data/state: has shape \(4, 3\)"):
        read_all(archive)


def test_zip_of_two_stores_is_refused(tmp_path):
    path = tmp_path / "a.zarr"
    small_buffer(path)
    archive = tmp_path / "both.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for top in ("one", "two"):
            target.write(path / ".zgroup", f"{top}/.zgroup")
    with pytest.raises(DataError, match="several stores: one, two"):
        read_all(archive)


def test_chunks_of_the_fill_value_that_version_3_leaves_out_are_read(tmp_path):
    path = tmp_path / "a.zarr"
    group, state = small_buffer(path, zarr_format=3)
    group["data/action"][4:8] = 0.0  # zarr removes the chunk
    assert not (path / "data" / "action" / "c" / "1" / "0").exists()
    episodes, (found,) = read_all(path)
    actions = np.concatenate([item.actions for item in episodes])
    expected = (state[:, :2] + 0.5).astype(np.float32)
    expected[4:8] = 0.0
    np.testing.assert_array_equal(actions, expected)
    assert (found.check, found.severity) == ("missing-chunks", "warning")
    assert found.values["rows"] == {"data/action": 4}


def test_rows_that_every_array_misses_were_never_written(tmp_path):
    path = tmp_path / "a.zarr"
    group, _ = small_buffer(path, zarr_format=3)
    for key in ("state", "action"):
        (path / "data" / key / "c" / "3" / "0").unlink()
    group["meta/episode_ends"][:] = [12, 16]
    with open_source("pusht", (path,), IngestConfig()) as reader:
        reader.read(0)
        with pytest.raises(NonFiniteError, match="from row 12") as caught:
            reader.read(1)
    assert "--on-nan drop" in caught.value.hint
    config = IngestConfig(on_nan="drop", validation_fraction=0)
    with open_source("pusht", (path,), config) as reader:
        store, summary = ingest(reader, config)
    assert (store.steps, summary["dropped_episodes"]) == (12, 1)


def test_hint_of_a_missing_chunk_writes_the_fill_value_when_followed(tmp_path):
    path = tmp_path / "a.zarr"
    group, state = small_buffer(path)
    group["data/action"][4:8] = 0.0
    with pytest.raises(NonFiniteError, match="1 of 4 chunks are missing") as caught:
        read_all(path)
    code = shlex.split(caught.value.hint.partition("python -c ")[2])[0]
    subprocess.run([sys.executable, "-c", code], check=True)
    episodes, findings = read_all(path)
    assert not findings
    actions = np.concatenate([item.actions for item in episodes])
    np.testing.assert_array_equal(actions[4:8], np.zeros((4, 2)))
    np.testing.assert_array_equal(actions[8:], state[8:, :2].astype(np.float32) + 0.5)


@pytest.mark.parametrize(
    ("env", "expected"),
    [(None, ("pusht", "push_t")), ("pusht/PushT-v0", ("pusht", "push_t")),
     ("mysim:Sim/mytask", ("mysim:Sim", "mytask")), ("mysim:Sim", ("mysim:Sim", "push_t"))],
)  # fmt: skip
def test_another_environment_has_the_requested_task(tmp_path, env, expected):
    path = tmp_path / "a.zarr"
    small_buffer(path)
    with open_source("pusht", (path,), IngestConfig(env=env)) as source:
        assert (source.spec.env.adapter, *source.spec.env.tasks) == expected
        assert {item.task for item in source.episodes} == {expected[1]}


def test_an_environment_with_other_actions_is_refused(tmp_path):
    small_buffer(tmp_path / "a.zarr")
    with pytest.raises(DataError, match="actions have 2 components, 'robosuite/Lift' takes at"):
        open_source("pusht", (tmp_path / "a.zarr",), IngestConfig(env="robosuite/Lift"))


def test_options_decide_and_unused_ones_are_refused(tmp_path):
    path = tmp_path / "a.zarr"
    small_buffer(path)
    with open_source("pusht", (path,), IngestConfig(max_steps=77, drop=("block_position",))) as one:
        assert one.spec.env.max_steps == 77
        assert one.spec.network_keys == ("agent_position", "block_angle_sincos")
    with pytest.raises(DataError, match="--drop: no observation 'block'"):
        read_all(path, drop=("block",))
    with pytest.raises(DataError, match="--action-key"):
        read_all(path, action_key="data/action")
