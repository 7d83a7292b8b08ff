"""Training of the diffusion model over latents (paper section 3.3)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.run_in_progress import CHECKPOINTS
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import NO_CONDITION, DiffusionConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.core.records import SourceSpec
from lwdctl.core.suggest import did_you_mean
from lwdctl.models import DENOISERS
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import ConditionPart, DiffusionSpec, LatentDiffusion
from lwdctl.models.files import CUSTOM, check_outputs
from lwdctl.models.flops import count_parameters, denoiser_flops
from lwdctl.models.vae import PolicyVae
from lwdctl.training.loop import Trained, TrainingLoop, choose_device, with_initial_weights
from lwdctl.training.objectives import (
    DiffusionObjective,
    count_rows,
    latent_table,
    warn_of_unused,
    weights_of_rows,
)
from lwdctl.training.update import LoopSettings

TrainedDiffusion = Trained[LatentDiffusion]

CONDITIONS = ("state", "task", "label")
LAYOUT_PARTS = 2
_DENOISER_OPTIONS = {
    "mlp": ("width", "blocks"),
    "unet": ("unet_size", "latent_layout"),
    "transformer": ("transformer_size", "latent_layout"),
}


def train_diffusion(
    latents: LatentStore,
    data: SnippetStore,
    vae: PolicyVae,
    config: DiffusionConfig,
    *,
    directory: Path,
    progress: Progress,
    denoiser: nn.Module | None = None,
) -> TrainedDiffusion:
    """Train the diffusion model that samples latents from the current state, task or label.

    Args:
        latents: The encoded snippets.
        data: Demonstrations that they were cut from.
        vae: The VAE that encoded them.
        config: Settings.
        directory: Gets checkpoints, `metrics.jsonl`, `log.txt` and TensorBoard logs. If it holds a
            checkpoint, training resumes from it.
        progress: Where to report.
        denoiser: A module of your own in the place of the configured denoiser; see
            `LatentDiffusion`.

    Returns:
        The trained model; `save` writes it.

    Raises:
        ConfigError: Condition or layout do not fit the data, or the denoiser breaks its contract.
        LwdctlError: Training diverged.
    """
    device = choose_device(config.device)
    observation = vae.spec.observation_size
    history = latents.state_size // observation
    condition = _condition(config, latents, data)
    custom = CUSTOM if denoiser else None
    spec = diffusion_spec(
        config, condition, latents.latent_size, observation, history, data.spec, custom
    )
    model = with_initial_weights(lambda: LatentDiffusion(spec, denoiser), config.seed)
    mean, std = latents.statistics()
    model.latent.fit(torch.as_tensor(mean).float(), torch.as_tensor(std).float())
    if spec.state_size:
        model.state.repeat(vae.observation, spec.history)
    model = model.to(device)
    if denoiser is not None:
        _check_contract(model, device)
    else:
        others = options_of_others(config.denoiser)
        warn_of_unused(config, f"the denoiser '{config.denoiser}'", others, progress)
    if not spec.state_size:
        warn_of_unused(config, "a condition without the state", ("state_noise",), progress)
    split = data.episodes.split
    train, validation = split != 1, split == 1
    folder = directory / CHECKPOINTS
    table = partial(latent_table, latents, device, cache=config.cache, folder=folder)
    objective = DiffusionObjective(
        table(train),
        table(validation) if count_rows(latents, validation) else None,
        config.batch_size,
        config.seed,
        config.state_noise,
        weights_of_rows(data.episodes.weight, lambda: latents.episode[train[latents.episode]]),
        config.condition_dropout,
    )
    parts = ", ".join(spec.condition) or "none"
    progress.message(f"{len(objective.table)} training snippets; condition: {parts}")
    settings = LoopSettings.of(config)
    loop = TrainingLoop(model, objective, settings, directory, progress)
    summary: dict[str, Any] = {
        **loop.run("train-diffusion"),
        "parameters": count_parameters(model),
        "flops_per_denoising_step": denoiser_flops(model),
        "condition": list(spec.condition),
    }
    return loop.trained(spec.to_mapping(), summary)


def _check_contract(model: LatentDiffusion, device: torch.device) -> None:
    """Check what a denoiser of the caller's own maps its inputs to, and its loss if it has one."""
    size = model.spec.denoiser
    step = torch.zeros(2, dtype=torch.long)
    latent, condition = torch.zeros(2, size.latent_size), torch.zeros(2, size.condition_size)
    inputs = latent, step, condition
    check_outputs("denoiser", model.denoiser, inputs, [(2, size.latent_size)], device)
    if hasattr(model.denoiser, "training_loss"):
        loss = _OwnLoss(model.denoiser)
        check_outputs("denoiser's training_loss", loss, (latent, condition, latent), [()], device)


