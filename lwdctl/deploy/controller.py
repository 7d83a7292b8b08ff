"""Control at two rates: a background thread re-plans while the current plan acts."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from lwdctl.core.records import FloatArray
from lwdctl.deploy.runtime import ExportedPolicy, Observation, Plan, Request


@dataclass
class Punctuality:
    """How well an episode's re-plans kept their deadlines.

    Attributes:
        plans: Plans adopted.
        late_steps: Steps taken with a plan that was past its action horizon.
        waits: How often `act` waited for a plan, including the episode's first one.
    """

    plans: int = 0
    late_steps: int = 0
    waits: int = 0


class TwoRateController:
    """Acts at control rate with an exported policy and re-plans in the background.

    A call of `act` does the following, in this order:

    1. An episode's first call waits for its plan.
    2. A new plan that is ready is adopted. Its time input counts from the observation that it was
       made for.
    3. When the current plan is `lead` steps from its action horizon and no re-plan is running,
       one is started from the current observation.
    4. While the next plan is late, the current one acts past its horizon. Once it is `patience`
       steps past it, the call waits.

    Use it as a context manager, or call `close`. Call it from one thread only.

    Args:
        policy: The policy; nothing but the controller may call it.
        lead: Steps before the end of the action horizon at which the next re-plan is started.
            Choose about as many as a re-plan takes, so that plans are not late.
        patience: Steps that a plan may act past its horizon; None never waits.
        delay: None re-plans in a thread. A number re-plans in the calling thread and adopts the
            plan that many steps later: deterministic, for tests and simulated delays.
    """

    def __init__(
        self,
        policy: ExportedPolicy,
        *,
        lead: int = 0,
        patience: int | None = None,
        delay: int | None = None,
    ) -> None:
        self.policy, self.punctuality = policy, Punctuality()
        self._lead, self._patience, self._delay = lead, patience, delay
        self._pool = ThreadPoolExecutor(1, "lwdctl-replan") if delay is None else None
        self._running: tuple[Request, Future[Plan]] | None = None

    def reset(self, seed: int = 0, task: str = "", label: str = "") -> None:
        """Begin an episode; see `ExportedPolicy.reset`. A running re-plan is discarded."""
        self._running = None
        self.punctuality = Punctuality()
        self.policy.reset(seed, task, label)

    def act(self, observation: Observation) -> FloatArray:
        """Return the action (action,) for an observation.

        Raises:
            DataError: An observation that does not fit, or an action that is not finite.
            Exception: Whatever re-planning raised in its thread.
        """
        self.policy.observe(observation)
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
        self.punctuality.late_steps += self._past_horizon(0)
        return self.policy.step()

    def close(self) -> None:
        """End the thread once a running re-plan has finished."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> TwoRateController:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the thread."""
        self.close()

    def _start(self) -> None:
        request = self.policy.request()
        if self._pool is not None:
            self._running = request, self._pool.submit(self.policy.replan, request)
            return
        done: Future[Plan] = Future()
        done.set_result(self.policy.replan(request))
        self._running = request, done

    def _ready(self) -> bool:
        if self._running is None:
            return False
        request, plan = self._running
        return plan.done() and self.policy.steps - request.step >= (self._delay or 0)

    def _adopt(self, *, waiting: bool = False) -> None:
        assert self._running is not None
        _, plan = self._running
        self._running = None
        self.policy.adopt(plan.result())
        self.punctuality.plans += 1
        self.punctuality.waits += waiting

    def _past_horizon(self, steps: int) -> bool:
        """Return whether the current plan is at least this many steps past its horizon."""
        horizon, age = self.policy.description.horizon, self.policy.age
        return horizon is not None and age is not None and age >= horizon + steps
