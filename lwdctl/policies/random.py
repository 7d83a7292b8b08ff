"""The floor: actions drawn evenly from the environment's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lwdctl.core.records import ActionSpec, FloatArray
from lwdctl.core.seeding import generator
from lwdctl.policies.policy import EpisodePlan, PolicyCost


class RandomPolicy:
    """Draws every action evenly from `action`'s limits; the episode's seed fixes the draws.

    Args:
        action: Whose limits to use; infinite ones count as -1 and 1.
        width: Number of slots.
    """

    def __init__(self, action: ActionSpec, width: int) -> None:
        low, high = np.array(action.low), np.array(action.high)
        self._low = np.where(np.isfinite(low), low, -1.0)
        self._high = np.where(np.isfinite(high), high, 1.0)
        self._width = width
        self._generators: list[np.random.Generator | None] = [None] * width

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per slot."""
        self._generators = [
            None if plan is None else generator("random policy", plan.task, plan.seed)
            for plan in episodes
        ]

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (slot, action)."""
        del observations
        actions = np.zeros((self._width, self._low.size), dtype=np.float32)
        for slot, rng in enumerate(self._generators):
            if rng is not None and active[slot]:
                actions[slot] = rng.uniform(self._low, self._high)
        return actions

    def cost(self) -> PolicyCost:
        """Return zero queries."""
        return PolicyCost(num_replans=np.zeros(self._width, dtype=np.int64))
