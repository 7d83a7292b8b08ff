"""What the policies of an evaluation cost: operations per environment step, and latency."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lwdctl.artifacts.durable import write_durably
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import METHOD, EvalConfig
from lwdctl.core.progress import Progress
from lwdctl.core.records import FloatArray
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.latency import time_policy
from lwdctl.models.behavior_cloning import ClonedPolicy
from lwdctl.models.diffusion import LatentDiffusion, inference_timesteps, truncate_schedule
from lwdctl.models.flops import PolicyFlops, baseline_flops, lwd_flops
from lwdctl.policies.loading import load_baseline, load_diffusion, load_vae
from lwdctl.policies.policy import EpisodePlan
from lwdctl.stages.eval_arms import Arm
from lwdctl.stages.eval_policies import Policies
from lwdctl.stages.lwd_policy import SAMPLED


@dataclass(frozen=True)
class Price:
    """What an arm's episodes cost.

    Attributes:
        operations: Of its networks.
        calls: Denoiser calls of an episode's first query, 0 where latents are not sampled.
        warm_calls: Denoiser calls of every later query.
        horizon: Steps between two queries of a policy that asks for latents without sampling
            them (0: one query per episode), or None.
    """

    operations: PolicyFlops
    calls: int = 0
    warm_calls: int = 0
    horizon: int | None = None

    def __call__(self, results: Sequence[EpisodeResult]) -> dict[str, Any]:
        """Return the cost of these episodes; see `evaluation.results.ResultRow`."""
        steps = sum(item.steps for item in results)
        if not steps:
            return {}
        queries = sum(self._queries(item) for item in results)
        first = sum(1 for item in results if self._queries(item))
        calls = first * self.calls + (queries - first) * self.warm_calls
        denoising = calls / queries * self.operations.denoiser if queries else 0.0
        decoding, policy = self.operations.decoding, self.operations.step
        per_step = queries / steps
        return {
            "flops_per_step": per_step * (denoising + decoding) + policy,
            "denoiser_flops_per_replan": denoising,
            "decoder_flops_per_replan": decoding,
            "policy_flops_per_step": policy,
            "parameters_at_control_rate": self.operations.control_parameters,
            "parameters": self.operations.parameters,
            "replans_per_step": per_step,
        }

    def _queries(self, result: EpisodeResult) -> int:
        if self.horizon is None:
            return result.num_replans
        return math.ceil(result.steps / self.horizon) if self.horizon else min(1, result.steps)


def price(arm: Arm, config: EvalConfig, policies: Policies) -> Price:
    """Count what an arm's networks cost."""
    if arm.trained.main is None:
        return Price(PolicyFlops())
    models, device = arm.trained.artifacts, policies.device
    if arm.policy != METHOD:
        model = load_baseline(models["baseline"], device)
        counted = baseline_flops(model)
        if isinstance(model, ClonedPolicy):
            return Price(counted)
        return Price(counted, *_calls(model.diffusion, config))
    vae = load_vae(models["vae"], device)
    if arm.latent != SAMPLED:
        return Price(lwd_flops(vae, None), horizon=policies.lengths(arm)[1] or 0)
    diffusion = load_diffusion(models["diffusion"], device)
    return Price(lwd_flops(vae, diffusion), *_calls(diffusion, config))


def _calls(model: LatentDiffusion, config: EvalConfig) -> tuple[int, int]:
    """Return the denoiser calls of an episode's first query, and of its others."""
    visited = inference_timesteps(model.spec, config.num_inference_steps)
    warm = truncate_schedule(visited, config.warm_start) if config.warm_start else visited
    return len(visited), len(warm)


def add_latency(
    arms: Sequence[Arm], policies: Policies, store: SnippetStore, folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Time all arms, one after the other in this process, and note it in their records.

    Cells from an earlier evaluation are timed anew: timings of one table belong to one machine
    and one run. Arms that differ in their disturbance alone are the same policy.

    Args:
        arms: What is evaluated.
        policies: Builds them.
        store: Recorded observations.
        folder: Holds a record `<arm>.json` per arm.
        progress: Where to report.

    Returns:
        The cells of all records.
    """
    timed: dict[tuple[Any, ...], dict[str, Any]] = {}
    cells: list[dict[str, Any]] = []
    for arm in arms:
        main = arm.trained.main
        same = arm.policy, arm.latent, main and main.path, arm.trained.horizon
        if same not in timed:
            timed[same] = _latency(arm, policies, store)
            progress.message(f"{arm.name}: {_said(timed[same])}")
        path = folder / f"{arm.name}.json"
        record = json.loads(path.read_text())
        for cell in record["results"]:
            cell["cost"] = {**cell["cost"], **timed[same]}
        write_durably(path, (json.dumps(record, indent=1) + "\n").encode())
        cells += record["results"]
    return cells


def _latency(arm: Arm, policies: Policies, store: SnippetStore) -> dict[str, Any]:
    plan, observations = _recorded(policies, store)
    timings = time_policy(policies.build(arm, slots=1), plan, observations, policies.device)
    return {**timings.summary(), "latency_threads": torch.get_num_threads()}


def _recorded(
    policies: Policies, store: SnippetStore
) -> tuple[EpisodePlan, Mapping[str, FloatArray]]:
    """Return the longest demonstration as an episode, with its observations."""
    table, spec = store.episodes, store.spec
    index = int(table.length.argmax())
    start, length = int(table.start[index]), int(table.length[index])
    task = spec.env.tasks[max(0, int(table.task[index]))]
    label = spec.labels[max(0, int(table.label[index]))] if policies.labels else ""
    plan = EpisodePlan(0, EVALUATION_SEED_START, task, label, demonstration=index)
    names = [item.name for item in spec.observations]
    return plan, {name: store.read(name, start, start + length) for name in names}


def _said(timed: Mapping[str, Any]) -> str:
    step, worst, replan = (timed[f"latency_{name}_ms"] for name in ("step", "step_p99", "replan"))
    parts = [] if step is None else [f"{step:.3g} ms per step (99 %: {worst:.3g} ms)"]
    parts += [] if replan is None else [f"{replan:.3g} ms per re-plan"]
    return ", ".join(parts)
