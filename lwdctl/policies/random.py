"""Random actions: a lower bound of every comparison, beside standing still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lwdctl.core.records import ActionSpec, FloatArray
from lwdctl.core.seeding import generator
from lwdctl.policies.policy import EpisodePlan, PolicyCost


class RandomPolicy:
    """Draws every action uniformly from `action`'s limits; the episode's seed fixes the draws.

    Args:
        action: Whose limits to use. Infinite ones count as -1 and 1; where the other limit is
            beyond that, the infinite one counts as one unit away from it.
        num_envs: Number of environments.
    """

    def __init__(self, action: ActionSpec, num_envs: int) -> None:
        low, high = np.array(action.low), np.array(action.high)
        self._low = np.where(np.isfinite(low), low, np.where(high > -1.0, -1.0, high - 1.0))
        self._high = np.where(np.isfinite(high), high, np.where(low < 1.0, 1.0, low + 1.0))
        self._num_envs = num_envs

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per environment; None leaves it idle."""
        self._generators = [
            generator("random policy", plan.task, plan.seed) if plan else None for plan in episodes
        ]

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (env, action)."""
        del observations
        actions = np.zeros((self._num_envs, self._low.size), dtype=np.float32)
        for index, rng in enumerate(self._generators):
            if rng is not None and active[index]:
                actions[index] = rng.uniform(self._low, self._high)
        return actions

    def acts_in_parts(self, running: npt.NDArray[np.bool_]) -> bool:
        """Return True: every environment acts by itself."""
        del running
        return True

    def cost(self) -> PolicyCost:
        """Return no re-plans."""
        return PolicyCost(num_replans=np.zeros(self._num_envs, dtype=np.int64))
