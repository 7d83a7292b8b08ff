"""A trained LWD policy opened for analyses, until every package opens policies in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models.diffusion import LatentDiffusion, check_num_inference_steps
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.latent_source import LatentSource, MeanLatents, OracleLatents, SampledLatents
from lwdctl.policies.loading import load_diffusion, load_vae
from lwdctl.policies.replanning import GeneratedNetworks, ReplanningPolicy

SAMPLED, ORACLE, MEAN = "sampled", "oracle", "mean"


@dataclass(frozen=True)
class Acting:
    """How a trained policy is run."""

    horizon: int | Literal["episode"] | None = None
    latent: str = "sampled"
    sampler: str = "ddim"
    num_inference_steps: int = 10


class TrainedLwd:
    """A policy VAE and a latent diffusion model."""

    def __init__(self, artifacts: Mapping[str, Artifact], device: torch.device) -> None:
        self._artifacts, self.device = artifacts, device
        self._data = SnippetStore.open(artifacts["snippets"].path)
        self.vae: PolicyVae = load_vae(artifacts["vae"], device)
        self.observation_keys = self.vae.spec.observation_keys
        self.snippet_length: int = self.vae.spec.snippet_length

    @cached_property
    def diffusion(self) -> LatentDiffusion:
        """The latent diffusion model."""
        return load_diffusion(self._artifacts["diffusion"], self.device)

    @property
    def condition(self) -> tuple[str, ...]:
        """What the sampler is conditioned on beside observations."""
        if "diffusion" not in self._artifacts:
            return ()
        return tuple(part for part in self.diffusion.spec.condition if part != "state")

    def horizon(self, acting: Acting) -> int | Literal["episode"]:
        """Return the steps executed per re-plan."""
        return self.snippet_length if acting.horizon is None else acting.horizon

    def check(self, acting: Acting) -> None:
        """Check the number of denoising steps where latents are sampled."""
        if acting.latent == SAMPLED:
            trained = self.diffusion.spec.num_train_timesteps
            check_num_inference_steps(trained, acting.num_inference_steps)

    def batch_policy(self, acting: Acting, num_envs: int) -> ReplanningPolicy:
        """Return the policy."""
        del num_envs
        horizon = self.horizon(acting)
        return ReplanningPolicy(
            GeneratedNetworks(self.vae),
            self.latents(acting),
            None if horizon == "episode" else horizon,
        )

    def latents(self, acting: Acting) -> LatentSource:
        """Return where the policy's latents come from."""
        spec = self._data.spec
        if acting.latent == SAMPLED:
            return SampledLatents(
                self.diffusion, spec.env.tasks, spec.labels, acting.sampler,
                acting.num_inference_steps, self.diffusion.spec.history,
            )  # fmt: skip
        if acting.latent == ORACLE:
            batches = self.demonstrations(self._data)
            return OracleLatents(self.vae, batches, self._data.episodes.length)
        mean, _ = LatentStore.open(self._artifacts["latents"].path).statistics()
        return MeanLatents(mean.astype("float32"))

    def demonstrations(self, data: SnippetStore, split: str = "all") -> SnippetBatches:
        """Return the snippets of a split, cut as the VAE was trained on them."""
        rule = WindowRule(*self.vae.spec.window)
        return SnippetBatches(
            data, self.observation_keys, rule, split=split, seed=0, device=self.device
        )
