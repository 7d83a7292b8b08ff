"""Ant's contact forces, which D4RL's files hold as zeros."""

import h5py
import numpy as np
import pytest

from lwdctl.configs import IngestConfig
from lwdctl.data.reader import open_source


@pytest.mark.parametrize(
    ("size", "force", "expected"),
    [
        (27, 0.0, {}),
        (111, 0.0, {"use_contact_forces": True, "zero_contact_forces": True}),
        (111, 0.5, {"use_contact_forces": True}),
    ],
)
def test_zero_forces_are_distinguished_from_real_ones(tmp_path, size, force, expected):
    path = tmp_path / "ant-medium-v2.hdf5"
    observations = np.ones((20, size), np.float32)
    observations[:, 27:] = 0.0
    observations[7, 50:51] = force
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = observations, np.zeros((20, 8), np.float32)
        file["rewards"] = np.zeros(20)
        file["terminals"] = file["timeouts"] = np.arange(20) % 10 == 9
    with open_source("d4rl", (path,), IngestConfig()) as reader:
        assert reader.spec.env.settings == {"id": "Ant-v4", **expected}
