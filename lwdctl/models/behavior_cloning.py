"""Behavior cloning: one MLP for all of the data, with the architecture of the generated policy.

It can be equipped as LWD is: with a history of observations, a time input, and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwdctl.models.files import Count, Layers, PolicySpec, Size
from lwdctl.models.generated import PolicyShape
from lwdctl.models.normalizer import Normalizer, join_condition, noisy_observations
from lwdctl.models.vae import Snippets


@dataclass(frozen=True)
class ClonedSpec(PolicySpec):
    """What is needed to rebuild a cloned policy; see `PolicySpec` too.

    Attributes:
        hidden: Width of each hidden layer.
        tasks: Number of tasks appended as a one-hot vector, 0 for none.
        labels: Number of behavior labels appended as a one-hot vector, 0 for none.
        history: Observations that it sees, the current one last.
        episode_steps: Steps after which the time input, the elapsed fraction of the episode, stays
            at 1; 0 for no time input.
    """

    hidden: Layers
    tasks: Count
    labels: Count
    history: Size = 1
    episode_steps: Count = 0

    @property
    def shape(self) -> PolicyShape:
        """Sizes of the network."""
        seen = self.history * self.observation_size + int(self.episode_steps > 0)
        inputs = seen + self.tasks + self.labels
        return PolicyShape(inputs, self.hidden, self.action_size)


class ClonedPolicy(nn.Module):
    """An MLP with ReLU from the last observations to one action."""

    def __init__(self, spec: ClonedSpec) -> None:
        super().__init__()
        self.spec = spec
        self.observation = Normalizer(spec.observation_size)
        self.action = Normalizer(spec.action_size)
        layers = [part for i, o in spec.shape.layers for part in (nn.Linear(i, o), nn.ReLU())]
        self.network = nn.Sequential(*layers[:-1])

    def act(self, state: Tensor, step: Tensor, task: Tensor, label: Tensor) -> Tensor:
        """Return actions (batch, action) in environment units, not clipped.

        Args:
            state: (batch, history * obs), environment units, the current observation last.
            step: (batch,), steps of the episode so far; ignored without a time input.
            task: (batch,), task index; ignored unless the network sees the task.
            label: (batch,), label index; ignored unless the network sees the label.
        """
        observations = state.view(len(state), self.spec.history, -1)
        outputs = self.network(self._inputs(observations, step, task, label))
        return self.action.restore(outputs) + self.spec.reference(observations[:, -1])

    def terms(
        self,
        batch: Snippets,
        task: Tensor,
        label: Tensor,
        generator: torch.Generator,
        *,
        observation_noise: float = 0.0,
    ) -> dict[str, Tensor]:
        """Return the squared error on normalized actions: summed over components, batch mean.

        Args:
            batch: Snippets with the steps of a history.
            task: (batch,), task index.
            label: (batch,), label index.
            generator: Source of the noise.
            observation_noise: Size of the noise on the observations; see `noisy_observations`.
        """
        seen, last = batch.observations, self.spec.history - 1
        if observation_noise > 0:
            scale = self.observation.scale
            seen = noisy_observations(seen, scale, self.spec, observation_noise, generator)
        target = self.action.normalize(batch.actions[:, last] - self.spec.reference(seen[:, last]))
        inputs = self._inputs(seen, batch.start + last, task, label)
        error = self.network(inputs).float() - target
        return {"squared_error": error.square().sum(1).mean()}

    def _inputs(self, observations: Tensor, step: Tensor, task: Tensor, label: Tensor) -> Tensor:
        spec, seen = self.spec, self.observation.normalize(observations).flatten(1)
        if spec.episode_steps:
            elapsed = (step.unsqueeze(1) / spec.episode_steps).clamp(max=1.0)
            seen = torch.cat([seen, 2.0 * elapsed - 1.0], dim=1)
        return join_condition(seen, (task, spec.tasks), (label, spec.labels))
