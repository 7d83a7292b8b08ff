"""A model of the next observation, through which decoded policies are rolled out in training.

It is trained beside the policy VAE and not saved with it, so that policies and their cost stay as
they are. The later versions of the paper (WARPD) train with one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lwdctl.models import generated
from lwdctl.models.files import TrainingOnly
from lwdctl.models.generated import Layer
from lwdctl.models.normalizer import noisy_observations

if TYPE_CHECKING:
    from lwdctl.models.vae import PolicyVae, Snippets

FARTHEST = 20.0
"""Standard deviations at which the observations of a rollout end: none may overflow."""


class Dynamics(TrainingOnly):
    """An MLP from observation and action to the change of the observation, all normalized.

    Args:
        observation_size: Components of an observation.
        action_size: Components of an action.
        steps: Length of a rollout at the end of training.
        growth: Training steps in which rollouts grow from one step to `steps`; `plan` changes it.
            All steps are computed from the beginning, with weight 0 beyond the present length.
        noise: Size of the noise on the observation that a rollout begins from; see
            `noisy_observations`.
        width: Width of the hidden layers.
    """

    calls: Tensor
    growth: Tensor

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        steps: int,
        growth: int,
        noise: float = 0.0,
        width: int = 256,
    ) -> None:
        super().__init__()
        self.steps, self.noise = steps, noise
        self.network = nn.Sequential(
            nn.Linear(observation_size + action_size, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, observation_size),
        )
        self.register_buffer("calls", torch.zeros(()))
        # On the device, where a captured CUDA graph reads it; it follows from the plan.
        self.register_buffer("growth", torch.tensor(float(growth)), persistent=False)

    def plan(self, updates: int) -> None:
        """Let rollouts grow over the first half of so many training steps."""
        self.growth.fill_(updates // 2)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return the next observations (batch, obs) after actions (batch, action), normalized."""
        change: Tensor = self.network(torch.cat([observations, actions], -1))
        return observations + change

    def weights(self) -> Tensor:
        """Return the weight of each step of a rollout (step,), in [0, 1].

        In training, the rollout reaches as far as the training steps made so far allow.
        """
        steps = torch.arange(self.steps, device=self.calls.device)
        if not self.training:
            return torch.ones_like(steps, dtype=torch.float32)
        length = 1.0 + (self.steps - 1) * (self.calls / self.growth.clamp(min=1.0)).clamp(max=1.0)
        return (length - steps).clamp(0.0, 1.0)

    def terms(
        self, vae: PolicyVae, layers: Sequence[Layer], batch: Snippets, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the errors of the model and of the policies, unweighted scalars.

        Every snippet draws the step at which its rollout begins. Gradients of `rollout` reach the
        policies alone, those of `dynamics` the model alone. Actions are not clipped to the
        environment's limits. In training, rollouts grow with every call.

        Args:
            vae: Its normalizers and what the policies observe.
            layers: Unpacked weights of one policy per snippet.
            batch: Snippets, padded only after their recorded steps.
            generator: Source of the drawn steps and of the noise.

        Returns:
            `dynamics`: squared error of the model one step ahead of a recorded one. `rollout`:
            squared error of the observations that the policy leads to. Outside of training also
            `drift`: the same where the recorded actions are taken, which is the model's own error
            over a rollout. All are of normalized observations, averaged over components and
            snippets, and over the steps of a rollout, where steps without a recorded observation
            count as 0: the last steps of a snippet weigh no more than those in its middle, and its
            first ones less, since fewer rollouts pass them.
        """
        drawn = self._draw(vae, batch, generator)

        def decoded(state: Tensor, step: int) -> Tensor:
            observations = vae.observation.restore(state).unsqueeze(1)
            inputs = vae.policy_inputs(observations, drawn.elapsed[:, step].unsqueeze(1))
            return generated.run(list(layers), inputs).squeeze(1)

        recorded = drawn.observations
        ahead = (self(recorded[:, :-1], drawn.actions) - recorded[:, 1:]).square().mean(-1)
        rollout = self._roll_out(drawn, self._begin(vae, drawn, generator), decoded)
        weights = self.weights()
        terms = {
            "dynamics": (ahead * drawn.counted).sum(1).mean() / self.steps,
            "rollout": (rollout * drawn.counted * weights).sum(1).mean() / weights.sum(),
        }
        if self.training:
            with torch.no_grad():
                self.calls.add_(1.0)
        else:
            drift = self._roll_out(drawn, recorded[:, 0], lambda _, step: drawn.actions[:, step])
            terms["drift"] = (drift * drawn.counted).sum(1).mean() / self.steps
        return terms

    def _draw(self, vae: PolicyVae, batch: Snippets, generator: torch.Generator) -> Stretches:
        """Draw where each snippet's rollout begins, at a recorded step that is not the last."""
        length = batch.mask.shape[1]
        recorded = batch.mask.sum(1, keepdim=True)
        drawn = torch.rand(recorded.shape, generator=generator, device=recorded.device)
        first = (drawn * (recorded - 1.0).clamp(min=1.0)).long()
        steps = first + torch.arange(self.steps + 1, device=recorded.device)
        inside, steps = steps < length, steps.clamp(max=length - 1)

        def take(values: Tensor) -> Tensor:
            return values.gather(1, steps.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

        return Stretches(
            observations=take(vae.observation.normalize(batch.observations)),
            actions=take(vae.target(batch))[:, :-1],
            counted=(batch.mask.gather(1, steps) * inside)[:, 1:],
            elapsed=steps / vae.spec.snippet_length,
        )

    def _begin(self, vae: PolicyVae, drawn: Stretches, generator: torch.Generator) -> Tensor:
        """Return the first observations (batch, obs) of rollouts, noisy in training."""
        if not (self.training and self.noise > 0):
            return drawn.observations[:, 0]
        recorded = vae.observation.restore(drawn.observations[:, :1])
        scale = vae.observation.scale
        noisy = noisy_observations(recorded, scale, vae.spec, self.noise, generator)
        return vae.observation.normalize(noisy).squeeze(1)

    def _roll_out(
        self, drawn: Stretches, begin: Tensor, act: Callable[[Tensor, int], Tensor]
    ) -> Tensor:
        """Return the squared errors (batch, step) of the observations that actions lead to.

        The model's weights get no gradient.
        """
        fixed = {name: value.detach() for name, value in self.named_parameters()}
        state, errors = begin, []
        for step in range(self.steps):
            ahead = functional_call(self, fixed, (state, act(state, step)))
            state = ahead.clamp(-FARTHEST, FARTHEST)
            errors.append((state - drawn.observations[:, step + 1]).square().mean(-1))
        return torch.stack(errors, 1)


@dataclass(frozen=True)
class Stretches:
    """The stretch of every snippet that its rollout is compared with.

    Attributes:
        observations: (batch, step + 1, obs), normalized.
        actions: (batch, step, action), normalized targets of the policy.
        counted: (batch, step), 1 where the observation after the step is recorded, else 0.
        elapsed: (batch, step + 1), fraction of the snippet that has elapsed.
    """

    observations: Tensor
    actions: Tensor
    counted: Tensor
    elapsed: Tensor
