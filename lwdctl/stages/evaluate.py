"""`eval`: run policies closed loop on fresh initial states and score them with intervals."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.config import option, to_mapping
from lwdctl.core.errors import ConfigError, LwdctlError
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.stages.stage import Stage, StageContext

if TYPE_CHECKING:
    import torch

    from lwdctl.artifacts.snippets import SnippetStore
    from lwdctl.evaluation.rollout import EpisodeResult
    from lwdctl.evaluation.scores import Cell, Protocol
    from lwdctl.models.vae import PolicyVae
    from lwdctl.policies.latent_source import LatentSource
    from lwdctl.policies.policy import EpisodePlan, Policy

POLICIES = ("lwd", "random")
LATENTS = ("sampled", "encoded", "other", "mean")
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


@dataclass(frozen=True)
class Arm:
    """One policy under one latent source; `latent` is empty for policies without latents."""

    policy: str
    latent: str

    @property
    def name(self) -> str:
        """File and display name."""
        return f"{self.policy}-{self.latent}" if self.latent else self.policy


@dataclass(frozen=True)
class Chain:
    """The artifacts an evaluation rests on, opened."""

    inputs: Mapping[str, Artifact]
    store: SnippetStore
    vae: PolicyVae
    device: torch.device


def run(config: EvalConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Evaluate and publish an `evaluation` artifact.

    Raises:
        ConfigError: Unknown tasks, policies or latents.
        LwdctlError: Episodes were lost to simulator errors (after publishing what ran).
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
    SIMULATORS.load(adapter)
    device = choose_device(config.device)
    chain = Chain(inputs, store, load_vae(inputs["vae"], device), device)
    with context.workspace.begin(
        "evaluation",
        context.name or inputs["diffusion"].name,
        config=to_mapping(config),
        inputs=[inputs["diffusion"]],
        resume=context.resume,
    ) as draft:
        draft.keep = True
        (draft.path / EPISODES_FOLDER).mkdir(exist_ok=True)
        cells = [
            cell
            for arm in _arms(config)
            for cell in _measure(arm, config, chain, draft.path, context)
        ]
        (draft.path / "results.json").write_text(json.dumps(cells, indent=2) + "\n")
        summary = {"protocol": _protocol_text(config, chain), "results": cells}
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
    arm: Arm, config: EvalConfig, chain: Chain, directory: Path, context: StageContext
) -> list[dict[str, Any]]:
    """Run one arm, or take it from the draft when an interrupted run had finished it."""
    done = directory / EPISODES_FOLDER / f"{arm.name}.json"
    if done.exists():
        context.progress.message(f"{arm.name}: already measured")
        cells: list[dict[str, Any]] = json.loads(done.read_text())["cells"]
        return cells
    context.progress.message(f"{arm.name}:")
    results, score = _roll(arm, config, chain, context)
    from lwdctl.evaluation.scores import score_cells

    made = score_cells(results, score, _protocol(arm, config, chain))
    record = {
        "cells": [cell.to_mapping() for cell in made],
        "episodes": [_episode_record(result) for result in results],
    }
    unfinished = done.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.rename(done)
    context.progress.message(_said(made[-1]))
    return record["cells"]


def _roll(
    arm: Arm, config: EvalConfig, chain: Chain, context: StageContext
) -> tuple[Sequence[EpisodeResult], str]:
    from lwdctl.envs.table import SIMULATORS
    from lwdctl.evaluation.rollout import rollout

    env = chain.store.spec.env
    answer = rollout(
        _policy(arm, config, chain),
        env,
        _plans(arm, config, chain),
        width=config.slots,
        workers=_workers(config),
        max_steps=config.max_steps or None,
        perturbation=config.perturbation,
        perturbation_probability=config.perturbation_probability,
        timeout=config.timeout,
        progress=context.progress,
    )
    return answer.episodes, SIMULATORS.load(env.adapter).metrics[0].name


def _plans(arm: Arm, config: EvalConfig, chain: Chain) -> list[EpisodePlan]:
    from lwdctl.evaluation.plan import plan_demonstrations, plan_episodes

    if arm.latent == "encoded":
        return plan_demonstrations(chain.store, config.episodes, config.seed, config.task)
    env = chain.store.spec.env
    return plan_episodes(env, config.episodes, config.seed, config.task, config.label)


def _policy(arm: Arm, config: EvalConfig, chain: Chain) -> Policy:
    if arm.policy == "random":
        from lwdctl.policies.random import RandomPolicy

        return RandomPolicy(chain.store.spec.action, config.slots)
    from lwdctl.policies.lwd import LwdPolicy

    return LwdPolicy(chain.vae, _source(arm.latent, config, chain), horizon_of(config, chain))


def _source(latent: str, config: EvalConfig, chain: Chain) -> LatentSource:
    from lwdctl.artifacts.latents import LatentStore
    from lwdctl.policies import latent_source
    from lwdctl.policies.loading import load_diffusion

    spec = chain.store.spec
    if latent == "sampled":
        model = load_diffusion(chain.inputs["diffusion"], chain.device)
        if config.denoise_steps > model.spec.train_steps:
            raise ConfigError(
                f"the model was trained with {model.spec.train_steps} denoising steps,"
                f" {config.denoise_steps} are too many"
            )
        history = max(1, model.spec.state_size // chain.vae.spec.observation_size)
        return latent_source.SampledLatents(
            model, spec.env.tasks, spec.labels, config.sampler, config.denoise_steps, history
        )
    if latent == "encoded":
        return latent_source.EncodedLatents(
            chain.vae, _demonstrations(chain), chain.store.episodes.length
        )
    store = LatentStore.open(chain.inputs["latents"].path)
    if latent == "other":
        return latent_source.OtherLatents.read(store, spec.env.tasks, spec.labels)
    mean, _ = store.statistics()
    return latent_source.MeanLatents(mean.astype("float32"))


def _demonstrations(chain: Chain) -> Any:
    from lwdctl.core.config import from_mapping
    from lwdctl.data.batches import SnippetBatches
    from lwdctl.stages.train_vae import TrainVaeConfig, window_rule

    trained = from_mapping(TrainVaeConfig, chain.inputs["vae"].manifest.config)
    spec = chain.vae.spec
    return SnippetBatches(
        chain.store,
        spec.observation_keys,
        window_rule(trained, spec.snippet_length),
        split="all",
        seed=0,
        device=chain.device,
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
    own = horizon_of(config, chain) in (chain.vae.spec.snippet_length, 0)
    fit = "" if own else f" (a model of snippet length {chain.vae.spec.snippet_length})"
    return (
        f"{config.episodes} episodes per task from evaluation seeds {config.seed}.."
        f"{config.seed + config.episodes - 1}; 'encoded' starts from recorded initial states;"
        f" horizon {horizon_of(config, chain) or 'episode'}{fit};"
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
        raise LwdctlError(
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
