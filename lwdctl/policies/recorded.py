"""Recorded actions replayed, and latents that were chosen beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.core.records import FloatArray
from lwdctl.policies.latent_source import ReplanRequest
from lwdctl.policies.policy import EpisodePlan, PolicyCost


class RecordedActions:
    """Plays one sequence of actions per episode, open loop.

    Args:
        actions: (plan, time, action) by the plans' indices, environment units; past its end
            a sequence repeats its last action.
    """

    def __init__(self, actions: FloatArray) -> None:
        self._actions = actions
        self._rows: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._step = 0

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per slot; None leaves the slot idle."""
        self._rows = np.array([plan.index if plan else 0 for plan in episodes], dtype=np.int64)
        self._step = 0

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return the next actions (slot, action)."""
        del observations, active
        step = min(self._step, self._actions.shape[1] - 1)
        self._step += 1
        actions: FloatArray = self._actions[self._rows, step]
        return actions

    def cost(self) -> PolicyCost:
        """Return that nothing was spent."""
        return PolicyCost(np.zeros(len(self._rows), dtype=np.int64))


@dataclass
class GivenLatents:
    """Latents (plan, latent) by the plans' indices, whatever the policy sees."""

    rows: Tensor
    denoises: bool = False
    history: int = 1

    def latents(self, query: ReplanRequest) -> Tensor:
        """Return the latent of every slot's plan."""
        chosen = torch.tensor([plan.index if plan else 0 for plan in query.plans])
        return self.rows[chosen.to(self.rows.device)]
