"""A policy that writes down what it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lwdctl.core.records import FloatArray
from lwdctl.policies.policy import BatchPolicy, EpisodePlan, PolicyCost


class TracedPolicy:
    """Acts as another policy does and keeps the observations of every episode.

    The engine shows a policy every observation but the last: an episode that is to show `n`
    actions' outcomes runs for `n + 1` steps.

    Args:
        policy: Who acts.
        keys: Observation keys to keep, side by side.
    """

    def __init__(self, policy: BatchPolicy, keys: Sequence[str]) -> None:
        self._policy, self._keys = policy, keys
        self._plans: Sequence[EpisodePlan | None] = ()
        self._seen: dict[int, list[FloatArray]] = {}

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per slot; one that is run again is written down anew."""
        self._plans = episodes
        self._seen.update({plan.index: [] for plan in episodes if plan is not None})
        self._policy.reset(episodes)

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return the other policy's actions (slot, action)."""
        rows = np.concatenate([observations[key] for key in self._keys], axis=1)
        for slot in np.flatnonzero(active).tolist():
            plan = self._plans[slot]
            assert plan is not None  # an idle slot is not active
            self._seen[plan.index].append(rows[slot].copy())
        return self._policy.act(observations, active)

    def cost(self) -> PolicyCost:
        """Return what the other policy spent."""
        return self._policy.cost()

    def observations(self, index: int) -> FloatArray:
        """Return what the episode of a plan saw before each action, (time, obs)."""
        rows = self._seen.get(index)
        return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)
