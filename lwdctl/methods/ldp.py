"""Latent diffusion of chunks (LDP): a VAE of action chunks, and diffusion over its latents.

The method of this package without the generated policy: the decoder emits actions, not weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.run_in_progress import CHECKPOINTS
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig
from lwdctl.core.progress import Progress
from lwdctl.data.batches import SnippetBatches, choose_cache
from lwdctl.data.windows import WindowRule
from lwdctl.methods import training
from lwdctl.methods.chunks import PASS_BATCH, TrainedChunks, chunk_moments
from lwdctl.methods.method import Method
from lwdctl.models.chunks import ChunkVae, LatentChunks
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.flops import denoiser_flops, matmul_flops
from lwdctl.training.encode import encode_batches
from lwdctl.training.loop import Trained
from lwdctl.training.objectives import (
    DiffusionObjective,
    LatentTable,
    SpilledLatents,
    latent_table,
)

Table = LatentTable | SpilledLatents


class LatentDiffusionOfChunks(Method):
    """First the VAE is trained, then the denoiser over its latents."""

    artifact_type = "baseline"
    replans = True

    def train(
        self, data: SnippetStore, config: BaselineConfig, directory: Path, progress: Progress
    ) -> Trained[LatentChunks]:
        """Train the VAE, encode every snippet, train the denoiser."""
        training.check_unused(config, "executed", "time_input")
        work = training.Work(config, data, directory, progress)
        spec = work.chunk_spec(
            config.denoiser or "mlp", config.latent_layout, "sample", config.latent_size
        )
        settings = work.settings(training.VAE_DEFAULTS, fraction=0.5)
        if config.vae_updates:
            settings = replace(settings, updates=config.vae_updates)
        rule, options = WindowRule(*work.sizes.window), {"padding": config.padding}
        objective = work.objective(rule, settings, every=False, options=options, kl=config.beta_kl)

        vae = work.initialize(lambda: ChunkVae(spec))
        vae.observation.standardize(data.moments(spec.observation_keys, "train"))
        vae.action.standardize(chunk_moments(spec, data, objective.batches, 0))
        first, vae_numbers = work.train_part(vae, objective, settings, "vae")
        encoder = first.ema_model.eval()
        assert isinstance(encoder, ChunkVae)

        folder = directory / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix="latents-", dir=folder) as encoded:

            def encode(part: SnippetBatches, name: str) -> tuple[LatentStore, Table]:
                size = (
                    4 * part.count * (2 * spec.latent_size + spec.history * spec.observation_size)
                )
                streams = choose_cache(config.cache, size, work.device) == "none"
                path = Path(encoded) / name if streams else None
                store = encode_batches(
                    encoder, part, data.episodes, spec.history, PASS_BATCH, progress, path
                )
                rows = np.arange(store.count)
                return store, latent_table(store, work.device, rows, config.cache, folder)

            store, train = encode(objective.batches, "train")
            mean, std = store.statistics()
            del store  # in memory it would be a second copy
            part = objective.held_out
            held_out = None if part is None else encode(part, "held-out")[1]
        diffusion = work.initialize(lambda: LatentDiffusion(spec.diffusion))
        diffusion.latent.fit(torch.as_tensor(mean).float(), torch.as_tensor(std).float())
        diffusion.state.repeat(encoder.observation, work.history)
        settings = work.settings(training.DENOISER_DEFAULTS, fraction=0.5)
        denoising = DiffusionObjective(
            train,
            held_out,
            settings.batch_size,
            config.seed,
            config.observation_noise,
            data.episodes.weight[objective.batches.every()[0]],
        )
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


METHOD = LatentDiffusionOfChunks()
