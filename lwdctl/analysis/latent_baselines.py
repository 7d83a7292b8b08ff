"""What the encoder was given: the spaces that a latent space is compared with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from lwdctl.analysis.latent_table import LatentPoints
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models.vae import PolicyVae

Values = npt.NDArray[np.float64]

LARGEST = 64_000_000
"""Numbers that all raw snippets together may have (half a gigabyte)."""
_BATCH = 64


def standard_states(model: PolicyVae, latents: LatentStore, points: LatentPoints) -> Values:
    """Return the observations at each snippet's first step, standardized as the model does.

    Returns:
        (point, history * obs): what the diffusion model is conditioned on.
    """
    states = torch.from_numpy(latents.state[points.row])
    observations = states.reshape(len(states), -1, model.spec.observation_size)
    return _flat(model.observation.normalize(observations))


def raw_snippets(model: PolicyVae, snippets: SnippetStore, points: LatentPoints) -> Values | None:
    """Return what the encoder reads of each snippet, or None where that is too large.

    Returns:
        (point, time * (obs + action)): standardized, padded steps zero.
    """
    spec = model.spec
    width = spec.snippet_length * (spec.observation_size + spec.action_size)
    if len(points.row) * width > LARGEST:
        return None
    batches = SnippetBatches(
        snippets,
        spec.observation_keys,
        WindowRule(spec.snippet_length),
        split="all",
        seed=0,
        cache="auto",
    )
    parts = []
    for first in range(0, len(points.row), _BATCH):
        here = slice(first, first + _BATCH)
        batch = batches.cut(points.episode[here], points.start[here])
        steps = torch.cat(
            [model.observation.normalize(batch.observations), model.target(batch)], -1
        )
        parts.append(_flat(steps * batch.mask.unsqueeze(-1)))
    return np.concatenate(parts)


def _flat(values: torch.Tensor) -> Values:
    flat: Values = values.flatten(1).double().numpy()
    return flat
