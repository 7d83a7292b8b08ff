"""The variational autoencoder over policies (paper section 4.1).

Loss that is minimized, reduction included: the mean over valid time steps of the sum over
action components of the squared error on normalized actions, averaged over the batch, plus
`beta_kl` times the KL term: the sum over latent components of sigma^2 + mu^2 - 1 - log sigma^2
(twice the divergence, as the paper writes it), averaged over the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lwdctl.models import generated
from lwdctl.models.encoder import SnippetEncoder
from lwdctl.models.generated import Layer, PolicyShape
from lwdctl.models.hypernetwork import PolicyDecoder
from lwdctl.models.noise import normal_like
from lwdctl.models.normalizer import Normalizer


@dataclass(frozen=True)
class VaeSpec:
    """Everything needed to rebuild a policy VAE.

    Attributes:
        snippet_length: Steps per snippet.
        observation_keys: Observation keys, in the order of their components.
        observation_size: Components of the concatenated observation.
        action_size: Components of the action.
        latent_size: Components of the latent.
        decoder_layers: Hidden layers of the hypernetwork.
        policy_hidden: Hidden layers of the generated policy.
        time_input: Whether the policy sees how far through the snippet it is.
        action_target: `"absolute"`, or `"relative"` to the observation components
            that start at `reference_start`.
        reference_start: First observation component the action is relative to, or -1.
        stride: Steps between the starts of neighboring snippets of an episode.
        starts: Where snippets start: `"anywhere"` in the episode or only at its `"first"` step.
        min_valid_fraction: Smallest fraction of a snippet that must be real steps; the rest is
            padding.
    """

    snippet_length: int
    observation_keys: tuple[str, ...]
    observation_size: int
    action_size: int
    latent_size: int
    decoder_layers: tuple[int, ...]
    policy_hidden: tuple[int, ...]
    time_input: bool
    action_target: str
    reference_start: int
    stride: int = 1
    starts: str = "anywhere"
    min_valid_fraction: float = 1.0

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> VaeSpec:
        """Rebuild from what `to_mapping` returned, after a trip through JSON."""
        filled: dict[str, Any] = dict(values)
        for name in ("observation_keys", "decoder_layers", "policy_hidden"):
            filled[name] = tuple(filled[name])
        return cls(**filled)

    @property
    def window(self) -> tuple[int, int, float, bool]:
        """Which snippets the model was trained on: the arguments of `data.windows.WindowRule`."""
        first_only = self.starts == "first"
        return self.snippet_length, self.stride, self.min_valid_fraction, first_only

    @property
    def policy_shape(self) -> PolicyShape:
        """Sizes of the generated policy."""
        return PolicyShape(
            self.observation_size + int(self.time_input), self.policy_hidden, self.action_size
        )


@dataclass(frozen=True)
class Snippets:
    """A batch of snippets in environment units.

    Attributes:
        observations: (batch, time, obs).
        actions: (batch, time, action).
        mask: (batch, time), 1.0 for real steps, 0.0 for padding.
    """

    observations: Tensor
    actions: Tensor
    mask: Tensor


class PolicyVae(nn.Module):
    """Encoder, hypernetwork decoder and the normalizers that belong to them."""

    def __init__(self, spec: VaeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.observation = Normalizer(spec.observation_size)
        self.action = Normalizer(spec.action_size)
        step_size = spec.observation_size + spec.action_size
        self.encoder = SnippetEncoder(spec.snippet_length, step_size, spec.latent_size)
        self.decoder = PolicyDecoder(spec.policy_shape, spec.latent_size, spec.decoder_layers)

    def encode(self, batch: Snippets) -> tuple[Tensor, Tensor]:
        """Return the posterior's mean and log-variance, each (batch, latent)."""
        steps = torch.cat([self.observation.normalize(batch.observations), self.target(batch)], -1)
        mean, log_variance = self.encoder(steps, batch.mask)
        return mean, log_variance

    def target(self, batch: Snippets) -> Tensor:
        """Return the normalized actions (batch, time, action) the policy should give."""
        return self.action.normalize(batch.actions - self._reference(batch.observations))

    def policy_inputs(self, observations: Tensor, phase: Tensor) -> Tensor:
        """Build what the generated policy sees.

        Args:
            observations: (batch, time, obs), environment units.
            phase: (batch, time), share of the snippet that has passed, in [0, 1].

        Returns:
            (batch, time, input).
        """
        inputs = self.observation.normalize(observations)
        if not self.spec.time_input:
            return inputs
        return torch.cat([inputs, (2.0 * phase - 1.0).unsqueeze(-1)], -1)

    def act(self, layers: list[Layer], observations: Tensor, phase: Tensor) -> Tensor:
        """Run decoded policies closed loop for one step.

        Args:
            layers: Unpacked weights of one policy per slot.
            observations: (slot, obs), environment units.
            phase: (slot,), share of the snippet that has passed, in [0, 1].

        Returns:
            (slot, action), environment units, not clipped.
        """
        inputs = self.policy_inputs(observations.unsqueeze(1), phase.unsqueeze(1))
        outputs = generated.run(layers, inputs).squeeze(1)
        return self.action.restore(outputs) + self._reference(observations)

    def losses(
        self,
        batch: Snippets,
        generator: torch.Generator,
        loss_steps: int = 0,
        observation_noise: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Compute both loss terms, unweighted.

        Args:
            batch: Snippets with `snippet_length` steps.
            generator: Source of the posterior noise and of the drawn steps.
            loss_steps: Reconstruct on this many steps drawn per snippet; 0 takes all.
            observation_noise: Largest deviation of the noise on the policy's normalized
                observations; see `_noisy`.

        Returns:
            Reconstruction and KL term, both scalars.
        """
        mean, log_variance = self.encode(batch)
        noise = normal_like(mean, generator)
        latent = mean + torch.exp(0.5 * log_variance) * noise
        layers = generated.unpack(self.decoder(latent), self.spec.policy_shape)
        error = self._reconstruct(layers, batch, generator, loss_steps, observation_noise)
        kl = torch.sum(log_variance.exp() + mean.square() - 1.0 - log_variance, dim=1).mean()
        return error, kl

    def _reconstruct(
        self,
        layers: list[Layer],
        batch: Snippets,
        generator: torch.Generator,
        loss_steps: int,
        observation_noise: float,
    ) -> Tensor:
        length = batch.mask.shape[1]
        phase = torch.arange(length, device=batch.mask.device) / self.spec.snippet_length
        phase = phase.expand_as(batch.mask)
        observations, actions, mask = batch.observations, batch.actions, batch.mask
        if 0 < loss_steps < length:
            drawn = _draw_steps(mask, loss_steps, generator)
            observations, actions = _take(observations, drawn), _take(actions, drawn)
            phase, mask = phase.gather(1, drawn), mask.gather(1, drawn)
        if observation_noise > 0:
            observations = self._noisy(observations, generator, observation_noise)
        outputs = generated.run(layers, self.policy_inputs(observations, phase))
        wanted = self.action.normalize(actions - self._reference(observations))
        squared = (outputs - wanted).square().sum(-1) * mask
        return (squared.sum(1) / mask.sum(1).clamp(min=1.0)).mean()

    def _noisy(self, observations: Tensor, generator: torch.Generator, size: float) -> Tensor:
        """Move what the policy sees while its target stays where it was.

        Each snippet draws a strength u in [0, 1]; noise is `size * u * (a + b)` with a
        drawn per step and b per snippet, both standard normal. With relative targets
        only the components they are relative to move (the robot is off its path, the
        scene is as recorded), so that the policy learns to return to the path.
        """
        noise = normal_like(observations, generator) + normal_like(observations[:, :1], generator)
        strength = torch.rand(len(noise), 1, 1, generator=generator, device=generator.device)
        change = size * strength.to(noise.device) * self.observation.scale * noise
        if self.spec.action_target != "relative":
            return observations + change
        moved = torch.zeros_like(self.observation.scale)
        start = self.spec.reference_start
        moved[start : start + self.spec.action_size] = 1.0
        return observations + change * moved

    def _reference(self, observations: Tensor) -> Tensor:
        if self.spec.action_target != "relative":
            return observations.new_zeros(())
        start = self.spec.reference_start
        return observations[..., start : start + self.spec.action_size]


def _draw_steps(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` steps (batch, count) per snippet without repeats, real ones first."""
    scores = torch.rand(mask.shape, generator=generator, device=generator.device)
    return torch.topk(scores.to(mask.device) + mask, count, dim=1, sorted=False).indices


def _take(values: Tensor, steps: Tensor) -> Tensor:
    """Pick (batch, count, component) out of (batch, time, component)."""
    return values.gather(1, steps.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