class _OwnLoss(nn.Module):
    """The loss of a denoiser of the caller's own."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser: Any = denoiser

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """Return what `training_loss` returns."""
        loss: torch.Tensor = self.denoiser.training_loss(*given)
        return loss


def options_of_others(architecture: str) -> tuple[str, ...]:
    """Return the options of the built-in denoisers that a denoiser does not have."""
    names = dict.fromkeys(name for options in _DENOISER_OPTIONS.values() for name in options)
    own = _DENOISER_OPTIONS.get(architecture, tuple(names))
    return tuple(name for name in names if name not in own)


def diffusion_spec(
    config: DiffusionConfig,
    condition: tuple[str, ...],
    latent_size: int,
    observation_size: int,
    history: int,
    source: SourceSpec,
    architecture: str | None = None,
) -> DiffusionSpec:
    """Return the model's sizes, from the configuration, the parts of its condition and the data.

    `architecture` takes the place of `config.denoiser`, if given.

    Raises:
        ConfigError: An unknown denoiser, a layout that does not fit the latent, or no condition
            that could be hidden.
    """
    architecture = architecture or config.denoiser
    state = history * observation_size if "state" in condition else 0
    task = len(source.env.tasks) if "task" in condition else 0
    label = len(source.labels) if "label" in condition else 0
    can_hide = config.condition_dropout > 0
    if can_hide and not condition:
        raise ConfigError(
            "the model has no condition that could be hidden",
            "leave out --condition-dropout, or name a --condition",
        )
    denoiser = DenoiserSpec(
        architecture=architecture,
        latent_size=latent_size,
        condition_size=state + task + label + can_hide,
        layout=_layout(config, architecture, latent_size),
        unet_size=config.unet_size,
        width=config.width,
        blocks=config.blocks,
        dropout=config.dropout,
        transformer_size=config.transformer_size,
        observation_tokens=history if state else 1,
        shared_condition=task + label + can_hide,
    )
    return DiffusionSpec(
        denoiser,
        config.prediction,
        config.num_train_timesteps,
        cast(tuple[ConditionPart, ...], condition),
        state,
        task,
        label,
        history=history if state else 1,
        can_hide=can_hide,
    )


def check_condition(
    parts: tuple[str, ...], task: npt.NDArray[np.int32], label: npt.NDArray[np.int32]
) -> tuple[str, ...]:
    """Return the parts of a condition, after checking that every row has them.

    Task and label are indices (row,), -1 for none.

    Raises:
        ConfigError: An unknown part, a repeated one, or one that some rows lack.
    """
    if len(set(parts)) < len(parts):
        raise ConfigError(f"the condition names a part twice: {', '.join(parts)}")
    for part in parts:
        if part not in CONDITIONS:
            raise ConfigError(f"'{part}' is no condition", did_you_mean(part, CONDITIONS))
    for part, indices in (("task", task), ("label", label)):
        if part in parts and (indices < 0).any():
            raise ConfigError(
                f"the condition '{part}' needs a {part} for every demonstration, but"
                f" {int((indices < 0).sum())} snippets have none",
                f"leave '{part}' out of --condition, or ingest again with --label",
            )
    return parts


def _condition(
    config: DiffusionConfig, latents: LatentStore, data: SnippetStore
) -> tuple[str, ...]:
    several = len(data.spec.env.tasks) > 1
    parts = config.condition or (("state", "task") if several else ("state",))
    return () if parts == (NO_CONDITION,) else check_condition(parts, latents.task, latents.label)


def _layout(config: DiffusionConfig, architecture: str, latent_size: int) -> tuple[int, int]:
    if architecture == CUSTOM or not getattr(DENOISERS.load(architecture), "uses_layout", False):
        return 1, latent_size
    parts = config.latent_layout.lower().split("x")
    if len(parts) != LAYOUT_PARTS or not all(part.strip().isdecimal() for part in parts):
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
