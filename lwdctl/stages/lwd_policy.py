"""The LWD policy of a trained chain, under one of the latent sources that `eval` compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models.diffusion import check_num_inference_steps
from lwdctl.models.files import load_spec
from lwdctl.models.vae import PolicyVae
from lwdctl.policies import latent_source
from lwdctl.policies.latent_source import LatentSource
from lwdctl.policies.loading import load_diffusion
from lwdctl.policies.replanning import GeneratedNetworks, ReplanningPolicy

SAMPLED, ORACLE, MEAN = "sampled", "oracle", "mean"
LATENTS = (SAMPLED, ORACLE, "random", "shuffled", MEAN)


@dataclass(frozen=True)
class Chain:
    """The artifacts a policy is made of, opened."""

    inputs: Mapping[str, Artifact]
    store: SnippetStore
    vae: PolicyVae
    device: torch.device


def lwd_policy(
    latent: str,
    chain: Chain,
    horizon: int,
    sampler: str,
    num_inference_steps: int,
    warm_start: float = 0.0,
) -> ReplanningPolicy:
    """Build the policy.

    Args:
        latent: One of `LATENTS`.
        chain: The trained models and their data.
        horizon: Executed steps between two queries, 0 for the whole episode.
        sampler: Denoising sampler of `sampled`.
        num_inference_steps: Denoising steps of `sampled`.
        warm_start: Share of them that `sampled` does from its previous latent; 0 for none.
    """
    source = _source(latent, chain, sampler, num_inference_steps, warm_start)
    return ReplanningPolicy(GeneratedNetworks(chain.vae), source, horizon or None)


def check_inference_steps(diffusion: Artifact, asked: int) -> None:
    """Refuse more denoising steps than a diffusion model was trained with, without loading it.

    Raises:
        ConfigError: It was asked for more.
    """
    check_num_inference_steps(load_spec(diffusion.path)["num_train_timesteps"], asked)


def _source(
    latent: str, chain: Chain, sampler: str, num_inference_steps: int, warm_start: float
) -> LatentSource:
    spec = chain.store.spec
    if latent == SAMPLED:
        model = load_diffusion(chain.inputs["diffusion"], chain.device)
        return latent_source.SampledLatents(
            model,
            spec.env.tasks,
            spec.labels,
            sampler,
            num_inference_steps,
            model.spec.history,
            warm_start=warm_start,
        )
    if latent == ORACLE:
        return latent_source.OracleLatents(
            chain.vae, _demonstrations(chain), chain.store.episodes.length
        )
    store = LatentStore.open(chain.inputs["latents"].path)
    if latent in ("shuffled", "random"):
        return latent_source.RecordedLatents.read(
            store, spec.env.tasks, spec.labels, own=latent == "random"
        )
    mean, _ = store.statistics()
    return latent_source.MeanLatents(mean.astype("float32"))


def _demonstrations(chain: Chain) -> SnippetBatches:
    spec = chain.vae.spec
    return SnippetBatches(
        chain.store,
        spec.observation_keys,
        WindowRule(*spec.window),
        split="all",
        seed=0,
        device=chain.device,
    )
