"""Behavior cloning: one MLP for all of the data, with the architecture of the generated policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwdctl.models.files import PolicySpec
from lwdctl.models.generated import PolicyShape
from lwdctl.models.normalizer import Normalizer, join_condition
from lwdctl.models.vae import Snippets


@dataclass(frozen=True)
class ClonedSpec(PolicySpec):
    """What is needed to rebuild a cloned policy; see `PolicySpec` too.

    Attributes:
        hidden: Width of each hidden layer.
        tasks: Number of tasks appended as a one-hot vector, 0 for none.
        labels: Number of behavior labels appended as a one-hot vector, 0 for none.
    """

    hidden: tuple[int, ...]
    tasks: int
    labels: int

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
            task: (batch,), task index; ignored unless the network sees the task.
            label: (batch,), label index; ignored unless the network sees the label.
        """
        outputs = self.network(self._inputs(observations, task, label))
        return self.action.restore(outputs) + self.spec.reference(observations)

    def terms(
        self, batch: Snippets, task: Tensor, label: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the squared error on normalized actions: summed over components, batch mean."""
        del generator
        observations, actions = batch.observations[:, 0], batch.actions[:, 0]
        target = self.action.normalize(actions - self.spec.reference(observations))
        error = self.network(self._inputs(observations, task, label)) - target
        return {"squared_error": error.square().sum(1).mean()}

    def _inputs(self, observations: Tensor, task: Tensor, label: Tensor) -> Tensor:
        seen = self.observation.normalize(observations)
        return join_condition(seen, (task, self.spec.tasks), (label, self.spec.labels))
