"""What acting costs, spread over the steps that episodes really took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.results import Condition
from lwdctl.methods.method import Acting, ActingCost, TrainedPolicy


def condition_cost(cost: ActingCost, episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Return the cost of these episodes; see `ResultRow.cost` for the names.

    Args:
        cost: FLOPs and denoiser calls of the policy.
        episodes: Episodes that ran to their end.
    """
    steps = sum(item.steps for item in episodes)
    if not steps:
        return {}
    replans = [_replans(cost, item) for item in episodes]
    total, first = sum(replans), sum(1 for count in replans if count)
    calls = first * cost.first_calls + (total - first) * cost.later_calls
    flops, per_step = cost.flops, total / steps
    denoising = calls / total * flops.denoiser if total else 0.0
    return {
        "flops_per_step": per_step * (denoising + flops.decoding) + flops.step,
        "denoiser_flops_per_replan": denoising,
        "decoder_flops_per_replan": flops.decoding,
        "policy_flops_per_step": flops.step,
        "parameters_at_control_rate": flops.control_parameters,
        "parameters": flops.parameters,
        "replans_per_step": per_step,
    }


def _replans(cost: ActingCost, episode: EpisodeResult) -> int:
    if cost.horizon is None:
        return episode.num_replans
    if cost.horizon == "episode":
        return min(1, episode.steps)
    return math.ceil(episode.steps / cost.horizon)


def trained_condition(
    name: str, trained: TrainedPolicy, acting: Acting, env: str, **given: Any
) -> Condition:
    """Return the condition of a trained policy.

    Args:
        name: What to call the policy.
        trained: The policy.
        acting: How it is run.
        env: Name of the environment.
        **given: Further attributes of the condition: `latent`, `train_seed`, `perturbation`.
    """
    samples = trained.samples(acting)
    early = samples and trained.can_replan_early and acting.replan_beyond is not None
    return Condition(
        policy=name,
        env=env,
        snippet_length=trained.snippet_length,
        horizon=trained.horizon(acting),
        sampler=acting.sampler if samples else "",
        num_inference_steps=acting.num_inference_steps if samples else None,
        warm_start=acting.warm_start if samples else 0.0,
        temporal_ensemble=acting.temporal_ensemble if trained.has_chunks else None,
        guidance=acting.guidance if samples else 1.0,
        inpainting=acting.inpainting if trained.can_inpaint else 0.0,
        replan_beyond=acting.replan_beyond if early else None,
        replan_after=acting.replan_after if early else None,
        **given,
    )
