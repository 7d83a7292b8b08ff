"""What acting costs, spread over the steps that episodes really took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.methods.method import ActingCost


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
