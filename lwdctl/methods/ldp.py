"""Latent diffusion of chunks (LDP): a VAE of action chunks, and diffusion over its latents.

The method of this package without the generated policy: the decoder emits actions, not weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch

from lwdctl.artifacts.latents import LATENTS_PAYLOAD
from lwdctl.artifacts.run_in_progress import CHECKPOINTS
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig
from lwdctl.core.progress import Progress
from lwdctl.data.batches import SnippetBatches
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
    warn_of_unused,
    weights_of_rows,
)


class LatentDiffusionOfChunks(Method):
    """First the VAE is trained, then the denoiser over its latents."""

    artifact_type = "baseline"
    replans = True

    def train(
        self, data: SnippetStore, config: BaselineConfig, directory: Path, progress: Progress
    ) -> Trained[LatentChunks]:
        """Train the VAE, encode every snippet, train the denoiser."""
        training.check_unused(config, "executed", "time_input")
        warn_of_unused(config, config.method, ("policy_width", "layers"), progress)
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

        train, (mean, std) = _encode(encoder, objective.batches, work)
        part = objective.held_out
        held_out = None if part is None else _encode(encoder, part, work)[0]
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
            weights_of_rows(data.episodes.weight, lambda: objective.batches.every()[0]),
            config.condition_dropout,
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


def _encode(
    encoder: ChunkVae, part: SnippetBatches, work: training.Work
) -> tuple[LatentTable | SpilledLatents, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Encode every snippet; return the latents, and their mean and standard deviation (latent,).

    A store on the disk holds them in between, so that they are in memory once at most.
    """
    folder, history = work.directory / CHECKPOINTS, encoder.spec.history
    folder.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="latents-", dir=folder) as place:
        store = encode_batches(
            encoder, part, work.data.episodes, history, PASS_BATCH, work.progress,
            Path(place) / LATENTS_PAYLOAD,
        )  # fmt: skip
        table = latent_table(store, work.device, None, work.config.cache, folder)
        return table, store.statistics()


METHOD = LatentDiffusionOfChunks()
