"""What the writer adds to a file for robomimic's sake."""

import h5py
import numpy as np
import pytest

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import Episode
from lwdctl.data.reader import open_source
from lwdctl.data.readers.robomimic_writer import RobomimicWriter

STATES = np.random.default_rng(0).normal(size=(3, 5))


def episode(label=""):
    rows = {"observation": np.zeros((3, 2), np.float32)}
    start = np.ones(5)
    actions = np.zeros((3, 1), np.float32)
    return Episode("", rows, actions, initial_state=start, task="reach", label=label)


@pytest.fixture
def write(tmp_path):
    def write(*pairs):
        path = tmp_path / "a.hdf5"
        with RobomimicWriter(path, {"type": "metaworld", "env_name": "metaworld"}) as writer:
            for one, states in pairs:
                writer.write(one, states)
        return path

    return write


def test_states_take_the_place_of_the_initial_state(write):
    path = write((episode(), STATES), (episode(), None))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["data/demo_0/states"], STATES)
        assert "initial_state" not in file["data/demo_0"]
        assert "states" not in file["data/demo_1"]
    with open_source("robomimic", (path,), IngestConfig()) as reader:
        np.testing.assert_array_equal(reader.read(0).initial_state, STATES[0])
        np.testing.assert_array_equal(reader.read(1).initial_state, np.ones(5))


def test_states_must_be_as_long_as_the_episode(write):
    with pytest.raises(DataError, match="states, row 2: has 2 rows, but actions has 3"):
        write((episode(), STATES[:2]))


def test_an_operator_is_in_the_mask_of_its_level(write):
    names = ("better_operator_1", "worse_operator_2", "better_operator_2", "better", "new_operator")
    path = write(*((episode(name), None) for name in names))
    with h5py.File(path) as file:
        masks = {name: [demo.decode() for demo in file["mask"][name]] for name in file["mask"]}
    assert masks == {
        "better": ["demo_0", "demo_2", "demo_3"],
        "better_operator_1": ["demo_0"],
        "better_operator_2": ["demo_2"],
        "new_operator": ["demo_4"],
        "worse": ["demo_1"],
        "worse_operator_2": ["demo_1"],
    }
    with open_source("robomimic", (path,), IngestConfig()) as reader:
        assert [reader.read(index).label for index in range(5)] == list(names)
