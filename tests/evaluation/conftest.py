import sys
from pathlib import Path

import numpy as np
import pytest

from lwdctl.core.records import EnvSpec
from lwdctl.core.registry import Registry, Row
from lwdctl.core.seeding import generator
from lwdctl.policies.policy import EpisodePlan, PolicyCost


class FeedbackPolicy:
    """Acts on what it sees plus the episode's own noise; may emit NaN for a seed."""

    def __init__(self, width, nan_at=()):
        self.width, self.nan_at = width, dict(nan_at)
        self.batches = []

    def reset(self, episodes):
        assert len(episodes) == self.width
        self.plans = list(episodes)
        self.rngs = [plan and generator("test policy", plan.seed) for plan in episodes]
        self.queries = np.array([int(plan is not None) for plan in episodes])

    def act(self, observations, active):
        assert observations["place"].shape == (self.width, 2)
        assert observations["clock"].shape == (self.width, 1)
        assert np.isfinite(observations["place"]).all()
        self.batches.append(int(active.sum()))
        actions = np.zeros((self.width, 2), dtype=np.float32)
        for slot in np.flatnonzero(active):
            plan = self.plans[slot]
            actions[slot] = self.rngs[slot].normal(size=2) - observations["place"][slot]
            if self.nan_at.get(plan.seed) == observations["clock"][slot, 0]:
                actions[slot] = np.nan
        return actions

    def cost(self):
        return PolicyCost(self.queries, {"denoiser": 0.0, "decoding": 0.0})


@pytest.fixture
def fake(monkeypatch):
    """The table that holds the fake simulator; spawned workers find it as well."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    return Registry("environment", {"fake": Row("fake_simulator:FakeSimulator", "for tests")})


@pytest.fixture
def feedback_policy():
    return FeedbackPolicy


@pytest.fixture
def env(tmp_path):
    return EnvSpec("fake", ("walk", "short"), {"marker": str(tmp_path / "marker")})


@pytest.fixture
def plans_of():
    def make(*tasks):
        return [
            EpisodePlan(index=index, seed=100_000 + index, task=task)
            for index, task in enumerate(tasks)
        ]

    return make
