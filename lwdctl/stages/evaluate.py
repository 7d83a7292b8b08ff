"""`eval`: run policies closed loop on fresh initial states and score them with intervals."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.draft import Draft
from lwdctl.artifacts.durable import write_durably
from lwdctl.core.config import option, to_mapping
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.core.suggest import did_you_mean
from lwdctl.stages.lwd_policy import LATENTS, Chain, lwd_policy
from lwdctl.stages.stage import Stage, StageContext
from lwdctl.stages.videos import check_video, list_videos, recording_of

if TYPE_CHECKING:
    from lwdctl.evaluation.rollout import EpisodeResult
    from lwdctl.evaluation.scores import Cell, Protocol
    from lwdctl.evaluation.video import Recording
    from lwdctl.policies.policy import EpisodePlan, Policy

POLICIES = ("lwd", "random")
EPISODES_FOLDER = "episodes"


@dataclass(frozen=True)
class EvalConfig:
    """What to run and how often."""

    horizon: int | None = option(
        None,
        "Executed steps between two queries; 'episode' for one policy all episode"
        " (default: the snippet length the model was trained with)",
        minimum=0,
        words={"episode": 0},
    )
    policy: tuple[str, ...] = option(("lwd",), "Policies to run", choices=POLICIES)
    latent: tuple[str, ...] = option(
        ("sampled", "encoded", "other", "mean"),
        "Where LWD's latents come from: sampled by the model; encoded from a demonstration that"
        " is replayed from its start; of another task or behaviour; the mean of all",
        choices=LATENTS,
    )
    encoded_split: str = option(
        "all",
        "Which demonstrations 'encoded' restores and replays",
        choices=("all", "train", "validation"),
    )
    episodes: int = option(50, "Episodes per task", minimum=1)
    task: tuple[str, ...] = option((), "Tasks to run (default: all the data has)")
    label: str = option("", "Behaviour label to condition on, when the model is conditioned on it")
    seed: int = option(
        EVALUATION_SEED_START,
        "First evaluation seed; seeds below 100000 belong to data collection",
        minimum=EVALUATION_SEED_START,
    )
    sampler: str = option("ddim", "Denoising sampler", choices=("ddpm", "ddim", "dpm-solver"))
    denoise_steps: int = option(10, "Denoising steps per query", minimum=1)
    perturbation: float = option(
        0.0, "Magnitude of random disturbances, in the environment's unit", minimum=0
    )
    perturbation_probability: float = option(
        0.1, "Probability of a disturbance at each step", minimum=0, maximum=1
    )
    max_steps: int = option(0, "Episode limit in steps; 0 takes the environment's", minimum=0)
    slots: int = option(32, "Episodes stepped as one batch", minimum=1)
    workers: int = option(
        -1, "Simulator processes; 0 runs in this one, -1 one per core", minimum=-1
    )
    timeout: float = option(120.0, "Seconds to wait for a simulator before it counts as hung")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    video: int = option(
        0,
        "Episodes of every policy and latent to record, in turn over the tasks:"
        " an MP4 file and a grid of stills each",
        minimum=0,
    )
    video_every: int = option(
        0, "Steps from frame to frame; 0 plays in real time at most 25 a second", minimum=0
    )


@dataclass(frozen=True)
class Arm:
    """One policy under one latent source; `latent` is empty for policies without latents."""

    policy: str
    latent: str

    @property
    def name(self) -> str:
        """File and display name."""
        return f"{self.policy}-{self.latent}" if self.latent else self.policy


def run(config: EvalConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Evaluate and publish an `evaluation` artifact.

    Raises:
        ConfigError: Unknown tasks, policies or latents.
        SimulatorError: Episodes were lost to simulator errors (after publishing what ran).
    """
    from lwdctl.artifacts.snippets import SnippetStore
    from lwdctl.envs.table import SIMULATORS
    from lwdctl.policies.loading import load_vae
    from lwdctl.training.device import choose_device

    store = SnippetStore.open(inputs["snippets"].path)
    adapter = store.spec.env.adapter
    if not adapter:
        raise ConfigError(
            "the data names no environment to evaluate in",
            "ingest it again with --env ADAPTER/NAME",
        )
    if config.video:
        context.progress.message("trying a video frame")
        check_video(store.spec, (config.task or store.spec.env.tasks)[0], config.timeout)
    SIMULATORS.load(adapter)
    device = choose_device(config.device)
    chain = Chain(inputs, store, load_vae(inputs["vae"], device), device)
    _check(config, chain)
    with context.workspace.begin(
        "evaluation",
        context.name or inputs["diffusion"].name,
        config=to_mapping(config),
        inputs=[inputs["diffusion"]],
        resume=context.resume,
    ) as draft:
        # Finished arms are checkpoints: an interrupted evaluation goes on after them.
        cells = [
            cell for arm in _arms(config) for cell in _measure(arm, config, chain, draft, context)
        ]
        shutil.copytree(draft.checkpoints, draft.path / EPISODES_FOLDER, dirs_exist_ok=True)
        (draft.path / "results.json").write_text(json.dumps(cells, indent=2) + "\n")
        summary: dict[str, Any] = {"protocol": _protocol_text(config, chain), "results": cells}
        if config.video:
            summary["videos"] = list_videos([arm.name for arm in _arms(config)], draft.path)
        artifact = draft.publish(summary, seed=config.seed, device=str(device))
    _refuse_errors(cells, artifact)
    return artifact


