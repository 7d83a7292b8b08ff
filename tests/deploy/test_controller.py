"""Two rates: what acts while a plan is under way, and when it is waited for."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lwdctl.core.errors import DataError


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
    return np.stack(actions), made, controller.punctuality


def test_without_delay_it_is_the_loop_at_one_rate(policy):
    actions, _, punctuality = controlled(policy, 13, delay=0)
    policy.reset(4, "push", "slow")
    assert np.array_equal(actions, np.stack([policy.act(seen(step)) for step in range(13)]))
    assert (punctuality.plans, punctuality.late_steps, punctuality.waits) == (3, 0, 1)


def test_a_late_plan_is_adopted_when_it_is_ready_and_keeps_its_time_input(policy):
    actions, made, punctuality = controlled(policy, 12, delay=2)
    # Started at step 5, adopted at step 7; its horizon ends 5 steps after step 5.
    assert made == [0] * 7 + [5] * 5
    assert punctuality.late_steps == 2 + 2
    repeated, _, _ = controlled(policy, 12, delay=2)
    assert np.array_equal(actions, repeated)


def test_a_lead_makes_up_for_the_delay(policy):
    _, made, punctuality = controlled(policy, 12, delay=2, lead=2)
    assert made == [0] * 5 + [3] * 3 + [6] * 3 + [9]
    assert punctuality.late_steps == 0


def test_patience_ends_in_waiting(policy):
    _, made, punctuality = controlled(policy, 9, delay=4, patience=1)
    assert made == [0] * 6 + [5] * 3
    assert punctuality.late_steps == 1
    assert punctuality.waits == 2


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
        assert controller.punctuality.late_steps == 4
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
