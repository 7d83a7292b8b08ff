"""Latency: what counts as a control step, a re-plan and an episode's first plan."""

import numpy as np
import pytest
import torch

from lwdctl.evaluation import latency
from lwdctl.evaluation.latency import CONTROL_STEPS, REPLANS, WARM_UP_STEPS, time_policy
from lwdctl.policies import device
from lwdctl.policies.policy import EpisodePlan, PolicyCost

PLAN = EpisodePlan(0, 100_000, "t")
SEEN = {"a": np.arange(60, dtype=np.float32).reshape(30, 2)}


class Clock:
    """A clock that only acting moves."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self):
        return self.seconds


class Planner:
    """Takes 1 ms per step, 10 ms per re-plan and 50 ms for an episode's first plan."""

    def __init__(self, clock, horizon):
        self.clock, self.horizon = clock, horizon
        self.episodes, self.calls = 0, 0
        self.rows = []

    def reset(self, episodes):
        assert episodes == [PLAN]
        self.episodes += 1
        self.step, self.plans = 0, 0

    def act(self, observations, active):
        assert active.tolist() == [True]
        self.rows.append(observations["a"].tolist())
        milliseconds = 1
        due = self.step % self.horizon == 0 if self.horizon else False
        if due:
            milliseconds = 10 if self.plans else 50
            self.plans += 1
        self.step += 1
        self.calls += 1
        # The warm-up is slow, and must not be seen.
        self.clock.seconds += milliseconds / 1e3 * (100 if self.episodes <= 2 else 1)
        return np.zeros((1, 2), dtype=np.float32)

    def cost(self):
        plans = np.array([self.plans] if self.horizon else [], dtype=np.int64)
        return PolicyCost(np.zeros(1, dtype=np.int64), {}, plans)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(device, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("horizon", "step", "replan"),
    [(0, 1.0, None), (8, 1.0, 10.0), (1, None, 10.0), (30, 1.0, 50.0), (500, 1.0, 50.0)],
)
def test_steps_and_replans_are_distinguished(clock, horizon, step, replan):
    timings = time_policy(Planner(clock, horizon), PLAN, SEEN, torch.device("cpu"))
    found = timings.summary()
    assert found["latency_step_ms"] == (step and pytest.approx(step))
    assert found["latency_step_p99_ms"] == (step and pytest.approx(step))
    assert found["latency_replan_ms"] == (replan and pytest.approx(replan))
    assert len(timings.steps or timings.replans) >= CONTROL_STEPS
    if horizon:
        assert len(timings.replans or timings.first_plans) >= REPLANS


def test_recorded_observations_are_shown_one_by_one(clock):
    policy = Planner(clock, 4)
    time_policy(policy, PLAN, SEEN, torch.device("cpu"))
    rows = SEEN["a"].tolist()
    warm_up = 2 * WARM_UP_STEPS
    assert policy.rows[:warm_up] == [[row] for row in rows[:WARM_UP_STEPS]] * 2
    assert policy.rows[warm_up : warm_up + 30] == [[row] for row in rows]


def test_one_recorded_step_is_enough(clock):
    one = {"a": SEEN["a"][:1]}
    timings = time_policy(Planner(clock, 4), PLAN, one, torch.device("cpu"))
    assert timings.summary() == {
        "latency_step_ms": None,
        "latency_step_p99_ms": None,
        "latency_replan_ms": pytest.approx(50.0),
    }


def test_the_99th_percentile_sees_the_rare_slow_step():
    timings = latency.Timings(steps=[1.0] * 95 + [9.0] * 5)
    found = timings.summary()
    assert (found["latency_step_ms"], found["latency_step_p99_ms"]) == (1.0, 9.0)
