"""Spread, KL and active units of latent dimensions whose truth is known."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lwdctl.analysis.latent_health import gaussian_kl, latent_health
from lwdctl.training.encode import ACTIVE_VARIANCE


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
    health = latent_health(mean, log_variance, ACTIVE_VARIANCE)
    assert health.active.tolist() == [True, False]
    assert health.posterior.tolist() == pytest.approx([0.1, 1.0])
    assert health.spread == pytest.approx([2.0, 0.05], rel=0.05)
    assert health.kl[0] == pytest.approx(0.5 * (0.01 + 4 - 1 - np.log(0.01)), rel=0.1)
    assert health.kl[1] < 0.01
    summary = health.summary()
    assert summary["active_units"] == 1
    assert summary["kl"] == pytest.approx(health.kl.sum())
