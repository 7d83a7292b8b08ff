"""Acting on CUDA: a control step waits for the device in its download alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lwdctl.models.vae import PolicyVae, VaeSpec
from lwdctl.policies import replanning
from lwdctl.policies.latent_source import MeanLatents
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.replanning import GeneratedNetworks, ReplanningPolicy

pytestmark = pytest.mark.gpu
ENVS, STEPS = 4, 9


def policy_on(device: torch.device) -> ReplanningPolicy:
    """Build a policy that re-plans every four steps."""
    torch.manual_seed(0)
    vae = PolicyVae(VaeSpec(("seen",), 39, 4, None, 8, 16, (50, 50), (256, 256), True))
    source = MeanLatents(np.full(16, 0.3, dtype=np.float32))
    return ReplanningPolicy(GeneratedNetworks(vae.to(device).eval()), source, 4)


def roll(policy: ReplanningPolicy) -> np.ndarray:
    """Return the actions (time, env, action) for drawn observations."""
    policy.reset([EpisodePlan(index, 100_000 + index, "t") for index in range(ENVS)])
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(STEPS, ENVS, 39)).astype(np.float32)
    return np.stack([policy.act({"seen": rows}, np.ones(ENVS, bool)) for rows in seen])


def test_a_control_step_waits_in_its_download_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    downloads, wait = [], replanning.download

    def download(values: Tensor) -> np.ndarray:
        torch.cuda.set_sync_debug_mode("default")
        downloads.append(wait(values))
        torch.cuda.set_sync_debug_mode("error")
        return downloads[-1]

    policy = policy_on(torch.device("cuda"))
    roll(policy)  # libraries wait when they are first used
    monkeypatch.setattr(replanning, "download", download)
    torch.cuda.set_sync_debug_mode("error")
    try:
        actions = roll(policy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(downloads) == STEPS
    assert policy.cost().seconds["decoding"] > 0
    expected = roll(policy_on(torch.device("cpu")))
    np.testing.assert_allclose(actions, expected, rtol=1e-3, atol=1e-3)
