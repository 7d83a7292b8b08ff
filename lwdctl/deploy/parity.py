"""Comparison of an exported policy with the trained one: same observations and sampling noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.records import FloatArray
from lwdctl.core.seeding import EVALUATION_SEED_START, derive_seed
from lwdctl.deploy.runtime import ExportedPolicy
from lwdctl.evaluation.latency import time_policy
from lwdctl.methods.lwd import TrainedLwd
from lwdctl.methods.method import Acting
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.single import SingleRobotPolicies

LARGEST_DIFFERENCE = 1e-3
"""Largest difference of an action, in standard deviations of the demonstrations' actions."""

STEPS = 300


def torch_noise(plan: EpisodePlan, replan: int, size: int) -> FloatArray:
    """Return the noise (latent,) that the trained policy starts its n-th re-plan from."""
    seed = derive_seed("latent", plan.task, plan.seed, replan)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    values: FloatArray = noise.numpy()
    return values


def act_with_noise(
    policy: ExportedPolicy, plan: EpisodePlan, observations: Mapping[str, FloatArray]
) -> FloatArray:
    """Run an exported policy over recorded observations with the trained policy's noise.

    Args:
        policy: The exported policy.
        plan: The episode.
        observations: Key to (time, obs).

    Returns:
        (time, action), clipped to the action's limits.
    """
    policy.reset(plan.seed, plan.task, plan.label)
    actions, replans = [], 0
    for step in range(min(len(rows) for rows in observations.values())):
        policy.observe({key: rows[step] for key, rows in observations.items()})
        if policy.due:
            noise = torch_noise(plan, replans, policy.description.latent_size)
            policy.adopt(policy.replan(policy.request(noise)))
            replans += 1
        actions.append(policy.step())
    return np.stack(actions)


def measure_parity(
    directory: Path, trained: TrainedLwd, data: SnippetStore, acting: Acting
) -> dict[str, Any]:
    """Compare actions and times on the longest demonstration.

    Args:
        directory: The exported policy.
        trained: The policy that it was exported from.
        data: The demonstrations that it was trained on.
        acting: How it was exported.

    Returns:
        Compared steps; the largest difference of an action in standard deviations; and for
        both policies the median milliseconds of a control step and of a re-plan.
    """
    exported = ExportedPolicy(directory)
    description = exported.description
    policy = trained.batch_policy(acting, 1)
    plan, observations = _demonstration(data, trained.observation_keys)
    actual = act_with_noise(exported, plan, observations)
    policy.reset([plan])
    one = np.ones(1, dtype=np.bool_)
    rows = [
        policy.act({key: rows[step : step + 1] for key, rows in observations.items()}, one)[0]
        for step in range(len(actual))
    ]
    expected = np.clip(np.stack(rows), description.action.low, description.action.high)
    scale = trained.vae.action.scale.numpy()
    device = torch.device("cpu")
    batch = SingleRobotPolicies(exported, 1)
    timed = {
        "torch": time_policy(policy, plan, observations, device).summary(),
        "exported": time_policy(batch, plan, observations, device).summary(),
    }
    return {
        "steps": len(actual),
        "largest_action_difference": float(np.abs((actual - expected) / scale).max()),
        "torch_threads": torch.get_num_threads(),
        "exported_threads": 1,
        **{
            f"{side}_{what}_ms": _rounded(timed[side][f"latency_{what}_ms"])
            for what in ("step", "replan")
            for side in timed
        },
    }


def _demonstration(
    data: SnippetStore, keys: tuple[str, ...]
) -> tuple[EpisodePlan, Mapping[str, FloatArray]]:
    """Return the longest demonstration as an episode, with its first `STEPS` observations."""
    table, spec = data.episodes, data.spec
    index = int(table.length.argmax())
    start, length = int(table.start[index]), min(STEPS, int(table.length[index]))
    task, label = int(table.task[index]), int(table.label[index])
    plan = EpisodePlan(
        0,
        EVALUATION_SEED_START,
        spec.env.tasks[task] if task >= 0 else "",
        spec.labels[label] if label >= 0 else "",
    )
    return plan, {key: data.read(key, start, start + length) for key in keys}


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else float(f"{milliseconds:.3g}")
