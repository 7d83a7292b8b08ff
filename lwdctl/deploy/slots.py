"""An exported policy as the rollout engine and the stopwatch take policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lwdctl.core.records import FloatArray
from lwdctl.deploy.networks import Networks
from lwdctl.deploy.runtime import ExportedPolicy
from lwdctl.policies.policy import EpisodePlan, PolicyCost


class ExportedSlots:
    """One exported policy per slot, stepped one after the other; a `Policy`.

    Args:
        directory: What `lwdctl export policy` wrote.
        width: Number of slots.
    """

    def __init__(self, directory: Path, width: int) -> None:
        networks = Networks(directory)
        self._slots = [ExportedPolicy(networks) for _ in range(width)]
        self._plans = np.zeros(width, dtype=np.int64)

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per slot; None leaves the slot idle."""
        self._plans[:] = 0
        for slot, episode in zip(self._slots, episodes, strict=True):
            if episode is not None:
                slot.reset(episode.seed, episode.task, episode.label)

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (slot, action) in environment units."""
        size = self._slots[0].description.action.size
        actions = np.zeros((len(self._slots), size), dtype=np.float32)
        for number in np.flatnonzero(active):
            slot = self._slots[number]
            before = slot.plan
            seen = {name: rows[number] for name, rows in observations.items()}
            actions[number] = slot.act(seen)
            self._plans[number] += slot.plan is not before
        return actions

    def cost(self) -> PolicyCost:
        """Return the denoiser samplings of every slot."""
        return PolicyCost(self._plans.copy(), {}, self._plans.copy())
