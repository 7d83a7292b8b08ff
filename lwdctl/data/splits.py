"""Which episodes are held out for validation."""

from __future__ import annotations

from collections.abc import Sequence

from lwdctl.core.seeding import generator
from lwdctl.data.reader import EpisodeOutline


def assign_splits(outlines: Sequence[EpisodeOutline], fraction: float, seed: int) -> list[str]:
    """Return `"train"` or `"validation"` per episode.

    A source's own split counts when it leaves episodes on both sides; episodes it does not
    mention are trained on. Otherwise a share of every (task, label) stratum is drawn.

    Args:
        outlines: What each episode is.
        fraction: Share held out, in [0, 1), when the source has no split of its own.
        seed: Fixes the draw.
    """
    given = [outline.split for outline in outlines]
    if {"train", "validation"} <= {split or "train" for split in given}:
        return [split or "train" for split in given]
    strata: dict[tuple[str, str], list[int]] = {}
    for index, outline in enumerate(outlines):
        strata.setdefault((outline.task, outline.label), []).append(index)
    quotas = _quotas([len(members) for members in strata.values()], fraction)
    splits = ["train"] * len(outlines)
    for ((task, label), members), quota in zip(strata.items(), quotas, strict=True):
        rng = generator("validation split", seed, task, label)
        for position in rng.permutation(len(members))[:quota]:
            splits[members[position]] = "validation"
    return splits


def _quotas(sizes: Sequence[int], fraction: float) -> list[int]:
    """Share out the held-out episodes by largest remainder, leaving one to train on each."""
    total = sum(sizes)
    if fraction <= 0 or total < 2:
        return [0] * len(sizes)
    exact = [fraction * size for size in sizes]
    quotas = [int(share) for share in exact]
    missing = max(1, round(fraction * total)) - sum(quotas)
    by_remainder = sorted(range(len(sizes)), key=lambda i: (quotas[i] - exact[i], i))
    for index in by_remainder[:missing]:
        quotas[index] += 1
    quotas = [min(quota, size - 1) for quota, size in zip(quotas, sizes, strict=True)]
    if not any(quotas):
        # Every stratum holds a single episode: one of them is held out all the same.
        quotas[-1] = 1
    return quotas
