"""DPPO's npz data sets: default keys, and values that were normalized before."""

from __future__ import annotations

import shlex
import subprocess
import sys

import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.data.reader import open_source, recognize

LENGTHS = np.array([30, 20])
STATES = np.random.default_rng(0).uniform(2, 5, (50, 3))
ACTIONS = np.random.default_rng(1).uniform(-30, 10, (50, 2))


def scaled(values):
    low, high = values.min(axis=0), values.max(axis=0)
    return 2 * (values - low) / (high - low) - 1


def write(path, states, actions):
    np.savez_compressed(path, states=states.astype(np.float32), traj_lengths=LENGTHS,
                        actions=actions.astype(np.float32), rewards=np.arange(50))  # fmt: skip
    return path


def read_all(path):
    with open_source(None, (path,), IngestConfig()) as reader:
        assert reader.spec.source_format == "dppo"
        return [reader.read(index) for index in range(2)], reader.findings


def test_episodes_have_the_numbers_of_the_file(tmp_path):
    path = write(tmp_path / "train.npz", STATES, ACTIONS)
    assert recognize(path).format == "dppo"
    (first, second), findings = read_all(path)
    assert (first.length, second.source) == (30, "rows 30:50")
    np.testing.assert_array_equal(second.observations["states"], STATES[30:].astype(np.float32))
    np.testing.assert_array_equal(first.actions, ACTIONS[:30].astype(np.float32))
    np.testing.assert_array_equal(second.rewards, np.arange(30, 50))
    assert "normalized" not in [item.check for item in findings]


def test_normalized_values_are_a_warning_whose_hint_undoes_it(tmp_path):
    path = write(tmp_path / "train.npz", scaled(STATES), scaled(ACTIONS))
    _, findings = read_all(path)
    (found,) = [item for item in findings if item.check == "normalized"]
    assert (found.severity, found.hint) == (
        "warning", "find the normalization.npz of the data set",
    )  # fmt: skip
    np.savez(tmp_path / "normalization.npz",
             obs_min=STATES.min(axis=0), obs_max=STATES.max(axis=0),
             action_min=ACTIONS.min(axis=0), action_max=ACTIONS.max(axis=0))  # fmt: skip
    _, findings = read_all(path)
    (found,) = [item for item in findings if item.check == "normalized"]
    subprocess.run([sys.executable, *shlex.split(found.hint)[1:]], check=True)
    (first, _), findings = read_all(tmp_path / "train_units.npz")
    np.testing.assert_allclose(first.actions, ACTIONS[:30], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(first.observations["states"], STATES[:30], rtol=1e-5)
    assert "normalized" not in [item.check for item in findings]
