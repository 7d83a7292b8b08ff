"""Principal components, t-SNE and the use of dimensions on points whose structure is known."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lwdctl.analysis.latent_dimensions import (
    dimension_use,
    gaussian_kl,
    principal_components,
    tsne,
    usable_perplexity,
)


def points_of(variances):
    """Points whose sample covariance has exactly these eigenvalues, rotated."""
    rng = np.random.default_rng(0)
    size = len(variances)
    flat, _ = np.linalg.qr(rng.normal(size=(60, size)) - 0.0)
    flat = np.linalg.qr(flat - flat.mean(axis=0))[0] * np.sqrt(59)
    turn, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return flat * np.sqrt(variances) @ turn + 3.0


@pytest.mark.parametrize(
    ("variances", "dimension", "needed"),
    [
        ([1.0] * 6, 6.0, 6),
        ([1.0, 0, 0, 0, 0], 1.0, 1),
        ([4.0, 2.0, 1.0, 1.0], 64 / 22, 4),
        ([90.0, 6.0, 2.0, 2.0], 100**2 / (8100 + 36 + 8), 2),
    ],
)
def test_the_effective_dimension_is_the_participation_ratio(variances, dimension, needed):
    found = principal_components(points_of(variances))
    assert found.effective_dimension == pytest.approx(dimension)
    assert found.needed == needed
    assert found.fractions == pytest.approx(np.array(variances) / sum(variances), abs=1e-9)
    assert found.coordinates.shape == (60, min(4, len(variances)))
    assert found.coordinates.var(axis=0, ddof=1) == pytest.approx(variances[:4], abs=1e-9)


@pytest.mark.parametrize(("wanted", "points", "used"), [(30, 2000, 30), (30, 31, 10), (30, 3, 1)])
def test_the_perplexity_fits_the_number_of_points(wanted, points, used):
    assert usable_perplexity(wanted, points) == used


@pytest.mark.parametrize("size", [1, 8])
def test_tsne_keeps_clusters_apart_and_repeats(size):
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 20)
    points = rng.normal(size=(40, size)) * 0.1 + 10.0 * group[:, None]
    embedded = tsne(points, 5.0, seed=0)
    centers = [embedded[group == index].mean(axis=0) for index in (0, 1)]
    distance = [np.linalg.norm(embedded - center, axis=1) for center in centers]
    assert (np.argmin(distance, axis=0) == group).all()
    assert tsne(points, 5.0, seed=0).tobytes() == embedded.tobytes()


def test_kl_is_that_of_torch():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(7, 3)).astype(np.float32)
    log_variance = rng.normal(size=(7, 3)).astype(np.float32)
    posterior = Normal(torch.from_numpy(mean), torch.exp(0.5 * torch.from_numpy(log_variance)))
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).numpy()
    np.testing.assert_allclose(gaussian_kl(mean, log_variance), expected, rtol=1e-5, atol=1e-6)


def test_a_dimension_that_stays_at_the_prior_is_not_active():
    rng = np.random.default_rng(0)
    used, unused = rng.normal(0, 2, 1000), rng.normal(0, 0.05, 1000)  # variances 4 and 0.0025
    mean = np.stack([used, unused], axis=1)
    log_variance = np.tile([np.log(0.01), 0.0], (1000, 1))
    use = dimension_use(mean, log_variance, 0.01)
    assert use.active.tolist() == [True, False]
    assert use.posterior_std.tolist() == pytest.approx([0.1, 1.0])
    assert use.mean_std == pytest.approx([2.0, 0.05], rel=0.05)
    assert use.kl[0] == pytest.approx(0.5 * (0.01 + 4 - 1 - np.log(0.01)), rel=0.1)
    assert use.kl[1] < 0.01
    summary = use.summary()
    assert summary["active_units"] == 1
    assert summary["kl"] == pytest.approx(use.kl.sum())
