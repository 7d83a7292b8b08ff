"""Diffusion Policy's PushT buffers: directory or zip, and the angle as sine and cosine."""

from __future__ import annotations

import zipfile

import numpy as np
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from lwdctl.configs import IngestConfig
from lwdctl.data.reader import open_source


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
