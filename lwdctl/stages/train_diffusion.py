"""`train-diffusion`: learn to sample latents from the current state, task or label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import NO_CONDITION, DiffusionConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.records import SourceSpec
from lwdctl.core.seeding import derive_seed
from lwdctl.core.suggest import did_you_mean
from lwdctl.models.denoiser import DENOISERS, DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.files import save_model
from lwdctl.models.flops import denoiser_flops
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.loading import load_vae
from lwdctl.stages.stage import StageContext
from lwdctl.stages.training_settings import loop_settings
from lwdctl.training.device import choose_device
from lwdctl.training.loop import TrainingLoop
from lwdctl.training.objectives import DiffusionObjective, LatentTable

Indices = npt.NDArray[np.int32]
CONDITIONS = ("state", "task", "label")
LAYOUT_PARTS = 2


def run(config: DiffusionConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Train and publish a `diffusion` artifact.

    Raises:
        ConfigError: Condition or layout do not fit the data.
        LwdctlError: Training diverged.
    """
    latents, snippets, vae = inputs["latents"], inputs["snippets"], inputs["vae"]
    device = choose_device(config.device)
    store, data = LatentStore.open(latents.path), SnippetStore.open(snippets.path)
    trained = load_vae(vae, device)
    observation = trained.spec.observation_size
    sides = Sides(store.latent_size, observation, store.state_size // observation)
    spec = diffusion_spec(config, _condition(config, store, data), sides, data.spec)
    with context.workspace.begin(
        "diffusion",
        context.name or latents.name,
        config=to_mapping(config),
        inputs=[latents],
        resume=context.resume,
    ) as draft:
        model = _model(spec, store, trained, config.seed).to(device)
        train, held_out = _splits(store, data)
        objective = DiffusionObjective(
            LatentTable.read(store, train, device),
            LatentTable.read(store, held_out, device) if len(held_out) else None,
            config.batch_size,
            config.seed,
            config.state_noise,
        )
        context.progress.message(
            f"{len(train)} snippets to train on; condition: {', '.join(spec.condition) or 'none'}"
        )
        loop = TrainingLoop(
            model,
            objective,
            loop_settings(config, config.batch_size, config.weight_decay),
            draft.path,
            context.progress,
        )
        numbers = loop.run("train-diffusion")
        save_model(draft.path, spec.to_mapping(), model, loop.ema_model)
        summary = {
            **numbers,
            "parameters": sum(p.numel() for p in model.parameters()),
            "flops_per_denoising_step": denoiser_flops(model),
            "condition": list(spec.condition),
        }
        return draft.publish(summary, seed=config.seed, device=str(device))


@dataclass(frozen=True)
class Sides:
    """What a diffusion model connects.

    Attributes:
        latent: Components of the latent.
        observation: Components of one observation.
        history: Observations in the state condition.
    """

    latent: int
    observation: int
    history: int


def diffusion_spec(
    config: DiffusionConfig, parts: tuple[str, ...], sides: Sides, source: SourceSpec
) -> DiffusionSpec:
    """Work out the model's sizes from the configuration, its condition and the data.

    Raises:
        ConfigError: A layout that does not fit, or dropout that the denoiser does not have.
    """
    state = sides.history * sides.observation if "state" in parts else 0
    task = len(source.env.tasks) if "task" in parts else 0
    label = len(source.labels) if "label" in parts else 0
    denoiser = DenoiserSpec(
        architecture=config.denoiser,
        latent_size=sides.latent,
        condition_size=state + task + label,
        layout=_layout(config, sides.latent),
        unet_size=config.unet_size,
        width=config.width,
        blocks=config.blocks,
        dropout=config.dropout,
        transformer_size=config.transformer_size,
        observation_tokens=sides.history if state else 1,
        shared_condition=task + label,
    )
    return DiffusionSpec(
        denoiser,
        config.prediction,
        config.num_train_timesteps,
        parts,
        state,
        task,
        label,
        history=sides.history if state else 1,
    )


def check_condition(parts: tuple[str, ...], task: Indices, label: Indices) -> tuple[str, ...]:
    """Return the parts of a condition, each of which every row must have.

    Args:
        parts: What was asked for.
        task: (row,) task index, -1 for none.
        label: (row,) label index, -1 for none.

    Raises:
        ConfigError: An unknown part, or one that some rows lack.
    """
    if len(set(parts)) < len(parts):
        raise ConfigError(f"the condition names a part twice: {', '.join(parts)}")
    for part in parts:
        if part not in CONDITIONS:
            raise ConfigError(f"'{part}' is no condition", did_you_mean(part, CONDITIONS))
    for part, known in (("task", task), ("label", label)):
        if part in parts and (known < 0).any():
            raise ConfigError(
                f"the condition '{part}' needs a {part} for every demonstration,"
                f" {int((known < 0).sum())} snippets have none",
                f"leave '{part}' out of --condition, or ingest again with --label",
            )
    return parts


def _condition(config: DiffusionConfig, store: LatentStore, data: SnippetStore) -> tuple[str, ...]:
    several = len(data.spec.env.tasks) > 1
    parts = config.condition or (("state", "task") if several else ("state",))
    return () if parts == (NO_CONDITION,) else check_condition(parts, store.task, store.label)


def _layout(config: DiffusionConfig, latent_size: int) -> tuple[int, int]:
    if not DENOISERS.load(config.denoiser).uses_layout:
        return 1, latent_size
    parts = config.latent_layout.lower().split("x")
    if len(parts) != LAYOUT_PARTS or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(
            f"'{config.latent_layout}' is no latent layout", "write LENGTHxCHANNELS, like 16x16"
        )
    length, channels = int(parts[0]), int(parts[1])
    if length * channels != latent_size:
        raise ConfigError(
            f"the layout {length}x{channels} does not fit a latent of {latent_size} components",
            f"its product must be {latent_size}",
        )
    return length, channels


def _model(spec: DiffusionSpec, store: LatentStore, vae: PolicyVae, seed: int) -> LatentDiffusion:
    torch.manual_seed(derive_seed("initial-weights", seed))
    model = LatentDiffusion(spec)
    mean, deviation = store.statistics()
    model.latent.fit(torch.as_tensor(mean).float(), torch.as_tensor(deviation).float())
    if spec.state_size:
        model.state.repeat(vae.observation, spec.history)
    return model


def _splits(
    store: LatentStore, data: SnippetStore
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]:
    held_out = data.episodes.split[np.asarray(store.episode)] == 1
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
