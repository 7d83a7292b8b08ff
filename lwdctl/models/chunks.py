"""Baselines that answer with a chunk of actions, run open loop.

Diffusion Policy (Chi et al. 2023) denoises the chunk itself. Latent diffusion of chunks (LDP)
denoises the latent of a VAE whose decoder emits the chunk: the method of this package without
the generated policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.encoder import SnippetEncoder
from lwdctl.models.noise import normal_like
from lwdctl.models.normalizer import Normalizer
from lwdctl.models.vae import Snippets

DECODER_HIDDEN = 256


@dataclass(frozen=True)
class ChunkSpec:
    """Everything needed to rebuild a chunk model.

    Attributes:
        observation_keys: Observation keys, in the order of their components.
        observation_size: Components of the concatenated observation.
        action_size: Components of the action.
        history: Observations in the condition, the current one last.
        horizon: Steps of a chunk that can be executed, from the current one on.
        action_target: `"absolute"`, or `"relative"` to the current observation's components
            that start at `reference_start`.
        reference_start: First observation component the actions are relative to, or -1.
        diffusion: The diffusion model over chunks or latents.
    """

    observation_keys: tuple[str, ...]
    observation_size: int
    action_size: int
    history: int
    horizon: int
    action_target: str
    reference_start: int
    diffusion: DiffusionSpec

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ChunkSpec:
        """Rebuild from what `to_mapping` returned, after a trip through JSON."""
        diffusion = DiffusionSpec.from_mapping(values["diffusion"])
        keys = tuple(values["observation_keys"])
        return cls(**{**values, "diffusion": diffusion, "observation_keys": keys})

    def reference(self, observations: Tensor) -> Tensor:
        """Return what actions (batch, time, action) are relative to.

        Args:
            observations: (batch, obs), the current ones, environment units.

        Returns:
            (batch, 1, action), or zero.
        """
        if self.action_target != "relative":
            return observations.new_zeros(())
        start = self.reference_start
        return observations[:, None, start : start + self.action_size]


class ActionDiffusion(nn.Module):
    """Diffusion Policy: the latent of `LatentDiffusion` is the chunk itself.

    The chunk begins at the oldest observation of the history, as its authors have it; what
    lies before the current step is not executed.
    """

    def __init__(self, spec: ChunkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.diffusion = LatentDiffusion(spec.diffusion)

    def terms(
        self, batch: Snippets, task: Tensor, label: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the denoising error of chunks that begin `history - 1` steps early.

        Padding counts: it says that the robot stays where it is.
        """
        seen = batch.observations[:, : self.spec.history]
        chunk = batch.actions - self.spec.reference(seen[:, -1])
        condition = self.diffusion.condition(seen.flatten(1), task, label)
        return {"denoising": self.diffusion.loss(chunk.flatten(1), condition, generator)}

    def actions(self, latent: Tensor, state: Tensor) -> Tensor:
        """Cut the steps to execute out of sampled chunks.

        Args:
            latent: Sampled chunks (batch, time * action).
            state: (batch, history * obs), environment units.

        Returns:
            (batch, horizon, action), environment units.
        """
        chunk = latent.view(len(latent), -1, self.spec.action_size)
        first = self.spec.history - 1
        current = state[:, -self.spec.observation_size :]
        return chunk[:, first : first + self.spec.horizon] + self.spec.reference(current)


class ChunkVae(nn.Module):
    """The policy VAE with an MLP in the hypernetwork's place, which emits the actions."""

    def __init__(self, spec: ChunkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.observation = Normalizer(spec.observation_size)
        self.action = Normalizer(spec.action_size)
        latent = spec.diffusion.denoiser.latent_size
        self.encoder = SnippetEncoder(
            spec.horizon, spec.observation_size + spec.action_size, latent
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, DECODER_HIDDEN),
            nn.ReLU(),
            nn.Linear(DECODER_HIDDEN, DECODER_HIDDEN),
            nn.ReLU(),
            nn.Linear(DECODER_HIDDEN, spec.horizon * spec.action_size),
        )

    def encode(self, batch: Snippets) -> tuple[Tensor, Tensor]:
        """Return the posterior's mean and log-variance, each (batch, latent)."""
        steps = torch.cat([self.observation.normalize(batch.observations), self._target(batch)], -1)
        mean, log_variance = self.encoder(steps, batch.mask)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Return normalized actions (batch, horizon, action)."""
        chunk: Tensor = self.decoder(latent)
        return chunk.view(-1, self.spec.horizon, self.spec.action_size)

    def terms(
        self, batch: Snippets, task: Tensor, label: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return both terms of the loss, unweighted, with the reductions of `models.vae`."""
        del task, label
        mean, log_variance = self.encode(batch)
        latent = mean + torch.exp(0.5 * log_variance) * normal_like(mean, generator)
        squared = (self.decode(latent) - self._target(batch)).square().sum(-1) * batch.mask
        error = squared.sum(1) / batch.mask.sum(1).clamp(min=1.0)
        kl = torch.sum(log_variance.exp() + mean.square() - 1.0 - log_variance, dim=1)
        return {"reconstruction": error.mean(), "kl": kl.mean()}

    def _target(self, batch: Snippets) -> Tensor:
        reference = self.spec.reference(batch.observations[:, 0])
        return self.action.normalize(batch.actions - reference)


class LatentChunks(nn.Module):
    """LDP: latent diffusion whose latents decode to chunks.

    Args:
        spec: What the parts were built from.
        vae: The VAE, or None for one with fresh weights.
        diffusion: The diffusion model, or None likewise.
    """

    def __init__(
        self,
        spec: ChunkSpec,
        vae: ChunkVae | None = None,
        diffusion: LatentDiffusion | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.vae = vae or ChunkVae(spec)
        self.diffusion = diffusion or LatentDiffusion(spec.diffusion)

    def actions(self, latent: Tensor, state: Tensor) -> Tensor:
        """Decode latents (batch, latent); see `ActionDiffusion.actions`."""
        current = state[:, -self.spec.observation_size :]
        return self.vae.action.restore(self.vae.decode(latent)) + self.spec.reference(current)
