"""The policy of a trained baseline, as `eval` runs it."""

from __future__ import annotations

import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError
from lwdctl.models.behavior_cloning import ClonedPolicy
from lwdctl.models.chunks import ChunkSpec
from lwdctl.models.diffusion import check_num_inference_steps
from lwdctl.policies.latent_source import SampledLatents
from lwdctl.policies.loading import load_baseline
from lwdctl.policies.mlp import MlpPolicy
from lwdctl.policies.policy import BatchPolicy
from lwdctl.policies.replanning import ActionChunks, ReplanningPolicy


def baseline_policy(
    artifact: Artifact,
    store: SnippetStore,
    horizon: int | None,
    sampler: str,
    num_inference_steps: int,
    device: torch.device,
    warm_start: float = 0.0,
) -> BatchPolicy:
    """Build the policy.

    Args:
        artifact: A `baseline`.
        store: The snippets it was trained on.
        horizon: Executed steps between two queries, 0 for the whole episode, None for what the
            model was trained with. An MLP acts on every observation, whatever the horizon.
        sampler: Denoising sampler.
        num_inference_steps: Denoising steps per query.
        device: Where it runs.
        warm_start: Share of the denoising steps done from the previous chunk; 0 for none.

    Raises:
        ConfigError: A chunk is shorter than the horizon, or too many denoising steps.
    """
    model = load_baseline(artifact, device)
    tasks, labels = store.spec.env.tasks, store.spec.labels
    if isinstance(model, ClonedPolicy):
        return MlpPolicy(model, tasks, labels)
    executed = model.spec.horizon if horizon is None else horizon
    if not executed and 0 < store.spec.env.max_steps <= model.spec.horizon:
        executed = model.spec.horizon  # one chunk all episode
    _check(model.spec, artifact, executed, num_inference_steps)
    source = SampledLatents(
        model.diffusion,
        tasks,
        labels,
        sampler,
        num_inference_steps,
        model.spec.history,
        warm_start=warm_start,
    )
    return ReplanningPolicy(ActionChunks(model, executed), source, executed)


def _check(spec: ChunkSpec, artifact: Artifact, executed: int, num_inference_steps: int) -> None:
    if not 1 <= executed <= spec.horizon:
        asked = f"the horizon of {executed} steps" if executed else "the end of every episode"
        longer = f"train it with --snippet-length {executed}, or " if executed else ""
        raise ConfigError(
            f"{artifact.reference} predicts {spec.horizon} steps per query, which does not reach"
            f" {asked}",
            f"{longer}run it with --horizon {spec.horizon}",
        )
    check_num_inference_steps(
        spec.diffusion.num_train_timesteps, num_inference_steps, artifact.reference
    )
