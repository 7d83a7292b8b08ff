"""Reading demonstrations of any data format into a snippet store, on disk or in memory.

`open_source` of `data.reader` opens the files, `ingest` reads them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.records import SourceSpec
from lwdctl.core.seeding import generator
from lwdctl.data.checks import NonFiniteError
from lwdctl.data.reader import EpisodeOutline, MergedReader


def ingest(
    source: MergedReader,
    config: IngestConfig,
    store: Path | None = None,
    progress: Progress | None = None,
) -> tuple[SnippetStore, dict[str, Any]]:
    """Read the episodes of a source into a snippet store, one at a time.

    The order of episodes in the store is random (fixed by `config.seed`), so that neighboring
    blocks of the store hold many tasks and labels.

    Args:
        source: What `data.reader.open_source` returned.
        config: Which episodes to keep, and how to split them.
        store: The zarr directory to create, or None for a store in memory.
        progress: Where to report.

    Returns:
        The store, and a summary of its contents (JSON-ready).

    Raises:
        ConfigError: The actions are not what `config.actions` requests.
        DataError: An episode cannot be read, or none is left.
    """
    progress = progress or TqdmProgress()
    order = _order(config, source.episodes)
    chosen = [source.episodes[index] for index in order]
    spec, action = _narrowed(source.spec, chosen), source.spec.action
    if config.actions.removeprefix("recorded-") not in ("recorded", action.semantics):
        raise ConfigError(
            f"--actions {config.actions}: the recorded actions are {action.semantics} and cannot "
            "be converted",
            "leave --actions out to store them as recorded",
        )
    progress.message(
        f"reading {len(source.episodes)} episodes, "
        f"{sum(item.length for item in source.episodes)} steps from "
        f"{', '.join(map(str, source.paths))}; actions: {action.size} numbers, "
        f"{action.semantics} ({action.units})"
    )
    splits = assign_splits(chosen, config.validation_fraction, config.seed)
    writer = SnippetWriter(store, spec)
    stored: list[EpisodeOutline] = []
    returns: list[float] = []
    successes: list[bool] = []
    with progress.task("ingest", len(order), "episode") as task:
        for index, outline, split in zip(order, chosen, splits, strict=True):
            try:
                episode = replace(source.read(index), split=split)
            except NonFiniteError as error:
                if config.on_nan != "drop":
                    raise
                progress.message(f"left out: {error.message}")
            else:
                writer.append(episode)
                stored.append(outline)
                if episode.rewards is not None:
                    returns.append(float(episode.rewards.sum(dtype="float64")))
                if episode.success is not None:
                    successes.append(episode.success)
            task.advance()
    if not stored:
        raise DataError(f"{source.paths[0]}: every episode has NaN or infinity")
    summary: dict[str, Any] = {
        **writer.close(),
        "dropped_episodes": len(chosen) - len(stored),
        "length": _distribution([item.length for item in stored]),
        "episodes_by_task": dict(sorted(Counter(item.task for item in stored).items())),
        "episodes_by_label": dict(sorted(Counter(item.label for item in stored).items())),
    }
    if returns:
        summary["return"] = _distribution(returns)
    if successes:
        summary["success"] = sum(successes) / len(successes)
    return SnippetStore.written_by(writer), {**summary, **_describe(spec)}


def _order(config: IngestConfig, outlines: Sequence[EpisodeOutline]) -> list[int]:
    """Return which episodes are stored, in the store's order."""
    order: list[int] = generator("ingest-order", config.seed).permutation(len(outlines)).tolist()
    if config.max_per_label is not None:
        seen: Counter[str] = Counter()
        kept = []
        for index in order:
            seen[outlines[index].label] += 1
            if seen[outlines[index].label] <= config.max_per_label:
                kept.append(index)
        order = kept
    return order[: config.max_episodes]


def _narrowed(spec: SourceSpec, outlines: Sequence[EpisodeOutline]) -> SourceSpec:
    """Return the specification with only those tasks and labels that are stored."""
    tasks, labels = {item.task for item in outlines}, {item.label for item in outlines}
    if "" not in tasks:  # an episode without a task belongs to the only one, or to none
        kept = tuple(task for task in spec.env.tasks if task in tasks)
        spec = replace(spec, env=replace(spec.env, tasks=kept))
    return replace(spec, labels=tuple(label for label in spec.labels if label in labels))


def _distribution(values: Sequence[float]) -> dict[str, float]:
    return {
        "minimum": min(values),
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "maximum": max(values),
    }


def _describe(spec: SourceSpec) -> dict[str, Any]:
    return {
        "format": spec.source_format,
        "env": spec.env.adapter,
        "observations": {item.name: item.size for item in spec.observations},
        "network_keys": list(spec.network_keys),
        "action": {
            name: getattr(spec.action, name)
            for name in ("size", "semantics", "units", "control_rate")
        },
    }


def assign_splits(outlines: Sequence[EpisodeOutline], fraction: float, seed: int) -> list[str]:
    """Return `"train"` or `"validation"` per episode.

    A source's own split is used if it has episodes on both sides; episodes that it does not
    mention are trained on. Otherwise a fraction of every (task, label) stratum is drawn.

    Args:
        outlines: Task, label and split of each episode.
        fraction: Fraction held out, in [0, 1), when the source has no split of its own.
        seed: Seed of the draw.
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
    """Return how many of each stratum are held out, by largest remainder.

    Every stratum keeps at least one episode to train on, unless all of them have only one: then
    the last one is held out.
    """
    total = sum(sizes)
    if fraction <= 0 or total < 2:
        return [0] * len(sizes)
    exact = [fraction * size for size in sizes]
    quotas = [int(quota) for quota in exact]
    missing = max(1, round(fraction * total)) - sum(quotas)
    by_remainder = sorted(range(len(sizes)), key=lambda i: (quotas[i] - exact[i], i))
    for index in by_remainder[:missing]:
        quotas[index] += 1
    quotas = [min(quota, size - 1) for quota, size in zip(quotas, sizes, strict=True)]
    if not any(quotas):
        quotas[-1] = 1  # every stratum holds a single episode; one is held out nonetheless
    return quotas
