"""Latent diffusion of chunks (LDP): a VAE of action chunks, and diffusion over its latents.

The method of this package without the generated policy: the decoder emits actions, not weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lwdctl.artifacts.snippets import EpisodeTable, SnippetStore
from lwdctl.configs import BaselineConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.methods import training
from lwdctl.methods.chunks import PASS_BATCH, TrainedChunks, chunk_moments
from lwdctl.methods.method import Method
from lwdctl.models.chunks import ChunkVae, LatentChunks
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.flops import denoiser_flops, matmul_flops
from lwdctl.training.encode import encoded_batches
from lwdctl.training.loop import Trained
from lwdctl.training.objectives import DiffusionObjective, LatentTable


class LatentDiffusionOfChunks(Method):
    """First the VAE is trained, then the denoiser over its latents."""

    artifact_type = "baseline"
    replans = True

    def train(
        self, data: SnippetStore, config: BaselineConfig, directory: Path, progress: Progress
    ) -> Trained[LatentChunks]:
        """Train the VAE, encode every snippet, train the denoiser."""
        if config.executed:
            raise ConfigError("ldp has no option --executed", "leave --executed out")
        work = training.Work(config, data, directory, progress)
        spec = work.chunk_spec(
            config.denoiser or "mlp", config.latent_layout, "sample", config.latent_size
        )
        settings = work.settings(training.VAE_DEFAULTS, fraction=0.5)
        window = WindowRule(*work.sizes.window)
        objective = work.objective(window, settings, every=False, kl=config.beta_kl)

        vae = work.initialize(lambda: ChunkVae(spec))
        vae.observation.standardize(data.moments(spec.observation_keys, "train"))
        vae.action.standardize(chunk_moments(spec, data, objective.batches, 0))
        first, vae_numbers = work.train_part(vae, objective, settings, "vae")
        encoder = first.ema_model.eval()
        assert isinstance(encoder, ChunkVae)

        train, held_out = (
            None if part is None else _encode(encoder, part, data.episodes, progress)
            for part in (objective.batches, objective.held_out)
        )
        assert train is not None
        diffusion = work.initialize(lambda: LatentDiffusion(spec.diffusion))
        std = torch.sqrt(train.mean.var(0, correction=0) + train.std.square().mean(0))
        diffusion.latent.fit(train.mean.mean(0), std)
        diffusion.state.repeat(encoder.observation, config.history)
        settings = work.settings(training.DENOISER_DEFAULTS, fraction=0.5)
        denoising = DiffusionObjective(train, held_out, settings.batch_size, config.seed)
        second, numbers = work.train_part(diffusion, denoising, settings, "diffusion")
        sampler = second.ema_model
        assert isinstance(sampler, LatentDiffusion)
        summary = (
            numbers
            | {f"vae_{name}": value for name, value in vae_numbers.items()}
            | {
                "snippet_length": spec.horizon,
                "action_target": spec.action_target,
                "flops_per_denoising_step": denoiser_flops(diffusion),
                "decoder_flops": matmul_flops(vae.decoder),
            }
        )
        return work.trained(
            {"executed": spec.horizon, **spec.to_mapping()},
            LatentChunks(spec, encoder, sampler),
            LatentChunks(spec, vae, diffusion),
            summary,
        )

    def open_directory(self, path: Path, device: torch.device, name: str) -> TrainedChunks:
        """Open a trained model."""
        return TrainedChunks(path, LatentChunks, device, name)


def _encode(
    vae: ChunkVae, batches: SnippetBatches, table: EpisodeTable, progress: Progress
) -> LatentTable:
    """Return every snippet of a split, encoded, on the batches' device."""
    encoded = list(encoded_batches(vae, batches, vae.spec.history, PASS_BATCH, progress))
    task, label = (
        torch.from_numpy(np.concatenate([column[part.episodes] for part in encoded]))
        .long()
        .to(batches.device)
        for column in (table.task, table.label)
    )
    return LatentTable(
        torch.cat([part.mean for part in encoded]),
        torch.cat([torch.exp(0.5 * part.log_variance) for part in encoded]),
        torch.cat([part.state for part in encoded]),
        task,
        label,
    )


METHOD = LatentDiffusionOfChunks()
