"""The shared data sets, checked against what plain h5py and zarr say. Skipped without them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from lwdctl.configs import IngestConfig
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.data.reader import open_source
from lwdctl.envs.table import make_simulator

SHARED = Path(__file__).parents[3] / "shared" / "data"


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name} from ../shared/data")
    return path


@pytest.mark.slow
def test_halfcheetah_has_64_episodes_of_1000_per_level_and_the_same_returns():
    paths = [shared(f"d4rl/halfcheetah_{level}.hdf5") for level in ("expert", "medium", "random")]
    with open_source("d4rl", paths, IngestConfig()) as reader:
        assert reader.spec.labels == ("expert", "medium", "random")
        assert reader.spec.env.adapter == "mujoco"
        assert [item.length for item in reader.episodes] == [1000] * 192
        for number, path in enumerate(paths):
            with h5py.File(path) as file:
                expected = file["rewards"][:].reshape(64, 1000).sum(axis=1, dtype=np.float64)
                observations = file["observations"][:].reshape(64, 1000, 17)
            for index in range(0, 64, 7):
                episode = reader.read(64 * number + index)
                assert episode.rewards.sum(dtype=np.float64) == expected[index]
                np.testing.assert_array_equal(
                    episode.observations["observation"], observations[index]
                )
                # The recorded state is the one the observation was taken at.
                np.testing.assert_allclose(episode.initial_state[1:], observations[index, 0])


def test_walker2d_random_has_short_episodes():
    path = shared("d4rl/walker2d_random.hdf5")
    with open_source("d4rl", (path,), IngestConfig()) as reader:
        assert len(reader.episodes) == 3028
        lengths = [item.length for item in reader.episodes]
        assert (min(lengths), max(lengths)) == (7, 85)


def test_hammer_can_be_restored():
    with open_source("d4rl", (shared("d4rl/hammer_expert.hdf5"),), IngestConfig()) as reader:
        assert [item.length for item in reader.episodes] == [200] * 100
        assert reader.read(3).initial_state.shape == (33 + 33 + 3,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "episodes", "steps", "per_operator"),
    [("lift", 300, 22_207, [50] * 6), ("can", 227, 54_165, [33, 35, 39, 40, 40, 40])],
)
def test_operators_are_labels(name, episodes, steps, per_operator):
    path = shared(f"robomimic/{name}_mh_scripted.hdf5")
    with open_source("robomimic", (path,), IngestConfig()) as reader:
        outlines = reader.episodes
        assert (len(outlines), sum(item.length for item in outlines)) == (episodes, steps)
        assert sorted(Counter(outline.label for outline in outlines).values()) == per_operator
        assert Counter(outline.split for outline in outlines)["validation"] == episodes // 10 - (
            1 if name == "can" else 0
        )
        for index in range(0, episodes, 50):
            episode = reader.read(index)
            assert episode.success
            assert episode.model.startswith("<mujoco")
            with h5py.File(path) as file:
                demo = file["data"][reader.episodes[index].source]
                np.testing.assert_array_equal(episode.initial_state, demo["states"][0])
                np.testing.assert_array_equal(episode.observations["object"], demo["obs/object"][:])


def test_pusht_has_206_episodes_and_25650_steps():
    path = shared("pusht/pusht_cchi_v7_replay.zarr")
    with open_source("pusht", (path,), IngestConfig()) as reader:
        assert (len(reader.episodes), sum(item.length for item in reader.episodes)) == (206, 25_650)
        episode = reader.read(205)
    state = zarr.open_group(path, mode="r")["data/state"][-episode.length :]
    np.testing.assert_array_equal(episode.observations["block_position"], state[:, 2:4])
    np.testing.assert_allclose(
        episode.observations["block_angle_sincos"][:, 0], np.sin(state[:, 4]), atol=1e-6
    )


@pytest.mark.slow
def test_pusht_evaluation_starts_where_nobody_recorded():
    with open_source(
        "pusht", (shared("pusht/pusht_cchi_v7_replay.zarr"),), IngestConfig()
    ) as reader:
        recorded = np.stack([reader.read(i).initial_state for i in range(len(reader.episodes))])
        simulator = make_simulator(reader.spec.env, "push_t")
    for seed in range(EVALUATION_SEED_START, EVALUATION_SEED_START + 50):
        simulator.reset(seed)
        distance = np.abs(recorded - simulator.initial_state()).max(axis=1)
        assert distance.min() > 1.0  # pixels
    simulator.close()
