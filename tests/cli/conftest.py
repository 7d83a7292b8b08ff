"""What tests of the command line share."""

import os
import subprocess
import sys

import numpy as np
import pytest

from lwdctl.analysis import resample


@pytest.fixture
def few_resamples(monkeypatch):
    """Bootstrap with few resamples, for tests that do not look at intervals."""
    monkeypatch.setattr(resample, "RESAMPLES", 400)
    resample._seed_counts.cache_clear()
    resample._state_counts.cache_clear()
    yield
    resample._seed_counts.cache_clear()
    resample._state_counts.cache_clear()


@pytest.fixture(scope="session")
def recording(tmp_path_factory):
    """A PushT file of two short episodes, which `lwdctl ingest` reads."""
    import zarr

    path = tmp_path_factory.mktemp("recording") / "toy.zarr"
    rng = np.random.default_rng(0)
    root = zarr.open_group(path, mode="w", zarr_format=2)
    data = root.create_group("data")
    position = 256 + np.cumsum(rng.normal(0, 2, (80, 2)), axis=0)
    state = np.concatenate([position, np.full((80, 2), 300.0), rng.random((80, 1))], axis=1)
    arrays = {"state": state, "action": position, "keypoint": rng.random((80, 9, 2)) * 512}
    for name, array in {**arrays, "n_contacts": np.ones((80, 1))}.items():
        data.create_array(name, data=array.astype(np.float32))
    root.create_group("meta").create_array("episode_ends", data=np.array([40, 80]))
    return path


@pytest.fixture
def ingested(recording, tmp_path):
    """The environment of a process whose workspace holds that recording's snippets."""
    environment = {
        **os.environ, "LWDCTL_WORKSPACE": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "lwdctl", "ingest", recording, "-q"],
        env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return environment
