"""Behavior cloning in closed loop: one network, one action per observation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import FloatArray
from lwdctl.models.behavior_cloning import ClonedPolicy
from lwdctl.policies.observed import Observed, now
from lwdctl.policies.policy import EpisodePlan, PolicyCost


class MlpPolicy:
    """Runs a cloned policy on all slots as one batch of fixed width.

    Args:
        model: The network.
        tasks: Task names in the order of their indices.
        labels: Behavior labels in the order of their indices.
    """

    def __init__(
        self, model: ClonedPolicy, tasks: tuple[str, ...], labels: tuple[str, ...]
    ) -> None:
        self._model, self._tasks, self._labels = model, tasks, labels
        self._device = model.observation.mean.device
        self._observed = Observed(model.spec.observation_keys, 1, self._device)
        self.reset(())

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per slot; None leaves the slot idle."""
        spec = self._model.spec
        self._width = len(episodes)
        self._task = self._indices(
            [plan.task if plan else None for plan in episodes], self._tasks, spec.tasks
        )
        self._label = self._indices(
            [plan.label if plan else None for plan in episodes], self._labels, spec.labels
        )
        self._seconds = 0.0

    @torch.inference_mode()
    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (slot, action) in environment units."""
        del active
        begun = now(self._device)
        state = self._observed.add(observations)
        actions: FloatArray = self._model.act(state, self._task, self._label).cpu().numpy()
        self._seconds += now(self._device) - begun
        return actions

    def cost(self) -> PolicyCost:
        """Return zero queries and the time spent since the last `reset`."""
        return PolicyCost(np.zeros(self._width, dtype=np.int64), {"policy": self._seconds})

    def _indices(self, values: Sequence[str | None], names: tuple[str, ...], used: int) -> Tensor:
        if used and not {value for value in values if value is not None} <= set(names):
            raise ConfigError(
                "the model is told what an episode does not say, or says otherwise",
                f"it knows: {', '.join(names)}",
            )
        found = [names.index(value) if used and value is not None else 0 for value in values]
        return torch.tensor(found, dtype=torch.long, device=self._device)
