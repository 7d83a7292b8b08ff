"""Two rates: a background thread plans, the present plan acts meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from lwdctl.core.records import FloatArray
from lwdctl.deploy.runtime import ExportedPolicy, Plan, Request


@dataclass
class Punctuality:
    """How an episode's plans kept their deadlines.

    Attributes:
        plans: Plans followed.
        late_steps: Steps taken with a plan that was past its horizon.
        waits: How often `act` waited for a plan, the first one of the episode included.
    """

    plans: int = 0
    late_steps: int = 0
    waits: int = 0


class TwoRateController:
    """Acts at control rate with an exported policy that is re-planned beside it.

    What happens at a call of `act`, in this order:

    1. An episode's first call waits for its plan.
    2. A new plan that is ready is followed from here on. Its clock runs since the observation
       it was made from.
    3. When the present plan is `lead` steps from its horizon and no other is under way, a new
       one is begun from what is seen now.
    4. The deadline: a plan acts on past its horizon while the next one is late. Once it is
       `patience` steps past it, the call waits.

    Use it as a context manager, or call `close`. Calls come from one thread.

    Args:
        policy: What acts; the controller alone may call it.
        lead: Steps before the end of a horizon at which the next plan is begun. About as many
            as planning takes keep plans from being late.
        patience: Steps that a plan may act past its horizon; None never waits.
        delay: None plans in a thread. A number plans in the calling thread and lets the plan
            come so many steps later: deterministic, for tests and simulations of a delay.
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
        self._coming: tuple[Request, Future[Plan]] | None = None

    def reset(self, seed: int, task: str = "", label: str = "") -> None:
        """Begin an episode; see `ExportedPolicy.reset`. A plan under way is dropped."""
        self._coming = None
        self.punctuality = Punctuality()
        self.policy.reset(seed, task, label)

    def act(self, observations: Mapping[str, FloatArray]) -> FloatArray:
        """Return the action (action,) for what is seen now.

        Raises:
            DataError: An observation that does not fit, or an action that is not finite.
            Exception: Whatever planning raised in its thread.
        """
        self.policy.observe(observations)
        if self.policy.plan is None:
            self._begin()
            self._follow(waiting=True)
        elif self._ready():
            self._follow()
        if self._coming is None and self._past_horizon(-self._lead):
            self._begin()
            if self._ready():
                self._follow()
        if self._coming and self._patience is not None and self._past_horizon(self._patience):
            self._follow(waiting=True)
        self.punctuality.late_steps += self._past_horizon(0)
        return self.policy.step()

    def close(self) -> None:
        """End the thread; a plan under way is finished first."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> TwoRateController:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the thread."""
        self.close()

    def _begin(self) -> None:
        request = self.policy.request()
        if self._pool is not None:
            self._coming = request, self._pool.submit(self.policy.replan, request)
            return
        done: Future[Plan] = Future()
        done.set_result(self.policy.replan(request))
        self._coming = request, done

    def _ready(self) -> bool:
        if self._coming is None:
            return False
        request, plan = self._coming
        return plan.done() and self.policy.steps - request.step >= (self._delay or 0)

    def _follow(self, *, waiting: bool = False) -> None:
        assert self._coming is not None
        _, plan = self._coming
        self._coming = None
        self.policy.adopt(plan.result())
        self.punctuality.plans += 1
        self.punctuality.waits += waiting

    def _past_horizon(self, steps: int) -> bool:
        """Tell whether the present plan is so many steps past its horizon, or more."""
        horizon, age = self.policy.description.horizon, self.policy.age
        return bool(horizon) and age is not None and age >= horizon + steps
