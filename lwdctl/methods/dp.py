"""Diffusion Policy (Chi et al. 2023): denoise a chunk of actions, execute it, re-plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.data.windows import WindowRule
from lwdctl.methods import training
from lwdctl.methods.chunks import TrainedChunks, chunk_moments
from lwdctl.methods.method import Method
from lwdctl.models.chunks import ActionDiffusion
from lwdctl.models.flops import denoiser_flops
from lwdctl.models.unet import UNET_SIZES
from lwdctl.training.loop import Trained
from lwdctl.training.objectives import warn_of_unused

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


class DiffusionPolicy(Method):
    """A diffusion model whose latent is the chunk of actions itself."""

    artifact_type = "baseline"
    replans = True

    def train(
        self, data: SnippetStore, config: BaselineConfig, directory: Path, progress: Progress
    ) -> Trained[ActionDiffusion]:
        """Train on chunks of actions.

        Chunks begin at the oldest observation of the history, so `history - 1` steps are predicted
        that are not executed, and the U-Net needs a length that it can halve.
        """
        training.check_unused(config, "time_input", "vae_updates")
        unused = "latent_layout", "latent_size", "beta_kl", "policy_width", "layers"
        warn_of_unused(config, config.method, unused, progress)
        work = training.Work(config, data, directory, progress)
        sizes, denoiser = work.sizes, config.denoiser or "unet"
        needed = sizes.snippet_length + work.history - 1
        multiple = UNET_SIZES[config.unet_size].multiple if denoiser == "unet" else 1
        length = -(-needed // multiple) * multiple
        executed = config.executed or sizes.snippet_length
        if executed > sizes.snippet_length:
            raise ConfigError(
                f"--executed {executed} is more than the {sizes.snippet_length} steps of a chunk",
                f"use --snippet-length {executed} or more",
            )
        # Steps that are predicted only because the U-Net needs them may lie past the episode.
        after = executed - 1 + length - needed
        rule = WindowRule(length, before=work.history - 1, after=after)
        transformer = denoiser == "transformer"
        settings = work.settings(TRANSFORMER_DEFAULTS if transformer else UNET_DEFAULTS)
        options = {
            name: getattr(config, name)
            for name in ("padding", "observation_noise", "condition_dropout")
        }
        objective = work.objective(rule, settings, options=options)
        spec = work.chunk_spec(
            denoiser,
            f"{length}x{sizes.action_size}",
            "epsilon",
            length * sizes.action_size,
            dropout=TRANSFORMER_DROPOUT if transformer else 0.0,
        )
        network = replace(spec.diffusion.denoiser, causal=True)
        spec = replace(spec, diffusion=replace(spec.diffusion, denoiser=network, clip=1.0))
        model = work.initialize(lambda: ActionDiffusion(spec))
        _check_padding(config, denoiser, model)
        # Observations and actions are mapped to [-1, 1], as in Diffusion Policy.
        actions = chunk_moments(spec, data, objective.batches, work.history - 1)
        model.diffusion.latent.fit_range(actions, length)
        observations = data.moments(spec.observation_keys, "train")
        model.diffusion.state.fit_range(observations, work.history)
        loop, summary = work.train(model, objective, settings, directory, "train-baseline dp")
        summary |= {
            "snippet_length": sizes.snippet_length,
            "predicted_steps": length,
            "executed": executed,
            "action_target": sizes.action_target,
            "flops_per_denoising_step": denoiser_flops(model.diffusion),
        }
        values = {"executed": executed, **spec.to_mapping()}
        return work.trained(values, loop.ema_model, model, summary)

    def open_directory(self, path: Path, device: torch.device, name: str) -> TrainedChunks:
        """Open a trained model."""
        return TrainedChunks(path, ActionDiffusion, device, name)


def _check_padding(config: BaselineConfig, denoiser: str, model: ActionDiffusion) -> None:
    """Check that the loss can leave out padding where it is to do so.

    Raises:
        ConfigError: The denoiser has a loss of its own, which sees no padding.
    """
    if config.padding == "masked" and hasattr(model.diffusion.denoiser, "training_loss"):
        raise ConfigError(
            f"the denoiser '{denoiser}' has a loss of its own, which leaves out no steps beyond"
            " the end of a demonstration",
            "add --padding counted",
        )


METHOD = DiffusionPolicy()
