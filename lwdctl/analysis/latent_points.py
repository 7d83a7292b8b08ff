"""The snippets of an analysis of latents: latents, categories, and baseline spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lwdctl.analysis.resample import Values
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError
from lwdctl.core.seeding import generator
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.readers.robomimic_writer import LEVELS
from lwdctl.data.windows import WindowRule
from lwdctl.evaluation.snippet_episodes import rank_within_episode
from lwdctl.models.vae import PolicyVae

Index = npt.NDArray[np.int64]

MIN_POINTS = 5
"""Fewer points have no neighborhoods worth a figure."""
UNKNOWN = -1
MAX_RAW_NUMBERS = 64_000_000
"""Numbers that all raw snippets together may have (half a gigabyte)."""
_BATCH = 64


@dataclass(frozen=True)
class LatentPoints:
    """Snippets drawn from a latent store.

    Attributes:
        row: (point,) row in the latent store, ascending.
        latent: (point, latent), sampled from the posterior or its mean.
        episode: (point,) row of the snippet store's episode table.
        start: (point,) first step inside the episode.
        position: (point,) start as a fraction of the episode's length, in [0, 1].
    """

    row: Index
    latent: Values
    episode: Index
    start: Index
    position: Values

    @property
    def episodes(self) -> int:
        """Number of different episodes."""
        return len(np.unique(self.episode))


@dataclass(frozen=True)
class Grouping:
    """One way to sort points into categories that no model was conditioned on.

    Attributes:
        name: `"task"`, `"label"`, `"level"` or `"success"`.
        title: Heading; operators are stored as labels.
        index: (point,) index into `categories`, `UNKNOWN` for none.
    """

    name: str
    title: str
    categories: tuple[str, ...]
    index: Index

    @property
    def varies(self) -> bool:
        """Whether the points have more than one category."""
        return len(np.unique(self.index[self.index != UNKNOWN])) > 1


def rows_of_split(latents: LatentStore, snippets: SnippetStore, split: str) -> Index:
    """Return the latent store's rows (row,) of a split's episodes.

    Args:
        latents: Encoded snippets.
        snippets: The store they were cut from.
        split: `"train"`, `"validation"` or `"all"`.

    Raises:
        ConfigError: The split has too few snippets.
    """
    wanted = snippets.episodes.of_split(split)
    rows: Index = np.flatnonzero(np.isin(latents.episode, wanted)).astype(np.int64)
    if len(rows) < MIN_POINTS:
        raise ConfigError(
            f"{latents.path} has {len(rows)} snippets in the split '{split}', but an analysis"
            f" needs {MIN_POINTS}",
            "use --split all, or encode with a smaller --stride",
        )
    return rows


def draw_points(
    latents: LatentStore,
    snippets: SnippetStore,
    rows: Index,
    count: int,
    seed: int,
    *,
    sampled: bool,
) -> LatentPoints:
    """Draw snippets evenly over episodes, with their latents.

    Every episode gives its first random snippet before any gives its second one.

    Args:
        latents: Encoded snippets.
        snippets: The store they were cut from.
        rows: (row,) the rows to draw from.
        count: Largest number of snippets to draw.
        seed: Seed of the draw and of the posterior's noise.
        sampled: Sample latents from the posterior instead of taking its mean.

    Raises:
        ConfigError: All latents are equal.
    """
    of_episode = latents.episode
    chosen = rows[draw_evenly(of_episode[rows], count, seed)]
    latent = latents.mean[chosen].astype(np.float64)
    if sampled:
        noise = generator("analysis-noise", seed).standard_normal(latent.shape)
        latent += np.exp(0.5 * latents.log_variance[chosen].astype(np.float64)) * noise
    if not np.ptp(latent, axis=0).any():
        raise ConfigError(
            f"all latents of {latents.path} are the same", "train the VAE with a smaller --beta-kl"
        )
    episode, start = of_episode[chosen].astype(np.int64), latents.start[chosen]
    position = np.clip(start / snippets.episodes.length[episode], 0.0, 1.0)
    return LatentPoints(chosen, latent, episode, start, position)


def draw_evenly(episode: npt.NDArray[np.int32], count: int, seed: int) -> Index:
    """Return at most `count` positions (point,), ascending, spread evenly over episodes.

    Args:
        episode: (row,) episode of each row.
        count: Largest number of positions.
        seed: Seed of the draw.
    """
    rng = generator("analysis-points", seed)
    shuffled = rng.permutation(len(episode))
    order = shuffled[np.argsort(episode[shuffled], kind="stable")]
    rank = rank_within_episode(episode[order])
    taken = order[np.lexsort((rng.random(len(order)), rank))][:count]
    return np.sort(taken).astype(np.int64)


def groupings(snippets: SnippetStore, episode: Index) -> list[Grouping]:
    """Return every grouping that the data stores, whether it varies or not.

    Operators of multi-human data are stored as labels (`better_operator_1`); their skill levels
    are read from those names.

    Args:
        snippets: The store.
        episode: (point,) episode of each point.
    """
    table, spec = snippets.episodes, snippets.spec
    label = table.label[episode].astype(np.int64)
    operators = bool(spec.labels) and all("operator" in name for name in spec.labels)
    found = [
        Grouping("task", "Task", spec.env.tasks, table.task[episode].astype(np.int64)),
        Grouping("label", "Operator" if operators else "Label", spec.labels, label),
        _levels(spec.labels, label),
        Grouping("success", "Success", ("failed", "solved"), table.success[episode].astype(int)),
    ]
    return [grouping for grouping in found if (grouping.index != UNKNOWN).any()]


def _levels(labels: Sequence[str], label: Index) -> Grouping:
    """Group operators by skill level; no point has one where labels are levels themselves."""
    level = [next((i for i, name in enumerate(LEVELS) if item.startswith(f"{name}_")), UNKNOWN)
             for item in labels]  # fmt: skip
    index = np.array([*level, UNKNOWN], np.int64)[label]  # the label -1 takes the last entry
    return Grouping("level", "Operator's skill level", LEVELS, index)


def standardized_states(vae: PolicyVae, latents: LatentStore, points: LatentPoints) -> Values:
    """Return the observations at each snippet's first step, standardized as the model does.

    Returns:
        (point, history * obs): what the diffusion model is conditioned on.
    """
    states = torch.from_numpy(latents.state[points.row]).to(vae.observation.mean.device)
    observations = states.reshape(len(states), -1, vae.spec.observation_size)
    return _flat(vae.observation.normalize(observations))


def raw_snippets(vae: PolicyVae, snippets: SnippetStore, points: LatentPoints) -> Values | None:
    """Return the encoder's input for each snippet, or None where that is too large.

    Returns:
        (point, time * (obs + action)): standardized, padded steps zero.
    """
    spec = vae.spec
    width = spec.snippet_length * (spec.observation_size + spec.action_size)
    if len(points.row) * width > MAX_RAW_NUMBERS:
        return None
    rule, device = WindowRule(spec.snippet_length), vae.observation.mean.device
    batches = SnippetBatches(
        snippets, spec.observation_keys, rule, split="all", seed=0, device=device
    )
    parts = []
    for first in range(0, len(points.row), _BATCH):
        here = slice(first, first + _BATCH)
        cut = batches.cut(points.episode[here], points.start[here])
        steps = torch.cat([vae.observation.normalize(cut.observations), vae.target(cut)], -1)
        parts.append(_flat(steps * cut.mask.unsqueeze(-1)))
    return np.concatenate(parts)


def _flat(values: torch.Tensor) -> Values:
    flat: Values = values.flatten(1).cpu().double().numpy()
    return flat
