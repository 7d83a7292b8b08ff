"""Training and encoding: functions from data to models, with what each was made from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lwdctl import configs
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import to_mapping
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.data.dataset import Dataset
from lwdctl.methods.method import TrainedPolicy
from lwdctl.methods.trained import load_method, open_trained
from lwdctl.models.files import load_spec
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.policies.loading import load_diffusion, load_vae
from lwdctl.training.device import choose_device
from lwdctl.training.diffusion import train_diffusion as train_diffusion_model
from lwdctl.training.encode import encode as encode_snippets
from lwdctl.training.loop import Trained
from lwdctl.training.vae import train_vae as train_vae_model


@dataclass(frozen=True, repr=False)
class _TrainedModel:
    """A trained model with what it was trained on.

    Attributes:
        trained: EMA weights, last weights and the summary.
        artifact: The artifact that it was published as, None for a model in memory.
    """

    trained: Trained[Any]
    artifact: Artifact | None

    @property
    def model(self) -> Any:
        """The module with its EMA weights, in evaluation mode."""
        return self.trained.model

    @property
    def summary(self) -> Mapping[str, Any]:
        """Training steps, seconds, last losses and sizes."""
        return self.trained.summary

    def save(self, directory: str | Path) -> None:
        """Write `model.json` and both sets of weights."""
        self.trained.save(Path(directory))

    def __repr__(self) -> str:
        """Say what was trained and how well."""
        name = self.artifact.reference if self.artifact else "in memory"
        shown = ("reconstruction", "kl", "denoising", "squared_error")
        losses = ", ".join(f"{key} {self.summary[key]:.3g}" for key in shown if key in self.summary)
        updates = self.summary.get("updates", 0)
        return f"<{type(self).__name__} {name}: {updates} training steps, {losses or 'no loss'}>"


@dataclass(frozen=True, repr=False)
class Vae(_TrainedModel):
    """A trained policy VAE and its data."""

    data: Dataset


@dataclass(frozen=True, repr=False)
class Diffusion(_TrainedModel):
    """A trained latent diffusion model, with the latents that it learned to sample."""

    latents: Latents


@dataclass(frozen=True, repr=False)
class Baseline(_TrainedModel):
    """A trained baseline and its data."""

    data: Dataset
    policy: TrainedPolicy


@dataclass(frozen=True)
class Latents:
    """Encoded snippets, with the VAE that encoded them."""

    store: LatentStore
    vae: Vae
    artifact: Artifact | None = None

    def __len__(self) -> int:
        """Return the number of snippets."""
        return len(self.store.mean)

    def __repr__(self) -> str:
        """Say how many there are."""
        name = self.artifact.reference if self.artifact else "in memory"
        return f"<Latents {name}: {len(self)} snippets of {self.store.latent_size} components>"


def train_vae(
    data: Dataset,
    config: configs.VaeConfig | None = None,
    *,
    encoder: nn.Module | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> Vae:
    """Train the policy VAE (paper section 3.2).

    Args:
        data: Demonstrations. Those of a workspace give an artifact there, those in memory a model
            in memory.
        config: Settings; None takes the defaults.
        encoder: A module of your own in the place of the encoder: it maps steps
            (batch, time, obs + action) and mask (batch, time) to mean and log-variance, each
            (batch, latent). The model then stays in memory.
        name: Name of the artifact.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: The settings do not fit the data.
        LwdctlError: Training diverged.
    """
    config = config or configs.VaeConfig()
    if data.artifact is None or encoder is not None:
        with tempfile.TemporaryDirectory() as folder:
            trained = train_vae_model(
                data.store,
                config,
                directory=Path(folder),
                progress=progress or TqdmProgress(),
                encoder=encoder,
            )
        return Vae(trained, None, data)
    inputs = {"snippets": data.artifact}
    artifact = _publish("train-vae", data.workspace, config, inputs, name, progress)
    return Vae(
        _read_trained(artifact, load_vae(artifact, choose_device(config.device))), artifact, data
    )


def encode(
    vae: Vae,
    config: configs.EncodeConfig | None = None,
    *,
    name: str = "",
    progress: Progress | None = None,
) -> Latents:
    """Encode every snippet of the VAE's data (paper section 3.3).

    Args:
        vae: What `train_vae` returned.
        config: Settings; None takes the defaults.
        name: Name of the artifact.
        progress: Where to report; None draws bars with tqdm.
    """
    config = config or configs.EncodeConfig()
    if vae.artifact is None:
        report = progress or TqdmProgress()
        return Latents(encode_snippets(vae.model, vae.data.store, config, None, report), vae)
    assert vae.data.artifact is not None
    inputs = {"snippets": vae.data.artifact, "vae": vae.artifact}
    artifact = _publish("encode", vae.data.workspace, config, inputs, name, progress)
    return Latents(LatentStore.open(artifact.path), vae, artifact)


def train_diffusion(
    latents: Latents,
    config: configs.DiffusionConfig | None = None,
    *,
    denoiser: nn.Module | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> Diffusion:
    """Train the diffusion model that samples latents (paper section 3.3).

    Args:
        latents: What `encode` returned.
        config: Settings; None takes the defaults.
        denoiser: A module of your own in the place of the denoiser: it maps noisy latents
            (batch, latent), timesteps (batch,) and condition (batch, condition) to the prediction
            (batch, latent). The model then stays in memory.
        name: Name of the artifact.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: The settings do not fit the data.
        LwdctlError: Training diverged.
    """
    config = config or configs.DiffusionConfig()
    vae, data = latents.vae, latents.vae.data
    if latents.artifact is None or denoiser is not None:
        with tempfile.TemporaryDirectory() as folder:
            trained = train_diffusion_model(
                latents.store,
                data.store,
                vae.model,
                config,
                directory=Path(folder),
                progress=progress or TqdmProgress(),
                denoiser=denoiser,
            )
        return Diffusion(trained, None, latents)
    assert data.artifact is not None
    assert vae.artifact is not None
    inputs = {"snippets": data.artifact, "vae": vae.artifact, "latents": latents.artifact}
    artifact = _publish("train-diffusion", data.workspace, config, inputs, name, progress)
    model = load_diffusion(artifact, choose_device(config.device))
    return Diffusion(_read_trained(artifact, model), artifact, latents)


def train_baseline(
    method: str,
    data: Dataset,
    config: configs.BaselineConfig | None = None,
    *,
    name: str = "",
    progress: Progress | None = None,
) -> Baseline:
    """Train what LWD is compared with: `"dp"`, `"ldp"`, `"mlp"`, or a method of another package.

    Args:
        method: Name of the method.
        data: Demonstrations. Those of a workspace give an artifact there.
        config: Settings; None takes the method's defaults.
        name: Name of the artifact.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: The settings do not fit the method or the data.
        LwdctlError: Training diverged.
    """
    config = replace(config or configs.BaselineConfig(), method=method)
    if data.artifact is None:
        with tempfile.TemporaryDirectory() as folder:
            trained = load_method(method).train(
                data.store, config, Path(folder), progress or TqdmProgress()
            )
            trained.save(Path(folder))
            policy = load_method(method).open_directory(Path(folder), torch.device("cpu"), method)
            _ = policy.model  # reads the weights while they are there
        return Baseline(trained, None, data, policy)
    inputs = {"snippets": data.artifact}
    artifact = _publish("train-baseline", data.workspace, config, inputs, name, progress)
    policy = open_trained(artifact, data.workspace, config.device)
    return Baseline(_read_trained(artifact, policy.model), artifact, data, policy)


def _publish(
    command: str,
    workspace: Workspace,
    config: Any,
    inputs: Mapping[str, Artifact],
    name: str,
    progress: Progress | None,
) -> Artifact:
    references = {kind: str(item.path) for kind, item in inputs.items()}
    values = to_mapping(config)
    return run_stage(command, workspace, values, inputs=references, name=name, progress=progress)


def _read_trained(artifact: Artifact, model: nn.Module) -> Trained[Any]:
    """Return a published model; its last weights stay on disk."""
    return Trained(load_spec(artifact.path), model, model, artifact.manifest.summary)
