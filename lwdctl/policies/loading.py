"""Models out of artifacts, with the EMA weights that sampling uses."""

from __future__ import annotations

import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.models.behavior_cloning import ClonedPolicy, ClonedSpec
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, LatentChunks
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.files import load_spec, load_weights
from lwdctl.models.vae import PolicyVae


def load_vae(artifact: Artifact, device: torch.device) -> PolicyVae:
    """Rebuild a policy VAE from its artifact, ready for inference."""
    artifact.check()
    return PolicyVae.load(artifact.path).to(device)


def load_diffusion(artifact: Artifact, device: torch.device) -> LatentDiffusion:
    """Rebuild a latent diffusion model from its artifact, ready for inference."""
    artifact.check()
    return LatentDiffusion.load(artifact.path).to(device)


def load_baseline(
    artifact: Artifact, device: torch.device
) -> ActionDiffusion | LatentChunks | ClonedPolicy:
    """Rebuild a baseline from its artifact, ready for inference."""
    artifact.check()
    values = load_spec(artifact.path)
    method = values.pop("method")
    model: ActionDiffusion | LatentChunks | ClonedPolicy
    if method == "mlp":
        model = ClonedPolicy(ClonedSpec.from_mapping(values))
    else:
        spec = ChunkSpec.from_mapping(values)
        model = ActionDiffusion(spec) if method == "dp" else LatentChunks(spec)
    load_weights(model, artifact.path)
    return model.to(device).eval()
