"""How each baseline is trained; imported once one is (it loads torch)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lwdctl.artifacts.draft import Draft
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import (
    NO_CONDITION,
    BaselineConfig,
    DiffusionConfig,
    Prediction,
    VaeConfig,
)
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.core.seeding import derive_seed
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models.behavior_cloning import ClonedPolicy, ClonedSpec
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, ChunkVae, LatentChunks
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.flops import denoiser_flops, matmul_flops
from lwdctl.models.unet import UNET_SIZES
from lwdctl.models.vae import VaeSpec
from lwdctl.training import behavior_cloning as cloning
from lwdctl.training.diffusion import LatentSizes, check_condition, diffusion_spec
from lwdctl.training.loop import Budget, LoopSettings, Objective, TrainingLoop
from lwdctl.training.objectives import DiffusionObjective, SnippetObjective
from lwdctl.training.vae import vae_spec

M = TypeVar("M", bound=nn.Module)

_SHARED = ("learning_rate", "warmup", "clip_norm", "ema_decay", "updates", "batch_size")
VAE_DEFAULTS = {name: getattr(VaeConfig, name) for name in _SHARED} | {"weight_decay": 0.0}
DENOISER_DEFAULTS = {name: getattr(DiffusionConfig, name) for name in (*_SHARED, "weight_decay")}
_REPORTED = (*_SHARED[:-2], "batch_size", "weight_decay", "betas", "ema_power")
MLP_DEFAULTS = {**DENOISER_DEFAULTS, "updates": 20_000}
UNET_DEFAULTS = {
    "learning_rate": 1e-4,
    "warmup": 500,
    "clip_norm": 0.0,
    "weight_decay": 1e-6,
    "betas": (0.95, 0.999),
    "ema_decay": 0.9999,
    "ema_power": 0.75,
    "batch_size": 256,
    "updates": 20_000,
}
"""Diffusion Policy's own settings, from its published configurations; updates are ours."""
TRANSFORMER_DEFAULTS = {**UNET_DEFAULTS, "warmup": 1000, "weight_decay": 0.1, "betas": (0.9, 0.95)}
TRANSFORMER_DROPOUT = 0.01


@dataclass(frozen=True)
class Work:
    """What a trainer works with."""

    config: BaselineConfig
    store: SnippetStore
    device: torch.device
    draft: Draft
    progress: Progress


@dataclass(frozen=True)
class Trained:
    """A trained baseline: its specification, both weight sets, and numbers for the summary."""

    spec: dict[str, Any]
    model: nn.Module
    averaged: nn.Module
    numbers: dict[str, Any]


