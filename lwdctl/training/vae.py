"""Training of the policy VAE."""

from __future__ import annotations

import torch

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.models.normalizer import SMALLEST_STD
from lwdctl.models.vae import PolicyVae


def fit_normalizers(model: PolicyVae, store: SnippetStore) -> int:
    """Fit both normalizers on the training split, from the store's statistics.

    Returns:
        How many action components vary so little that they count as constant, though they vary.
    """
    spec = model.spec
    model.observation.standardize(store.moments(spec.observation_keys, "train"))
    key = "action_relative" if spec.action_target == "relative" else "action"
    moments = store.moments((key,), "train")
    model.action.standardize(moments)
    std = torch.as_tensor(moments.deviation, dtype=torch.float32)
    unscaled = (model.action.scale.cpu() == 1.0) & (std < SMALLEST_STD)
    return int((unscaled & (std > 1e-6 * model.action.mean.cpu().abs())).sum())


def epochs(updates: int, batch_size: int, episodes: int) -> float:
    """Convert training steps to epochs; an epoch is one randomly placed snippet per episode."""
    return updates * batch_size / max(1, episodes)
