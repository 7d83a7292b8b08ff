"""Models out of artifacts, with the EMA weights that sampling uses."""

from __future__ import annotations

import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae


def load_vae(artifact: Artifact, device: torch.device) -> PolicyVae:
    """Rebuild a policy VAE from its artifact, ready for inference."""
    artifact.check()
    return PolicyVae.load(artifact.path).to(device)


def load_diffusion(artifact: Artifact, device: torch.device) -> LatentDiffusion:
    """Rebuild a latent diffusion model from its artifact, ready for inference."""
    artifact.check()
    return LatentDiffusion.load(artifact.path).to(device)
