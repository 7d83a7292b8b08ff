"""D4RL's flat files: where episodes end, in every way files say it."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.reader import open_source
from lwdctl.data.readers.gym_envs import level_of


def write_file(path, terminals, timeouts, **extra):
    rows = len(terminals)
    with h5py.File(path, "w") as file:
        file["observations"] = np.arange(rows * 17, dtype=np.float32).reshape(rows, 17)
        file["actions"] = np.zeros((rows, 6), np.float32)
        file["rewards"] = np.ones(rows)
        file["terminals"] = terminals
        if timeouts is not None:
            file["timeouts"] = timeouts
        for key, values in extra.items():
            file[key.replace("__", "/")] = values
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "halfcheetah-medium-replay-v2.hdf5"


flags = st.lists(st.booleans(), min_size=1, max_size=40)
SHAPES = {
    "bool": lambda values: np.array(values, dtype=bool),
    "column": lambda values: np.array(values, dtype=bool)[:, None],
    "float": lambda values: np.array(values, dtype=np.float32),
    "integer column": lambda values: np.array(values, dtype=np.uint8)[:, None],
}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    shape=st.sampled_from(sorted(SHAPES)),
    mode=st.sampled_from(["first", "each", "ignore"]),
)
def test_episodes_end_at_either_flag(tmp_path_factory, pairs, shape, mode):
    terminals, timeouts = (list(column) for column in zip(*pairs, strict=True))
    path = tmp_path_factory.mktemp("flat") / "halfcheetah_random.hdf5"
    write_file(path, SHAPES[shape](terminals), SHAPES[shape](timeouts))
    expected, current = [], []  # rows of every episode
    in_run = False
    for row, (terminal, timeout) in enumerate(pairs):
        counts = terminal and mode != "ignore"
        if not (in_run and terminal):
            current.append(row)
            if counts or timeout:
                expected.append(current)
                current = []
        in_run = mode == "first" and terminal and not timeout
    if current:  # the tail without a flag is an episode too
        expected.append(current)
    with open_source("d4rl", (path,), IngestConfig(terminals=mode)) as reader:
        assert [item.length for item in reader.episodes] == [len(rows) for rows in expected]
        read = [reader.read(i).observations["observation"] for i in range(len(expected))]
    numbers = np.arange(len(pairs) * 17, dtype=np.float32).reshape(-1, 17)
    np.testing.assert_array_equal(np.concatenate(read), numbers[np.concatenate(expected)])


def test_missing_timeouts_are_cut_at_the_environments_limit(path):
    terminals = np.zeros(2750, bool)
    terminals[499] = True
    with open_source("d4rl", (write_file(path, terminals, None),), IngestConfig()) as reader:
        assert [item.length for item in reader.episodes] == [500, 1000, 1000, 250]


def test_an_episode_of_exactly_the_limit_is_not_split(path):
    terminals = np.zeros(2000, bool)
    terminals[999] = True
    with open_source("d4rl", (write_file(path, terminals, None),), IngestConfig()) as reader:
        assert [item.length for item in reader.episodes] == [1000, 1000]


def test_missing_timeouts_need_a_known_environment(tmp_path):
    path = write_file(tmp_path / "something.hdf5", np.zeros(5, bool), None)
    with pytest.raises(DataError, match="timeouts: is missing") as caught:
        open_source("d4rl", (path,), IngestConfig())
    assert "--max-steps" in caught.value.hint
    with open_source("d4rl", (path,), IngestConfig(env="mujoco/HalfCheetah-v4")) as reader:
        assert reader.spec.env.adapter == "mujoco"
        assert reader.spec.env.tasks == ("HalfCheetah-v4",)


def test_environment_label_and_state_are_recorded(path):
    state = np.arange(10 * 9, dtype=np.float64).reshape(10, 9)
    ends = np.arange(10) % 5 == 4
    write_file(
        path, ends, ends, infos__qpos=state, infos__qvel=-state, next_observations=np.ones((10, 17))
    )
    with open_source("d4rl", (path,), IngestConfig()) as reader:
        spec = reader.spec
        assert spec.labels == ("medium-replay",)
        assert (spec.env.adapter, spec.env.max_steps) == ("mujoco", 1000)
        assert spec.env.settings["initial_state"] == [["qpos", 9], ["qvel", 9]]
        assert (spec.action.semantics, spec.action.control_rate) == ("torque", 20.0)
        episode = reader.read(1)
    np.testing.assert_array_equal(episode.initial_state, np.r_[state[5], -state[5]])
    np.testing.assert_array_equal(episode.final_observation["observation"], np.ones(17))


def test_hand_environments_keep_what_restoring_needs(tmp_path):
    path = tmp_path / "hammer-human-v1.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((4, 46), np.float32)
        file["actions"] = np.zeros((4, 26), np.float32)
        file["rewards"] = np.zeros((4, 1))
        file["terminals"] = file["timeouts"] = np.array([0, 0, 0, 1])
        file["infos/qpos"], file["infos/qvel"] = np.ones((4, 33)), np.ones((4, 33))
        file["infos/goal_achieved"] = np.array([0, 1, 0, 0], dtype=bool)
    with open_source("d4rl", (path,), IngestConfig()) as reader:
        assert reader.read(0).initial_state is None  # the board's position is missing
        assert reader.read(0).success is True
    with h5py.File(path, "a") as file:
        file["infos/board_pos"] = np.full((4, 3), 7.0)
    with open_source("d4rl", (path,), IngestConfig()) as reader:
        assert reader.spec.env.adapter == "adroit"
        assert reader.spec.env.settings["initial_state"][-1] == ["board_pos", 3]
        assert reader.read(0).initial_state[-3:].tolist() == [7.0, 7.0, 7.0]


def test_metadata_names_the_environment(tmp_path):
    path = write_file(
        tmp_path / "data.hdf5", np.ones(3, bool), None, metadata__env="HalfCheetah-v4"
    )
    with open_source("d4rl", (path,), IngestConfig()) as reader:
        assert reader.spec.env.tasks == ("HalfCheetah-v4",)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("halfcheetah_medium_expert-v2", "medium-expert"),
        ("walker2d-full-replay-v2", "full-replay"),
        ("ant_expert", "expert"),
        ("D4RL/hammer/cloned-v2", "cloned"),
        ("mujoco/halfcheetah/simple-v0", "simple"),
        ("unexpertly", ""),
    ],
)
def test_level_is_read_from_names(name, level):
    assert level_of(name) == level
