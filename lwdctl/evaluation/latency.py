"""How long a policy takes to act, alone on one episode as a robot would run it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from lwdctl.core.records import FloatArray
from lwdctl.policies.device import now
from lwdctl.policies.policy import BatchPolicy, EpisodePlan

CONTROL_STEPS = 200
REPLANS = 10
WARM_UP_STEPS = 20


@dataclass
class Timings:
    """Milliseconds of every call of `Policy.act`.

    Attributes:
        steps: Calls that only acted.
        replans: Calls that re-planned, after an episode's first plan.
        first_plans: Calls that made an episode's first plan.
    """

    steps: list[float] = field(default_factory=list)
    replans: list[float] = field(default_factory=list)
    first_plans: list[float] = field(default_factory=list)

    @property
    def enough(self) -> bool:
        """Whether there are `CONTROL_STEPS` and, from a policy that plans, `REPLANS`."""
        planned = len(self.replans or self.first_plans)
        # A policy that re-plans at every step has no other steps.
        stepped = len(self.steps or self.replans or self.first_plans)
        return stepped >= CONTROL_STEPS and (planned >= REPLANS or not self.first_plans)

    def summary(self) -> dict[str, float | None]:
        """Return `latency_step_ms`, `latency_step_p99_ms` and `latency_replan_ms`, or None each.

        The first is a median over steps that do not re-plan, the last over re-plans, or over
        episodes' first plans of a policy that makes no others.
        """
        replans = self.replans or self.first_plans
        columns = (
            ("step", self.steps, 0.5),
            ("step_p99", self.steps, 0.99),
            ("replan", replans, 0.5),
        )
        return {
            f"latency_{name}_ms": float(np.quantile(times, q)) if times else None
            for name, times, q in columns
        }


def time_policy(
    policy: BatchPolicy,
    plan: EpisodePlan,
    observations: Mapping[str, FloatArray],
    device: torch.device,
) -> Timings:
    """Time a policy for one environment on recorded observations, after a warm-up.

    Args:
        policy: Policy to time; it is reset whenever the observations have run out.
        plan: The episode it is reset with.
        observations: Key to (time, obs), of one episode.
        device: Device that the policy computes on, synchronized around every call.
    """
    timings = Timings()
    for _ in range(2):
        _run(policy, plan, observations, device, Timings(), WARM_UP_STEPS)
    while not timings.enough:
        _run(policy, plan, observations, device, timings)
    return timings


def _run(
    policy: BatchPolicy,
    plan: EpisodePlan,
    observations: Mapping[str, FloatArray],
    device: torch.device,
    timings: Timings,
    limit: float = math.inf,
) -> None:
    """Run one episode, at most `limit` steps of it."""
    active, made = np.ones(1, dtype=np.bool_), 0
    policy.reset([plan])
    length = min(len(rows) for rows in observations.values())
    for step in range(int(min(length, limit))):
        seen = {name: rows[step : step + 1].copy() for name, rows in observations.items()}
        begun = now(device)
        policy.act(seen, active)
        spent = 1e3 * (now(device) - begun)
        plans = int(policy.cost().num_plans.sum())
        times = timings.steps if plans == made else timings.replans if made else timings.first_plans
        times.append(spent)
        made = plans