def train_dp(work: Work) -> Trained:
    """Train Diffusion Policy.

    Chunks begin at the oldest observation of the history, so `history - 1` steps are predicted
    that are not executed, and the U-Net asks for a length it can halve.
    """
    config, sizes = work.config, _sizes(work)
    denoiser: str = config.denoiser or "unet"
    needed = sizes.snippet_length + config.history - 1
    multiple = UNET_SIZES[config.unet_size].multiple if denoiser == "unet" else 1
    length = -(-needed // multiple) * multiple
    executed = config.executed or sizes.snippet_length
    if executed > sizes.snippet_length:
        raise ConfigError(
            f"--executed {executed} is more than the {sizes.snippet_length} steps of a chunk",
            f"use --snippet-length {executed} or more",
        )
    # Steps predicted for the U-Net's sake alone lie past the end without harm.
    after = executed - 1 + length - needed
    batches = _batches(
        work, sizes, WindowRule(length, before=config.history - 1, after=after), every=True
    )
    spec = _chunk_spec(work, sizes, denoiser, f"{length}x{sizes.action_size}", "epsilon")
    network = replace(spec.diffusion.denoiser, causal=True)
    spec = replace(spec, diffusion=replace(spec.diffusion, denoiser=network, clip=1.0))
    model = _fresh(lambda: ActionDiffusion(spec), config.seed).to(work.device)
    cloning.fit_action_diffusion(model, work.store, batches)
    defaults = TRANSFORMER_DEFAULTS if denoiser == "transformer" else UNET_DEFAULTS
    settings = _settings(config, defaults)
    objective = _objective(work, batches, settings)
    loop, numbers = _train(work, model, objective, settings, work.draft.path, "train-baseline dp")
    numbers |= {
        "snippet_length": sizes.snippet_length,
        "predicted_steps": length,
        "executed": executed,
        "action_target": sizes.action_target,
        "flops_per_denoising_step": denoiser_flops(model.diffusion),
    }
    return Trained(spec.to_mapping(), model, loop.ema_model, numbers)


def refuse_unused(config: BaselineConfig) -> None:
    """Refuse settings that the method does not have.

    Raises:
        ConfigError: One was given that would change nothing.
    """
    if config.executed and config.method != "dp":
        raise ConfigError(f"{config.method} has no --executed", "dp alone predicts past it")
    if config.dropout and config.method == "mlp":
        raise ConfigError("mlp has no dropout", "leave --dropout out")


def train_ldp(work: Work) -> Trained:
    """Train latent diffusion of chunks: first the VAE, then the denoiser over its latents."""
    config, sizes = work.config, _sizes(work)
    table = work.store.episodes
    spec = _chunk_spec(work, sizes, config.denoiser or "mlp", config.latent_layout, "sample")
    batches = _batches(work, sizes, WindowRule(*sizes.window), every=False)

    vae = _fresh(lambda: ChunkVae(spec), config.seed).to(work.device)
    cloning.fit_chunk_vae(vae, work.store, batches)
    settings = _settings(config, VAE_DEFAULTS, share=0.5)
    objective = _objective(work, batches, settings, kl=config.beta_kl)
    first, vae_numbers = _phase(work, vae, objective, settings, "vae")
    encoder = first.ema_model.eval()
    assert isinstance(encoder, ChunkVae)

    train, held_out = (
        None
        if part is None
        else cloning.encode_all(encoder, part, table, config.history, work.progress)
        for part in (batches, objective.held_out)
    )
    assert train is not None
    diffusion = _fresh(lambda: LatentDiffusion(spec.diffusion), config.seed).to(work.device)
    cloning.fit_latents(diffusion, train, encoder, config.history)
    settings = _settings(config, DENOISER_DEFAULTS, share=0.5)
    denoising = DiffusionObjective(train, held_out, settings.batch_size, config.seed)
    second, numbers = _phase(work, diffusion, denoising, settings, "diffusion")
    sampler = second.ema_model
    assert isinstance(sampler, LatentDiffusion)
    numbers |= {f"vae_{name}": value for name, value in vae_numbers.items()} | {
        "snippet_length": sizes.snippet_length,
        "action_target": sizes.action_target,
        "flops_per_denoising_step": denoiser_flops(diffusion),
        "decoder_flops": matmul_flops(vae.decoder),
    }
    return Trained(
        spec.to_mapping(),
        LatentChunks(spec, vae, diffusion),
        LatentChunks(spec, encoder, sampler),
        numbers,
    )


def train_mlp(work: Work) -> Trained:
    """Train behavior cloning on single steps, each visited once per epoch."""
    config, sizes = work.config, _sizes(work)
    parts = _parts(work)
    spec = ClonedSpec(
        observation_keys=sizes.observation_keys,
        observation_size=sizes.observation_size,
        action_size=sizes.action_size,
        hidden=(config.policy_width,) * config.layers,
        tasks=len(work.store.spec.env.tasks) if "task" in parts else 0,
        labels=len(work.store.spec.labels) if "label" in parts else 0,
        action_target=sizes.action_target,
        reference_start=sizes.reference_start,
    )
    model = _fresh(lambda: ClonedPolicy(spec), config.seed).to(work.device)
    cloning.fit_cloned(model, work.store)
    batches = _batches(work, sizes, WindowRule(1), every=True)
    settings = _settings(config, MLP_DEFAULTS)
    objective = _objective(work, batches, settings)
    loop, numbers = _train(work, model, objective, settings, work.draft.path, "train-baseline mlp")
    numbers |= {
        "action_target": sizes.action_target,
        "policy_flops": matmul_flops(model.network),
    }
    return Trained(spec.to_mapping(), model, loop.ema_model, numbers)


TRAINERS: dict[str, Callable[[Work], Trained]] = {
    "dp": train_dp,
    "ldp": train_ldp,
    "mlp": train_mlp,
}


def _sizes(work: Work) -> VaeSpec:
    """Read keys, sizes and action target off the data as `train-vae` does."""
    config = work.config
    chosen = VaeConfig(
        snippet_length=config.snippet_length,
        observation_keys=config.observation_keys,
        action_target=config.action_target or ("absolute" if config.method == "dp" else "auto"),
    )
    return vae_spec(chosen, work.store)


def _parts(work: Work) -> tuple[str, ...]:
    store, config = work.store, work.config
    default = ("task",) if len(store.spec.env.tasks) > 1 else ()
    extras = () if config.condition == (NO_CONDITION,) else config.condition or default
    return check_condition(("state", *extras), store.episodes.task, store.episodes.label)


def _chunk_spec(
    work: Work, sizes: VaeSpec, denoiser: str, layout: str, prediction: Prediction
) -> ChunkSpec:
    config = work.config
    usual = TRANSFORMER_DROPOUT if (config.method, denoiser) == ("dp", "transformer") else 0.0
    chosen = DiffusionConfig(
        denoiser=denoiser,
        latent_layout=layout,
        unet_size=config.unet_size,
        transformer_size=config.transformer_size,
        width=config.width,
        blocks=config.blocks,
        dropout=usual if config.dropout is None else config.dropout,
        prediction=config.prediction or prediction,
        num_train_timesteps=config.num_train_timesteps,
    )
    latent = config.latent_size
    if config.method == "dp":
        length, channels = map(int, layout.split("x"))
        latent = length * channels
    sides = LatentSizes(latent, sizes.observation_size, config.history)
    return ChunkSpec(
        observation_keys=sizes.observation_keys,
        observation_size=sizes.observation_size,
        action_size=sizes.action_size,
        history=config.history,
        horizon=sizes.snippet_length,
        action_target=sizes.action_target,
        reference_start=sizes.reference_start,
        diffusion=diffusion_spec(chosen, _parts(work), sides, work.store.spec),
    )


def _batches(work: Work, sizes: VaeSpec, rule: WindowRule, *, every: bool) -> SnippetBatches:
    return SnippetBatches(
        work.store,
        sizes.observation_keys,
        rule,
        split="train",
        seed=work.config.seed,
        cache=work.config.cache,
        device=work.device,
        every=every,
    )


def _settings(config: BaselineConfig, defaults: dict[str, Any], share: float = 1.0) -> LoopSettings:
    """Fill in what the user left to the method; `share` is this loop's part of the time."""
    given = {name: getattr(config, name, None) for name in defaults}
    chosen = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    budget = Budget(chosen.pop("updates"), config.time_limit and share * config.time_limit)
    return LoopSettings(budget=budget, seed=config.seed, **chosen)


def _objective(
    work: Work, batches: SnippetBatches, settings: LoopSettings, **weights: float
) -> SnippetObjective:
    table = work.store.episodes
    held_out = batches.of_split("validation") if bool((table.split == 1).any()) else None
    episodes, _ = batches.every()
    passed = settings.budget.updates * settings.batch_size / len(episodes)
    work.progress.message(
        f"{len(batches.episodes)} training episodes, {len(episodes)} snippets of"
        f" {batches.rule.length} steps; {settings.budget.updates} updates ="
        f" {passed:.1f} times all snippets"
    )
    return SnippetObjective(batches, held_out, settings.batch_size, table, weights)


def _fresh(build: Callable[[], M], seed: int) -> M:
    torch.manual_seed(derive_seed("initial-weights", seed))
    return build()


def _train(
    work: Work,
    model: nn.Module,
    objective: Objective,
    settings: LoopSettings,
    directory: Path,
    title: str,
) -> tuple[TrainingLoop[Any], dict[str, Any]]:
    loop = TrainingLoop(model, objective, settings, directory, work.progress)
    numbers: dict[str, Any] = dict(loop.run(title))
    values = asdict(settings)
    return loop, {**numbers, "training": {name: values[name] for name in _REPORTED}}


def _phase(
    work: Work, model: nn.Module, objective: Objective, settings: LoopSettings, name: str
) -> tuple[TrainingLoop[Any], dict[str, Any]]:
    """Train one of several models: in a checkpoint directory of its own, its log published."""
    directory = work.draft.checkpoints / name
    directory.mkdir(exist_ok=True)
    trained = _train(work, model, objective, settings, directory, f"train-baseline ldp: {name}")
    shutil.copytree(
        directory,
        work.draft.path / name,
        ignore=shutil.ignore_patterns("checkpoints"),
        dirs_exist_ok=True,
    )
    return trained