def _arms(config: EvalConfig) -> list[Arm]:
    arms = []
    for policy in dict.fromkeys(config.policy):
        latents = dict.fromkeys(config.latent) if policy == "lwd" else {"": None}
        arms += [Arm(policy, latent) for latent in latents]
    return arms


def _measure(
    arm: Arm, config: EvalConfig, chain: Chain, draft: Draft, context: StageContext
) -> list[dict[str, Any]]:
    """Run one arm, or take it from the draft when an interrupted run had finished it."""
    done = draft.checkpoints / f"{arm.name}.json"
    if done.exists():
        context.progress.message(f"{arm.name}: already measured")
        cells: list[dict[str, Any]] = json.loads(done.read_text())["cells"]
        return cells
    context.progress.message(f"{arm.name}:")
    plans = _plans(arm, config, chain)
    recording = recording_of(arm.name, plans, config.video, config.video_every, draft.path)
    results, score = _roll(arm, config, chain, plans, recording, context)
    from lwdctl.evaluation.scores import score_cells

    made = score_cells(results, score, _protocol(arm, config, chain))
    record = {
        "cells": [cell.to_mapping() for cell in made],
        "episodes": [_episode_record(result) for result in results],
    }
    write_durably(done, (json.dumps(record, indent=1) + "\n").encode())
    context.progress.message(_said(made[-1]))
    for name, reason in (recording.failures() if recording else {}).items():
        context.progress.message(f"  no video of {name}: {reason}")
    return record["cells"]


def _roll(
    arm: Arm,
    config: EvalConfig,
    chain: Chain,
    plans: Sequence[EpisodePlan],
    recording: Recording | None,
    context: StageContext,
) -> tuple[Sequence[EpisodeResult], str]:
    from lwdctl.envs.table import SIMULATORS
    from lwdctl.evaluation.rollout import rollout

    env = chain.store.spec.env
    answer = rollout(
        _policy(arm, config, chain),
        env,
        plans,
        width=config.slots,
        workers=_workers(config),
        max_steps=config.max_steps or None,
        perturbation=config.perturbation,
        perturbation_probability=config.perturbation_probability,
        timeout=config.timeout,
        progress=context.progress,
        recording=recording,
    )
    return answer.episodes, SIMULATORS.load(env.adapter).metrics[0].name


def _plans(arm: Arm, config: EvalConfig, chain: Chain) -> list[EpisodePlan]:
    from lwdctl.evaluation.plan import plan_demonstrations, plan_episodes

    if arm.latent == "encoded":
        split = "" if config.encoded_split == "all" else config.encoded_split
        return plan_demonstrations(chain.store, config.episodes, config.seed, config.task, split)
    env = chain.store.spec.env
    return plan_episodes(env, config.episodes, config.seed, config.task, config.label)


def _policy(arm: Arm, config: EvalConfig, chain: Chain) -> Policy:
    if arm.policy == "random":
        from lwdctl.policies.random import RandomPolicy

        return RandomPolicy(chain.store.spec.action, config.slots)
    horizon = horizon_of(config, chain)
    return lwd_policy(arm.latent, chain, horizon, config.sampler, config.denoise_steps)


