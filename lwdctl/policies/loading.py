"""Models out of artifacts, with the EMA weights that sampling uses."""

from __future__ import annotations

import torch
from torch import nn

from lwdctl.artifacts.artifact import Artifact
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae


def load_vae(
    artifact: Artifact, device: torch.device, encoder: nn.Module | None = None
) -> PolicyVae:
    """Return the policy VAE of an artifact for inference; see `PolicyVae.load`."""
    artifact.check()
    return PolicyVae.load(artifact.path, encoder).to(device)


def load_diffusion(
    artifact: Artifact, device: torch.device, denoiser: nn.Module | None = None
) -> LatentDiffusion:
    """Return the diffusion model of an artifact for inference; see `LatentDiffusion.load`."""
    artifact.check()
    return LatentDiffusion.load(artifact.path, denoiser).to(device)
