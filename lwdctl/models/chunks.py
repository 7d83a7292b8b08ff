"""Models of the baselines that sample a chunk of actions, which is run open loop.

Diffusion Policy (Chi et al. 2023) denoises the chunk itself. Latent diffusion of chunks (LDP)
denoises the latent of a VAE whose decoder outputs the chunk: LWD without the generated policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.files import PolicySpec, Size
from lwdctl.models.normalizer import Normalizer, noisy_observations
from lwdctl.models.vae import (
    SnippetEncoder,
    Snippets,
    counted_steps,
    sample_posterior,
    vae_terms,
)

DECODER_HIDDEN = 256


@dataclass(frozen=True)
class ChunkSpec(PolicySpec):
    """What is needed to rebuild a chunk model; see `PolicySpec` too.

    Attributes:
        history: Observations in the condition, the current one last.
        horizon: Prediction horizon: steps of a chunk that can be executed, the current one first.
        diffusion: The diffusion model over chunks or latents.
    """

    history: Size
    horizon: Size
    diffusion: DiffusionSpec

    def check(self) -> None:
        """Check that the diffusion model sees the observations of the history."""
        super().check()
        self.diffusion.check()
        if self.diffusion.state_size != self.history * self.observation_size:
            raise ValueError("diffusion.state_size: it is not that of the history's observations")

    @property
    def latent_size(self) -> int:
        """Components of the latent."""
        return self.diffusion.denoiser.latent_size


class ActionDiffusion(nn.Module):
    """Diffusion Policy: the latent of `LatentDiffusion` is the chunk itself.

    As in Diffusion Policy, the chunk begins at the oldest observation of the history; the steps
    before the current one are not executed.
    """

    def __init__(self, spec: ChunkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.diffusion = LatentDiffusion(spec.diffusion)

    def terms(
        self,
        batch: Snippets,
        task: Tensor,
        label: Tensor,
        generator: torch.Generator,
        *,
        padding: str = "masked",
        observation_noise: float = 0.0,
        condition_dropout: float = 0.0,
    ) -> dict[str, Tensor]:
        """Return the denoising error of chunks that begin `history - 1` steps early.

        Args:
            batch: Snippets with the steps of a chunk.
            task: (batch,), task index.
            label: (batch,), label index.
            generator: Source of all noise.
            padding: `"masked"` leaves padded steps out of the error; `"counted"` does not, as
                Diffusion Policy: in them the robot stays where it is.
            observation_noise: Size of the noise on the observations; see `noisy_observations`.
            condition_dropout: Probability of a hidden condition; see `LatentDiffusion.loss`.
        """
        seen = batch.observations[:, : self.spec.history]
        if observation_noise > 0:
            scale = self.diffusion.state.scale[: self.spec.observation_size]
            seen = noisy_observations(seen, scale, self.spec, observation_noise, generator)
        chunk = batch.actions - self.spec.reference(seen[:, -1:])
        condition = self.diffusion.condition(seen.flatten(1), task, label)
        weight = None
        if padding == "masked":
            weight = batch.mask.unsqueeze(2).expand_as(chunk).flatten(1)
        clean = chunk.flatten(1)
        loss = self.diffusion.loss(clean, condition, generator, weight, condition_dropout)
        return {"denoising": loss}

    def loss_weight(self, batch: Snippets, *, padding: str = "masked", **others: float) -> Tensor:
        """Return of how many steps or snippets the loss of a batch is the mean, a scalar.

        The arguments are those of `terms`.
        """
        del others
        return batch.mask.sum() if padding == "masked" else batch.mask.new_full((), len(batch.mask))

    def actions(self, latent: Tensor, state: Tensor) -> Tensor:
        """Return the steps of sampled chunks that are executed.

        Args:
            latent: Sampled chunks (batch, time * action).
            state: (batch, history * obs), environment units.

        Returns:
            (batch, horizon, action), environment units.
        """
        chunk = latent.view(len(latent), -1, self.spec.action_size)
        first = self.spec.history - 1
        current = state[:, None, -self.spec.observation_size :]
        return chunk[:, first : first + self.spec.horizon] + self.spec.reference(current)


class ChunkVae(nn.Module):
    """The policy VAE with an MLP in the place of the hypernetwork, which outputs the actions."""

    def __init__(self, spec: ChunkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.observation = Normalizer(spec.observation_size)
        self.action = Normalizer(spec.action_size)
        latent = spec.latent_size
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
        return mean.float(), log_variance.float()

    def decode(self, latent: Tensor) -> Tensor:
        """Return normalized actions (batch, horizon, action)."""
        chunk: Tensor = self.decoder(latent)
        return chunk.view(-1, self.spec.horizon, self.spec.action_size)

    def terms(
        self,
        batch: Snippets,
        task: Tensor,
        label: Tensor,
        generator: torch.Generator,
        *,
        padding: str = "masked",
    ) -> dict[str, Tensor]:
        """Return both terms of the loss, unweighted; see `PolicyVae.terms`."""
        del task, label
        mean, log_variance = self.encode(batch)
        latent = sample_posterior(mean, log_variance, generator)
        mask = counted_steps(batch.mask, padding)
        return vae_terms(self.decode(latent), self._target(batch), mask, mean, log_variance)

    def _target(self, batch: Snippets) -> Tensor:
        reference = self.spec.reference(batch.observations[:, :1])
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
        current = state[:, None, -self.spec.observation_size :]
        return self.vae.action.restore(self.vae.decode(latent)) + self.spec.reference(current)