def _check(config: EvalConfig, chain: Chain) -> None:
    """Refuse what would only fail after other arms have run."""
    from lwdctl.evaluation.compatibility import check_compatible
    from lwdctl.models.diffusion import DiffusionSpec
    from lwdctl.models.files import load_spec

    check_compatible(chain.store, (config.task or chain.store.spec.env.tasks)[0])
    if "lwd" not in config.policy or "sampled" not in config.latent:
        return
    spec = DiffusionSpec.from_mapping(load_spec(chain.inputs["diffusion"].path))
    if config.denoise_steps > spec.train_steps:
        raise ConfigError(
            f"the model was trained with {spec.train_steps} denoising steps,"
            f" {config.denoise_steps} are too many"
        )
    labels = chain.store.spec.labels
    if "label" in spec.condition and config.label not in labels:
        said = f"'{config.label}' is no label of this data" if config.label else "say which label"
        raise ConfigError(
            f"the model is conditioned on a behaviour label: {said}",
            did_you_mean(config.label, labels),
        )


def horizon_of(config: EvalConfig, chain: Chain) -> int:
    """Return the horizon in steps, 0 for the whole episode."""
    return chain.vae.spec.snippet_length if config.horizon is None else config.horizon


def _workers(config: EvalConfig) -> int:
    return config.workers if config.workers >= 0 else len(os.sched_getaffinity(0))


def _protocol(arm: Arm, config: EvalConfig, chain: Chain) -> Protocol:
    from lwdctl.evaluation.scores import Protocol

    env = chain.store.spec.env.adapter
    if arm.policy != "lwd":
        return Protocol(arm.policy, arm.latent, env, perturbation=config.perturbation)
    sampled = arm.latent == "sampled"
    return Protocol(
        policy=arm.policy,
        latent=arm.latent,
        env=env,
        train_seed=chain.inputs["diffusion"].manifest.provenance.get("seed"),
        snippet_length=chain.vae.spec.snippet_length,
        horizon=horizon_of(config, chain) or "episode",
        perturbation=config.perturbation,
        sampler=config.sampler if sampled else "",
        denoise_steps=config.denoise_steps if sampled else None,
    )


def _protocol_text(config: EvalConfig, chain: Chain) -> str:
    length = chain.vae.spec.snippet_length
    fit = "" if horizon_of(config, chain) == length else f" (the model's snippets have {length})"
    pushes = (
        f"disturbances of magnitude {config.perturbation:g} with probability"
        f" {config.perturbation_probability:g} per step"
        if config.perturbation
        else "undisturbed"
    )
    return (
        f"{config.episodes} episodes per task from evaluation seeds {config.seed}.."
        f"{config.seed + config.episodes - 1}; 'encoded' instead restores recorded starts"
        f" ({config.encoded_split} demonstrations, at most as many);"
        f" horizon {horizon_of(config, chain) or 'episode'} steps{fit}; {pushes};"
        f" success at any step; 95 % Wilson intervals; averaged (EMA) weights"
    )


def _episode_record(result: EpisodeResult) -> dict[str, Any]:
    return {
        "index": result.plan.index,
        "seed": result.plan.seed,
        "task": result.plan.task,
        "label": result.plan.label,
        "demonstration": result.plan.demonstration,
        "steps": result.steps,
        "success": result.success,
        "final_success": result.final_success,
        "return": result.return_,
        "metrics": dict(result.metrics),
        "queries": result.queries,
        "attempts": result.attempts,
        "error": result.error,
        "policy_failure": result.policy_failure,
    }


def _said(cell: Cell) -> str:
    rate = "no episode" if cell.success is None else f"success {cell.success:.3f}"
    return (
        f"  {rate} [{cell.success_low:.3f}, {cell.success_high:.3f}] over {cell.episodes} episodes"
    )


def _refuse_errors(cells: Sequence[Mapping[str, Any]], artifact: Artifact) -> None:
    errors = sum(cell["errors"] for cell in cells if cell["task"] == "all")
    if errors:
        raise SimulatorError(
            f"{errors} episodes were lost to simulator errors; see {artifact.path}",
            "they count neither as success nor as failure; run the evaluation again",
        )


STAGE = Stage(
    "eval",
    "evaluation",
    EvalConfig,
    ("snippets", "vae", "latents", "diffusion"),
    run,
    resumable=True,
)
