"""Two rates: what acts while a plan is under way, and when it is waited for."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lwdctl.core.errors import ConfigError, DataError


def seen(step):
    return {"thing": np.full(3, 0.1 * step), "hand": np.array([0.02 * step, -0.3])}


@pytest.fixture
def policy(exported):
    from lwdctl.deploy.runtime import ExportedPolicy

    return ExportedPolicy(exported()[1])  # re-planned every 5 steps


def controlled(policy, steps, **settings):
    """Run an episode; return actions, and at every step the step the plan was made at."""
    from lwdctl.deploy.controller import TwoRateController

    with TwoRateController(policy, **settings) as controller:
        controller.reset(4, "push", "slow")
        actions, made = [], []
        for step in range(steps):
            actions.append(controller.act(seen(step)))
            made.append(policy.plan.request.step)
    return np.stack(actions), made, controller.statistics


def test_without_delay_it_is_the_loop_at_one_rate(policy):
    actions, _, statistics = controlled(policy, 13, delay=0)
    policy.reset(4, "push", "slow")
    assert np.array_equal(actions, np.stack([policy.act(seen(step)) for step in range(13)]))
    assert (statistics.plans, statistics.late_steps, statistics.waits) == (3, 0, 1)


@pytest.mark.parametrize("name", ["lead", "patience", "blend", "delay", "period"])
def test_numbers_are_not_negative(policy, name):
    with pytest.raises(ConfigError, match=f"'{name}' must be at least 0, not -1"):
        controlled(policy, 1, **{name: -1})


def test_a_late_plan_is_adopted_when_it_is_ready_and_keeps_its_time_input(policy):
    actions, made, statistics = controlled(policy, 12, delay=2)
    # Started at step 5, adopted at step 7; its horizon ends 5 steps after step 5.
    assert made == [0] * 7 + [5] * 5
    assert statistics.late_steps == 2 + 2
    repeated, _, _ = controlled(policy, 12, delay=2)
    assert np.array_equal(actions, repeated)


def test_a_lead_makes_up_for_the_delay(policy):
    _, made, statistics = controlled(policy, 12, delay=2, lead=2)
    assert made == [0] * 5 + [3] * 3 + [6] * 3 + [9]
    assert statistics.late_steps == 0


def test_patience_ends_in_waiting(policy):
    _, made, statistics = controlled(policy, 9, delay=4, patience=1)
    assert made == [0] * 6 + [5] * 3
    assert statistics.late_steps == 1
    assert statistics.waits == 2


def test_both_graphs_have_run_before_the_first_observation(policy, monkeypatch):
    from lwdctl.deploy import runtime
    from lwdctl.deploy.controller import TwoRateController

    ran, plan, act = [], runtime.Graphs.plan, runtime.Plan.act
    monkeypatch.setattr(runtime.Graphs, "plan", lambda *given: ran.append("plan") or plan(*given))
    monkeypatch.setattr(runtime.Plan, "act", lambda *given: ran.append("act") or act(*given))
    monkeypatch.setattr(policy, "observe", lambda seen: ran.append("observe"))
    with TwoRateController(policy, delay=0) as controller:
        controller.reset(4, "push", "slow")
        assert ran == ["plan", "act"]
    assert (policy.steps, policy.replans, policy.plan) == (0, 0, None)


def test_a_new_plan_takes_over_step_by_step(policy):
    at_once, made, plain = controlled(policy, 12, delay=2)
    blended, same, smooth = controlled(policy, 12, delay=2, blend=3)
    assert same == made == [0] * 7 + [5] * 5
    policy.reset(4, "push", "slow")
    former = []  # what the first plan does all along
    for step in range(12):
        policy.observe(seen(step))
        if step == 0:
            policy.adopt(policy.replan(policy.request()))
        former.append(policy.step())
    for step in range(12):
        weight = np.clip((step - 6) / 4, 0, 1)
        wanted = former[step] + weight * (at_once[step] - former[step])
        np.testing.assert_allclose(blended[step], wanted, rtol=1e-5, atol=1e-6)
    jumps = np.abs(np.diff(at_once, axis=0)).max(1)
    assert plain.largest_jump == jumps[6]
    assert plain.largest_change == np.delete(jumps, 6).max()
    assert smooth.largest_jump < plain.largest_jump


def test_staleness_and_missed_deadlines_are_counted(policy, caplog):
    _, _, statistics = controlled(policy, 12, delay=2, period=1e9)
    assert (statistics.steps, statistics.staleness, statistics.deadline_misses) == (12, 6, 0)
    assert 0.0 < statistics.staleness_seconds < 60.0
    with caplog.at_level("INFO", logger="lwdctl"):
        _, _, statistics = controlled(policy, 12, delay=2, period=1e-9)
    assert statistics.deadline_misses == 11
    assert "deadline_misses=11" in caplog.text


class Held:
    """Holds planning back until it is let go."""

    def __init__(self, policy):
        self.go, self._replan = threading.Event(), policy.replan
        self.threads = []

    def __call__(self, request):
        self.threads.append(threading.current_thread())
        if request.step:
            assert self.go.wait(20)
        return self._replan(request)


def test_the_present_plan_acts_while_a_thread_plans(policy, monkeypatch):
    from lwdctl.deploy.controller import TwoRateController

    held = Held(policy)
    monkeypatch.setattr(policy, "replan", held)
    with TwoRateController(policy) as controller:
        controller.reset(4, "push", "slow")
        for step in range(9):
            controller.act(seen(step))
        assert policy.plan.request.step == 0
        assert controller.statistics.late_steps == 4
        held.go.set()
        last = time.monotonic() + 60
        step = 9
        while not policy.plan.request.step and time.monotonic() < last:
            controller.act(seen(step))
            step += 1
            time.sleep(0.001)  # the planning thread may have to wait for a core
        assert policy.plan.request.step == 5
    assert threading.main_thread() not in held.threads
    assert not any(thread.is_alive() for thread in held.threads)


def test_a_plan_of_an_earlier_episode_is_not_followed(policy, monkeypatch):
    from lwdctl.deploy.controller import TwoRateController

    held = Held(policy)
    monkeypatch.setattr(policy, "replan", held)
    with TwoRateController(policy) as controller:
        controller.reset(4, "push", "slow")
        for step in range(6):
            controller.act(seen(step))
        controller.reset(5, "pull", "fast")
        held.go.set()
        controller.act(seen(0))
        assert (policy.plan.request.step, policy.plan.request.task) == (0, 1)
        assert policy.plan.request.episode == 2


def test_what_planning_raises_reaches_the_loop(policy, monkeypatch):
    from lwdctl.deploy.controller import TwoRateController

    def broken(request):
        raise DataError("the graph broke")

    monkeypatch.setattr(policy, "replan", broken)
    with TwoRateController(policy) as controller:
        controller.reset(4, "push", "slow")
        with pytest.raises(DataError, match="the graph broke"):
            controller.act(seen(0))
