"""Control at two rates: a background thread re-plans while the current plan acts."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import FloatArray
from lwdctl.deploy.runtime import ExportedPolicy, Observation, Plan, Request

_LOG = logging.getLogger(__name__)


@dataclass
class ControlStatistics:
    """How an episode was controlled.

    Attributes:
        steps: Control steps taken.
        plans: Plans adopted.
        late_steps: Steps taken with a plan that was past its action horizon.
        waits: How often `act` waited for a plan, including the episode's first one.
        deadline_misses: Calls of `act`, without the episode's first one, that took longer than a
            control period.
        staleness: Largest age of a plan that acted, in steps since the observation it was made for.
        staleness_seconds: The same in seconds.
        largest_jump: Largest change of an action component from one step to the next where a plan
            took over, environment units.
        largest_change: The same while a plan was followed.
    """

    steps: int = 0
    plans: int = 0
    late_steps: int = 0
    waits: int = 0
    deadline_misses: int = 0
    staleness: int = 0
    staleness_seconds: float = 0.0
    largest_jump: float = 0.0
    largest_change: float = 0.0


class TwoRateController:
    """Acts at control rate with an exported policy and re-plans in the background.

    Both graphs are run once before the first observation. A call of `act` does the following, in
    this order:

    1. An episode's first call waits for its plan.
    2. A new plan that is ready is adopted. Its time input counts from the observation that it was
       made for.
    3. When the current plan is `lead` steps from its action horizon and no re-plan is running,
       one is started from the current observation.
    4. While the next plan is late, the current one acts past its horizon. Once it is `patience`
       steps past it, the call waits.
    5. For `blend` steps after a plan took over, the action is a mean of its action and the former
       plan's, weighted more and more toward the new one.

    Use it as a context manager, or call `close`. Call it from one thread only. The statistics of an
    episode are logged when the next one begins, and by `close`.

    Args:
        policy: The policy; nothing but the controller may call it.
        lead: Steps before the end of the action horizon at which the next re-plan is started.
            Choose about as many as a re-plan takes, so that plans are not late.
        patience: Steps that a plan may act past its horizon; None never waits.
        blend: Steps over which a new plan takes over; 0 switches at once.
        period: Seconds between control steps, which a call of `act` should not exceed; None takes
            the control rate of the data, if that is known.
        delay: None re-plans in a thread. A number re-plans in the calling thread and adopts the
            plan that many steps later: deterministic, for tests and simulated delays.

    Raises:
        ConfigError: A number is negative.
    """

    _running: tuple[Request, float, Future[Plan]] | None
    _former: Plan | None
    _last: FloatArray | None
    _planned_at: float

    def __init__(
        self,
        policy: ExportedPolicy,
        *,
        lead: int = 0,
        patience: int | None = None,
        blend: int = 0,
        period: float | None = None,
        delay: int | None = None,
    ) -> None:
        numbers = {"lead": lead, "patience": patience, "blend": blend, "delay": delay}
        for name, number in (numbers | {"period": period}).items():
            if number is not None and number < 0:
                raise ConfigError(f"'{name}' must be at least 0, not {number}")
        rate = policy.description.action.control_rate
        self.policy, self.statistics = policy, ControlStatistics()
        self._lead, self._patience, self._blend, self._delay = lead, patience, blend, delay
        self._period = period or (1.0 / rate if rate else float("inf"))
        self._pool = ThreadPoolExecutor(1, "lwdctl-replan") if delay is None else None
        policy.warm()
        self._forget()

    def reset(self, seed: int = 0, task: str = "", label: str = "") -> None:
        """Begin an episode; see `ExportedPolicy.reset`. A running re-plan is discarded."""
        self._log()
        self._forget()
        self.statistics = ControlStatistics()
        self.policy.reset(seed, task, label)

    def act(self, observation: Observation) -> FloatArray:
        """Return the action (action,) for an observation.

        Raises:
            DataError: An observation that does not fit, or an action that is not finite.
            Exception: Whatever re-planning raised in its thread.
        """
        begun = time.perf_counter()
        policy, statistics, former = self.policy, self.statistics, self.policy.plan
        policy.observe(observation)
        self._choose_plan()
        if former is not None and policy.plan is not former:
            self._former, self._blended = former, 0
        statistics.late_steps += self._past_horizon(0)
        statistics.staleness = max(statistics.staleness, policy.age or 0)
        changing = self._former is not None
        action = self._follow()
        if self._last is not None:
            change = float(np.abs(action - self._last).max())
            if changing:
                statistics.largest_jump = max(statistics.largest_jump, change)
            else:
                statistics.largest_change = max(statistics.largest_change, change)
        self._last = action
        ended = time.perf_counter()
        age = ended - self._planned_at
        statistics.staleness_seconds = max(statistics.staleness_seconds, age)
        statistics.deadline_misses += statistics.steps > 0 and ended - begun > self._period
        statistics.steps += 1
        return action

    def close(self) -> None:
        """End the thread once a running re-plan has finished."""
        self._log()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> TwoRateController:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the thread."""
        self.close()

    def _log(self) -> None:
        if self.statistics.steps:
            _LOG.info("%s", self.statistics)

    def _forget(self) -> None:
        """Forget what belongs to an episode."""
        self._running = self._former = self._last = None
        self._blended, self._planned_at = 0, 0.0

    def _choose_plan(self) -> None:
        if self.policy.plan is None:
            self._start()
            self._adopt(waiting=True)
        elif self._ready():
            self._adopt()
        if self._running is None and self._past_horizon(-self._lead):
            self._start()
            if self._ready():
                self._adopt()
        if self._running and self._patience is not None and self._past_horizon(self._patience):
            self._adopt(waiting=True)

    def _follow(self) -> FloatArray:
        """Take a step with the current plan, mixed with the former one while it takes over."""
        if self._former is None or self._blended == self._blend:
            self._former = None
            return self.policy.step()
        former = self.policy.follow(self._former)
        self._blended += 1
        weight = self._blended / (self._blend + 1)
        action: FloatArray = former + weight * (self.policy.step() - former)
        return action

    def _start(self) -> None:
        request, begun = self.policy.request(), time.perf_counter()
        if self._pool is not None:
            self._running = request, begun, self._pool.submit(self.policy.replan, request)
            return
        done: Future[Plan] = Future()
        done.set_result(self.policy.replan(request))
        self._running = request, begun, done

    def _ready(self) -> bool:
        if self._running is None:
            return False
        request, _, plan = self._running
        return plan.done() and self.policy.steps - request.step >= (self._delay or 0)

    def _adopt(self, *, waiting: bool = False) -> None:
        assert self._running is not None
        _, self._planned_at, plan = self._running
        self._running = None
        self.policy.adopt(plan.result())
        self.statistics.plans += 1
        self.statistics.waits += waiting

    def _past_horizon(self, steps: int) -> bool:
        """Return whether the current plan is at least this many steps past its horizon."""
        horizon, age = self.policy.description.horizon, self.policy.age
        return horizon is not None and age is not None and age >= horizon + steps
