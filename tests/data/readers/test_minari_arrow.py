"""Minari datasets in arrow and parquet files: the same episodes, and damage that ends nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError, MissingExtraError, install_extra
from lwdctl.data.reader import open_source, recognize


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def found(reader, check, word=""):
    return [item for item in reader.findings if item.check == check and word in item.message]


@pytest.fixture
def made_by_minari(tmp_path, monkeypatch):
    """Return a function that lets minari write one dataset in a storage format."""
    minari = pytest.importorskip("minari")
    pytest.importorskip("pyarrow")
    import gymnasium as gym
    from minari.data_collector.episode_buffer import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    spaces = gym.spaces
    space = spaces.Dict(
        state=spaces.Box(-10, 10, (3,), np.float32),
        camera=spaces.Box(0, 255, (40, 40, 3), np.uint8),
        mission=spaces.Text(20),
        hand=spaces.Dict(pose=spaces.Box(-10, 10, (2, 2), np.float64), finger=spaces.Discrete(4)),
    )

    def write(data_format, **changes):
        buffers = []
        for index in range(12):
            steps = 4 + index
            rows = steps + 1
            values = {
                "observations": {
                    "state": numbers(rows, 3, seed=index),
                    "camera": np.full((rows, 40, 40, 3), index, np.uint8),
                    "mission": [f"go {index % 2}"] * rows,
                    "hand": {"pose": numbers(rows, 2, 2, seed=20 + index).astype(np.float64),
                             "finger": np.arange(rows) % 4},
                },
                "actions": numbers(steps, 1, seed=40 + index),
                "rewards": list(numbers(steps, seed=60 + index).astype(float)),
                "infos": {"success": [False] * steps + [index == 3],
                          "deep": {"level": [index] * rows}},
            }  # fmt: skip
            values |= {key: change(index, values[key]) for key, change in changes.items()}
            ends = [False] * (steps - 1)
            buffers.append(
                EpisodeBuffer(id=index, seed=100 + index, terminations=[False, *ends],
                              truncations=[*ends, True], **values)
            )  # fmt: skip
        minari.create_dataset_from_buffers(
            f"toy/{data_format}/expert-v0", buffers, env="Pendulum-v1", observation_space=space,
            data_format=data_format, algorithm_name="none", author="nobody",
            author_email="nobody@example.org", code_permalink="none", description="",
        )  # fmt: skip
        return tmp_path / "toy" / data_format / "expert-v0"

    return write


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_arrow_and_parquet_are_read_as_hdf5(made_by_minari, data_format):
    path, other = made_by_minari(data_format), made_by_minari("hdf5")
    assert recognize(path).format == "minari"
    options = IngestConfig(task_from="mission", label_from="level")
    with open_source("minari", (path,), options) as reader, open_source(
        "minari", (other,), options
    ) as reference:  # fmt: skip
        assert reader.spec == reference.spec
        assert reader.spec.env.tasks == ("go 0", "go 1")
        assert reader.episodes == reference.episodes
        assert reader.episodes[10].source == "episode_10"
        assert reader.episodes[10].seed == 110
        for index in range(12):
            ours, theirs = reader.read(index), reference.read(index)
            for key in ("state", "hand.pose", "hand.finger"):
                np.testing.assert_array_equal(ours.observations[key], theirs.observations[key])
                np.testing.assert_array_equal(
                    ours.final_observation[key], theirs.final_observation[key]
                )
            np.testing.assert_array_equal(ours.actions, theirs.actions)
            np.testing.assert_array_equal(ours.rewards, theirs.rewards)
            assert ours.success == theirs.success == (index == 3)
        np.testing.assert_array_equal(
            reader.read(2).observations["state"], numbers(7, 3, seed=2)[:-1]
        )
        reasons = found(reader, "left-out", "observation arrays")[0].values["keys"]
        assert {"camera", "mission"} == reasons.keys()


@pytest.mark.filterwarnings("ignore")
def test_arrow_without_the_last_observation(made_by_minari):
    def cut(index, values):
        if index != 5:
            return values
        return {key: cut(index, rows) if isinstance(rows, dict) else rows[:-1]
                for key, rows in values.items()}  # fmt: skip

    path = made_by_minari("arrow", observations=cut, infos=cut)
    with open_source("minari", (path,), IngestConfig()) as reader:
        assert reader.episodes[5].length == 9
        episode = reader.read(5)
        assert found(reader, "adjusted", "as many observations as actions")
    np.testing.assert_array_equal(episode.actions, numbers(9, 1, seed=45))
    assert episode.final_observation is None


@pytest.mark.filterwarnings("ignore")
def test_damaged_arrow_files_name_their_folder(made_by_minari):
    path = made_by_minari("arrow")
    file = path / "data" / "3" / "part-0.arrow"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=r"data/3: is damaged"):
        open_source("minari", (path,), IngestConfig())
    file.unlink()
    with pytest.raises(DataError, match=r"data/3: holds no \.arrow file"):
        open_source("minari", (path,), IngestConfig())


@pytest.fixture
def small_datasets(made_by_minari):
    """Return intact datasets of both formats, with the content of the file of an episode."""
    paths = [
        made_by_minari(name) / "data" / "3" / f"part-0.{name}" for name in ("arrow", "parquet")
    ]
    return [(path, path.read_bytes()) for path in paths]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example(which=0, place=0.1171875, values=b"\x00\x00\x80")
@example(which=1, place=0.458984375, values=b"\x00")
@given(which=st.integers(0, 1), place=st.floats(0, 1), values=st.binary(min_size=1, max_size=9))
def test_random_damage_is_a_data_error_or_harmless(small_datasets, which, place, values):
    path, intact = small_datasets[which]
    content = bytearray(intact)
    start = int(place * (len(content) - len(values)))
    content[start : start + len(values)] = values
    path.write_bytes(bytes(content))
    folder = path.parents[2]
    message, shapes, left_out = "", {}, []
    try:
        with open_source("minari", (folder,), IngestConfig()) as reader:
            shapes = {key: rows.shape for key, rows in reader.read(3).observations.items()}
            for item in found(reader, "left-out"):
                named = item.values.get("keys", item.values.get("episodes"))
                left_out += named if isinstance(named, list) else []  # a count: rewards, or infos
    except DataError as error:
        message = error.message
    # A damaged name makes an array one that this episode does not have; a damaged number of rows
    # may leave it none.
    is_left_out = "state" in left_out or "episode_3" in left_out
    assert str(folder) in message or shapes.get("state") == (7, 3) or is_left_out


NEGATIVE_LENGTHS = """
import struct, sys, warnings
from pathlib import Path
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.reader import open_source
warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
path = folder / "data" / "3" / "part-0.arrow"
intact, refused, place = path.read_bytes(), 0, -1
count = struct.pack("<q", 8)  # rows of the episode: seven steps and the padding
while (place := intact.find(count, place + 1)) >= 0:
    path.write_bytes(intact[:place] + struct.pack("<q", 8 - 2**56) + intact[place + 8 :])
    try:
        with open_source("minari", (folder,), IngestConfig()) as reader:
            reader.read(3)
    except DataError:
        refused += 1
print(refused)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_length_that_is_damaged_does_not_end_the_process(made_by_minari):
    """Arrow aborts where it computes with columns that were not checked."""
    done = subprocess.run(
        [sys.executable, "-c", NEGATIVE_LENGTHS, str(made_by_minari("arrow"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 5


@pytest.mark.filterwarnings("ignore")
def test_arrow_sizes_are_bounded(made_by_minari):
    path = made_by_minari("arrow")
    with pytest.raises(DataError, match="more than 100") as caught:
        open_source("minari", (path,), IngestConfig(max_bytes=100))
    assert "--max-bytes" in caught.value.hint


@pytest.mark.parametrize("content", ["{", "[]", "[" * 10**5])
def test_metadata_that_are_no_object_are_one_line(tmp_path, content):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.json").write_text(content)
    with pytest.raises(DataError, match=r"metadata\.json: ") as caught:
        open_source("minari", (tmp_path,), IngestConfig())
    assert "\n" not in caught.value.message


def test_missing_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.json").write_text(json.dumps({"data_format": "arrow"}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError) as caught:
        open_source("minari", (tmp_path,), IngestConfig())
    assert caught.value.hint == install_extra("parquet")
