from __future__ import annotations

import numpy as np
import pytest

from lwdctl.artifacts.latents import LatentStore, LatentWriter
from lwdctl.artifacts.zarr_columns import STEP_CHUNK
from lwdctl.core.errors import ArtifactError
from lwdctl.core.moments import Moments, RunningMoments


def draw(count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "mean": (50 + random.normal(size=(count, 3))).astype(np.float32),
        "log_variance": (random.normal(size=(count, 3)) - 6).astype(np.float32),
        "state": random.normal(size=(count, 2)).astype(np.float32),
        "task": random.integers(-1, 3, count).astype(np.int32),
        "label": random.integers(-1, 3, count).astype(np.int32),
        "episode": np.arange(count, dtype=np.int32),
        "start": np.arange(count, dtype=np.int64) * 3,
    }


def test_batches_come_back_with_the_total_standard_deviation(tmp_path):
    count = STEP_CHUNK + 40
    arrays = draw(count)
    writer = LatentWriter(tmp_path / "latents.zarr", 3, 2)
    for low in range(0, count, 1000):
        writer.append(**{name: value[low : low + 1000] for name, value in arrays.items()})
    writer.close()
    store = LatentStore.open(tmp_path)
    assert (store.count, store.latent_size, store.state_size) == (count, 3, 2)
    for name, value in arrays.items():
        found = getattr(store, name)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)
        np.testing.assert_array_equal(store.read(name, 7, 9), value[7:9])
    mean, deviation = store.statistics()
    exact = arrays["mean"].astype(np.float64)
    spread = exact.var(axis=0) + np.exp(arrays["log_variance"].astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, np.sqrt(spread), rtol=1e-9)


def test_an_unused_dimension_keeps_the_standard_deviation_of_its_posterior(tmp_path):
    arrays = {**draw(10), "mean": np.zeros((10, 3)), "log_variance": np.zeros((10, 3))}
    writer = LatentWriter(tmp_path / "latents.zarr", 3, 2)
    writer.append(**arrays)
    writer.close()
    assert LatentStore.open(tmp_path).statistics()[1].tolist() == [1, 1, 1]


def test_statistics_can_leave_out_rows(tmp_path):
    arrays = draw(20)
    used = np.arange(20) < 5
    writer = LatentWriter(tmp_path / "latents.zarr", 3, 2)
    writer.append(**arrays, fit=used)
    writer.close()
    store = LatentStore.open(tmp_path)
    assert store.count == 20
    np.testing.assert_allclose(store.statistics()[0], arrays["mean"][:5].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("state", np.zeros((9, 2)), "state has shape"),
        ("mean", np.full((10, 3), np.nan), "mean has NaN"),
        ("task", np.zeros((10, 1)), "task has shape"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, value, message):
    writer = LatentWriter(tmp_path / "latents.zarr", 3, 2)
    with pytest.raises(ArtifactError, match=message):
        writer.append(**{**draw(10), name: value})
    with pytest.raises(ArtifactError, match="no latents"):
        writer.close()


def test_a_missing_or_unfinished_store_is_refused_and_not_created(tmp_path):
    with pytest.raises(ArtifactError, match="there is no"):
        LatentStore.open(tmp_path / "latents.zarr")
    assert list(tmp_path.iterdir()) == []
    LatentWriter(tmp_path / "latents.zarr", 3, 2)
    with pytest.raises(ArtifactError, match="not written to its end"):
        LatentStore.open(tmp_path / "latents.zarr")


def test_running_moments_do_not_depend_on_the_batches():
    rows = 1e8 + np.random.default_rng(1).normal(size=(500, 2))
    running = RunningMoments(2)
    for part in np.split(rows, [0, 1, 17, 400]):
        running.add(part)
    whole = Moments.of_rows(rows)
    assert running.count == whole.count == 500
    np.testing.assert_allclose(running.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(running.variance, whole.variance, rtol=1e-6)
