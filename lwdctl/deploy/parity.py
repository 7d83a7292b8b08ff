"""Comparison of an exported policy with the trained one: same observations and sampling noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.records import FloatArray
from lwdctl.core.seeding import EVALUATION_SEED_START, derive_seed
from lwdctl.deploy.runtime import ExportedPolicy, Networks
from lwdctl.evaluation.latency import time_policy
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.latent_source import SampledLatents
from lwdctl.policies.policy import EpisodePlan, PolicyCost
from lwdctl.policies.replanning import GeneratedNetworks, ReplanningPolicy

LARGEST_DIFFERENCE = 1e-3
"""Largest difference of an action, in standard deviations of the demonstrations' actions."""

STEPS = 300


@dataclass(frozen=True)
class TrainedPolicy:
    """The models that a policy is exported from, and their data."""

    vae: PolicyVae
    diffusion: LatentDiffusion
    store: SnippetStore
    num_inference_steps: int

    def policy(self, horizon: int | None) -> ReplanningPolicy:
        """Return the policy as evaluation runs it, sampling with DDIM."""
        spec = self.store.spec
        source = SampledLatents(
            self.diffusion,
            spec.env.tasks,
            spec.labels,
            "ddim",
            self.num_inference_steps,
            self.diffusion.spec.history,
        )
        return ReplanningPolicy(GeneratedNetworks(self.vae), source, horizon)

    @cached_property
    def demonstration(self) -> tuple[EpisodePlan, Mapping[str, FloatArray]]:
        """The longest demonstration as an episode, with at most `STEPS` of its observations."""
        table, spec = self.store.episodes, self.store.spec
        index = int(table.length.argmax())
        start, length = int(table.start[index]), min(STEPS, int(table.length[index]))
        task, label = int(table.task[index]), int(table.label[index])
        plan = EpisodePlan(
            0,
            EVALUATION_SEED_START,
            spec.env.tasks[task] if task >= 0 else "",
            spec.labels[label] if label >= 0 else "",
        )
        keys = self.vae.spec.observation_keys
        return plan, {key: self.store.read(key, start, start + length) for key in keys}


class ExportedBatch:
    """One exported policy per environment, stepped one after the other; a `BatchPolicy`.

    Args:
        directory: What `lwdctl export policy` wrote.
        num_envs: Number of environments.
    """

    def __init__(self, directory: Path, num_envs: int) -> None:
        networks = Networks(directory)
        self._policies = [ExportedPolicy(networks) for _ in range(num_envs)]
        self._replans = np.zeros(num_envs, dtype=np.int64)

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Begin one episode per environment; None leaves it idle."""
        self._replans[:] = 0
        for policy, episode in zip(self._policies, episodes, strict=True):
            if episode is not None:
                policy.reset(episode.seed, episode.task, episode.label)

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (env, action) in environment units."""
        size = self._policies[0].description.action.size
        actions = np.zeros((len(self._policies), size), dtype=np.float32)
        for number in np.flatnonzero(active):
            policy = self._policies[number]
            before = policy.plan
            seen = {name: rows[number] for name, rows in observations.items()}
            actions[number] = policy.act(seen)
            self._replans[number] += policy.plan is not before
        return actions

    def cost(self) -> PolicyCost:
        """Return the re-plans of every environment."""
        return PolicyCost(self._replans.copy(), {}, self._replans.copy())


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


def measure_parity(directory: Path, trained: TrainedPolicy) -> dict[str, Any]:
    """Compare actions and times on the longest demonstration.

    Returns:
        Compared steps; the largest difference of an action in standard deviations; and for
        both policies the median milliseconds of a control step and of a re-plan.
    """
    exported = ExportedPolicy(directory)
    description = exported.description
    policy = trained.policy(description.horizon)
    plan, observations = trained.demonstration
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
    timed = {
        "torch": time_policy(policy, plan, observations, device).summary(),
        "exported": time_policy(ExportedBatch(directory, 1), plan, observations, device).summary(),
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


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else float(f"{milliseconds:.3g}")
