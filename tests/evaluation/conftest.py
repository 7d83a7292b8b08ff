import sys
from pathlib import Path

import numpy as np
import pytest

from lwdctl.core.records import EnvSpec
from lwdctl.core.seeding import generator
from lwdctl.policies.policy import EpisodePlan, PolicyCost


class FeedbackPolicy:
    """Acts on what it sees plus the episode's own noise; may emit NaN for a seed."""

    def __init__(self, num_envs, nan_at=()):
        self.num_envs, self.nan_at = num_envs, dict(nan_at)
        self.batches = []

    def reset(self, episodes):
        assert len(episodes) == self.num_envs
        self.plans = list(episodes)
        self.rngs = [plan and generator("test policy", plan.seed) for plan in episodes]
        self.num_replans = np.array([int(plan is not None) for plan in episodes])

    def act(self, observations, active):
        assert observations["place"].shape == (self.num_envs, 2)
        assert observations["clock"].shape == (self.num_envs, 1)
        assert np.isfinite(observations["place"]).all()
        self.batches.append(int(active.sum()))
        actions = np.zeros((self.num_envs, 2), dtype=np.float32)
        for index in np.flatnonzero(active):
            plan = self.plans[index]
            actions[index] = self.rngs[index].normal(size=2) - observations["place"][index]
            if self.nan_at.get(plan.seed) == observations["clock"][index, 0]:
                actions[index] = np.nan
        return actions

    def cost(self):
        return PolicyCost(self.num_replans, {"denoiser": 0.0, "decoding": 0.0})


@pytest.fixture
def feedback_policy():
    return FeedbackPolicy


@pytest.fixture
def env(tmp_path, monkeypatch):
    """The fake simulator by its import path; spawned workers find it as well."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    settings = {"marker": str(tmp_path / "marker")}
    return EnvSpec("fake_simulator:FakeSimulator", ("walk", "short"), settings)


@pytest.fixture
def plans_of():
    def make(*tasks):
        return [
            EpisodePlan(index=index, seed=100_000 + index, task=task)
            for index, task in enumerate(tasks)
        ]

    return make
