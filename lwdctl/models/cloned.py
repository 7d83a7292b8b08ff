"""Behavior cloning: one MLP for all of the data, of the generated policy's architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lwdctl.models.generated import PolicyShape
from lwdctl.models.normalizer import Normalizer
from lwdctl.models.vae import Snippets


@dataclass(frozen=True)
class ClonedSpec:
    """Everything needed to rebuild a cloned policy.

    Attributes:
        observation_keys: Observation keys, in the order of their components.
        observation_size: Components of the concatenated observation.
        action_size: Components of the action.
        hidden: Width of each hidden layer.
        tasks: Number of tasks appended as a one-hot vector, 0 for none.
        labels: Number of behavior labels appended as a one-hot vector, 0 for none.
        action_target: `"absolute"`, or `"relative"` to the observation components that start
            at `reference_start`.
        reference_start: First observation component the action is relative to, or -1.
    """

    observation_keys: tuple[str, ...]
    observation_size: int
    action_size: int
    hidden: tuple[int, ...]
    tasks: int
    labels: int
    action_target: str
    reference_start: int

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ClonedSpec:
        """Rebuild from what `to_mapping` returned, after a trip through JSON."""
        tuples = {name: tuple(values[name]) for name in ("observation_keys", "hidden")}
        return cls(**{**values, **tuples})

    @property
    def shape(self) -> PolicyShape:
        """Sizes of the network."""
        inputs = self.observation_size + self.tasks + self.labels
        return PolicyShape(inputs, self.hidden, self.action_size)


class ClonedPolicy(nn.Module):
    """An MLP with ReLU from one observation to one action."""

    def __init__(self, spec: ClonedSpec) -> None:
        super().__init__()
        self.spec = spec
        self.observation = Normalizer(spec.observation_size)
        self.action = Normalizer(spec.action_size)
        layers = [part for i, o in spec.shape.layers for part in (nn.Linear(i, o), nn.ReLU())]
        self.network = nn.Sequential(*layers[:-1])

    def act(self, observations: Tensor, task: Tensor, label: Tensor) -> Tensor:
        """Return actions (batch, action) in environment units, not clipped.

        Args:
            observations: (batch, obs), environment units.
            task: (batch,) task index; ignored unless appended.
            label: (batch,) label index; ignored unless appended.
        """
        outputs = self.network(self._inputs(observations, task, label))
        return self.action.restore(outputs) + self._reference(observations)

    def terms(
        self, batch: Snippets, task: Tensor, label: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the squared error on normalized actions: summed over components, batch mean."""
        del generator
        observations, actions = batch.observations[:, 0], batch.actions[:, 0]
        wanted = self.action.normalize(actions - self._reference(observations))
        error = self.network(self._inputs(observations, task, label)) - wanted
        return {"squared_error": error.square().sum(1).mean()}

    def _inputs(self, observations: Tensor, task: Tensor, label: Tensor) -> Tensor:
        parts = [self.observation.normalize(observations)]
        for index, count in ((task, self.spec.tasks), (label, self.spec.labels)):
            if count:
                parts.append(nn.functional.one_hot(index, count).to(observations.dtype))
        return torch.cat(parts, dim=1)

    def _reference(self, observations: Tensor) -> Tensor:
        if self.spec.action_target != "relative":
            return observations.new_zeros(())
        start = self.spec.reference_start
        return observations[:, start : start + self.spec.action_size]
