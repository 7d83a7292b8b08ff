"""Reading demonstrations of any data format into a snippet store, on disk or in memory.

`open_source` of `data.reader` opens the files, `ingest` reads them.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.plain_text import listed
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.records import UNKNOWN_UNITS, ActionSpec, Finding, SourceSpec
from lwdctl.core.seeding import generator
from lwdctl.data.checks import NonFiniteError
from lwdctl.data.quality.checks import (
    DataChecks,
    check_conversion,
    declared_action,
    may_be_padding,
    padding_left_out,
    read_finite,
    with_checks,
    without_zero_tail,
)
from lwdctl.data.quality.ingest_report import describe_finding, write_report
from lwdctl.data.reader import EpisodeOutline, MergedReader

EARLY_EPISODES = 50
EARLY_STEPS = 20_000
"""After so many episodes or steps the data are checked once, so that a large file fails early."""


def ingest(
    source: MergedReader,
    config: IngestConfig,
    store: Path | None = None,
    progress: Progress | None = None,
) -> tuple[SnippetStore, dict[str, Any]]:
    """Read the episodes of a source into a snippet store, one at a time.

    The order of episodes in the store is random (fixed by `config.seed`), so that neighboring
    blocks of the store hold many tasks and labels. Beside a store on disk lies a report of what was
    found in the data, `INGEST_REPORT`.

    Args:
        source: What `data.reader.open_source` returned.
        config: Which episodes to keep, and how to split them.
        store: The zarr directory to create, or None for a store in memory.
        progress: Where to report.

    Returns:
        The store, and a summary of its contents (JSON-ready).

    Raises:
        ConfigError: The actions are not what `config.actions` requests, or cannot be clipped.
        DataError: An episode cannot be read, none is left, or a finding is an error.
    """
    progress = progress or TqdmProgress()
    check_conversion(source.spec.action, config)
    order, found = _order(source, config)
    broken, padding = list[int](), list[int]()
    if config.on_nan == "drop" or any(may_be_padding(item.source) for item in source.episodes):
        order, broken, padding = _whole(source, order, config, found, progress)
    else:
        order = _limited(source, order, config)
    chosen = [source.episodes[index] for index in order]
    env = replace(source.spec.env, max_steps=source.step_limit({*broken, *padding}))
    spec = _narrowed(replace(source.spec, env=env), chosen, config)
    checks = DataChecks(spec, config, source.findings)
    _announce(source, declared_action(spec.action, config), progress)
    _stop_at_error(source, found, checks)
    splits = assign_splits(chosen, config.validation_fraction, config.seed)
    checked_early = False
    with SnippetWriter(store, spec) as writer:
        with progress.task("ingest", len(order), "episode") as task:
            for index, split in zip(order, splits, strict=True):
                kept = checks.add(read_finite(source, index))
                if kept is not None:
                    writer.append(replace(kept, split=split), checks.last)
                if not checked_early and _enough(checks):
                    checked_early = True
                    _stop_at_error(source, found, checks)
                task.advance()
        found += _left_out(source, broken, padding)
        findings = _stop_at_error(source, found, checks)
        for item in findings:
            progress.message(describe_finding(item))
        counts = writer.close(checks.action())
    result = SnippetStore.written_by(writer)
    if store is not None:
        write_report(store.parent, source, findings, checks.statistics())
    severities = Counter(item.severity for item in findings)
    summary = {
        **counts,
        "dropped_episodes": len(broken) + len(padding) + len(chosen) - checks.episodes,
        **checks.summary(),
        "findings": {name: severities[name] for name in ("warning", "note")},
        **_describe(result.spec),
    }
    return result, summary


def _announce(source: MergedReader, action: ActionSpec, progress: Progress) -> None:
    said = f", {action.semantics} ({action.units})" if action.units != UNKNOWN_UNITS else ""
    progress.message(
        f"reading {len(source.episodes)} episodes, "
        f"{sum(item.length for item in source.episodes)} steps from "
        f"{', '.join(map(str, source.paths))}; actions: {action.size} numbers{said}"
    )


def _limited(
    source: MergedReader,
    order: Iterable[int],
    config: IngestConfig,
    is_whole: Callable[[int], bool] = lambda _: True,
) -> list[int]:
    """Return as many of the episodes as are asked for, in all and of each label.

    `is_whole` says whether an episode counts; it is called for those alone that are still wanted.
    """
    kept: list[int] = []
    seen: Counter[str] = Counter()
    for index in order:
        label = source.episodes[index].label
        is_wanted = config.max_episodes != len(kept) and config.max_per_label != seen[label]
        if is_wanted and is_whole(index):
            seen[label] += 1
            kept.append(index)
    return kept


def _whole(
    source: MergedReader,
    order: Sequence[int],
    config: IngestConfig,
    found: Sequence[Finding],
    progress: Progress,
) -> tuple[list[int], list[int], list[int]]:
    """Return the same of the episodes that are whole, the broken ones, and those of padding.

    Episodes are read for that before any is stored, so that one of padding, or with NaN or
    infinity, counts for no number of episodes, for no split, and for no task or label.

    Raises:
        NonFiniteError: An episode has NaN or infinity, and `config.on_nan` drops none.
        DataError: No episode is left, or a finding in the first of them is an error.
    """
    checks = DataChecks(source.spec, config, source.findings)
    _stop_at_error(source, found, checks)
    broken, padding = list[int](), list[int]()
    is_checked = False
    with progress.task("check", len(order), "episode") as task:

        def is_whole(index: int) -> bool:
            nonlocal is_checked
            task.advance()
            try:
                episode = read_finite(source, index)
            except NonFiniteError as error:
                if config.on_nan != "drop":
                    raise
                progress.message(f"left out: {error.message}")
                broken.append(index)
                return False
            if may_be_padding(episode.source) and without_zero_tail(episode) is None:
                padding.append(index)
                return False
            if not is_checked:
                checks.add(episode)
                is_checked = _enough(checks)
                if is_checked:
                    _stop_at_error(source, found, checks)
            return True

        kept = _limited(source, order, config, is_whole)
    if not kept:
        what = ["NaN or infinity"] * bool(broken) + ["only zeros"] * bool(padding)
        raise DataError(f"{source.paths[0]}: every episode has {' or '.join(what)}")
    return kept, broken, padding


def _left_out(
    source: MergedReader, broken: Sequence[int], padding: Sequence[int]
) -> Iterable[Finding]:
    if broken:
        names = [source.episodes[index].source for index in broken]
        yield Finding(
            "not-finite", "note",
            f"{len(names)} episodes with NaN or infinity are left out: {listed(names)}",
            values={"episodes": len(names)},
        )  # fmt: skip
    if padding:
        yield padding_left_out([source.episodes[index].source for index in padding])


def _enough(checks: DataChecks) -> bool:
    """Return whether enough was read for the checks to stop a large file early."""
    return checks.episodes >= EARLY_EPISODES or checks.steps >= EARLY_STEPS


def _stop_at_error(
    source: MergedReader, found: Sequence[Finding], checks: DataChecks
) -> list[Finding]:
    """Return what was found so far; raise the first error as a `DataError`."""
    findings = with_checks([*source.findings, *found], checks)
    errors = [item for item in findings if item.severity == "error"]
    if errors:
        first, path = errors[0], str(source.paths[0])
        place = first.where or path
        message = f"{place}: {first.message}"
        if len(errors) > 1:
            message += f" (and {len(errors) - 1} more: lwdctl inspect {shlex.quote(path)})"
        raise DataError(message, first.hint)
    return findings


def _order(source: MergedReader, config: IngestConfig) -> tuple[list[int], list[Finding]]:
    """Return which episodes may be stored, in the store's order, and why others may not."""
    count, found = len(source.episodes), list[Finding]()
    order: list[int] = generator("ingest-order", config.seed).permutation(count).tolist()
    if config.only_successful:
        order, finding = _successful(source, order)
        found.append(finding)
    return order, found


def _successful(source: MergedReader, order: Sequence[int]) -> tuple[list[int], Finding]:
    """Return the episodes that the source marks as successful.

    Raises:
        DataError: None is marked so.
    """
    outcomes: Counter[bool | None] = Counter()
    kept = []
    for index in order:
        try:
            success = source.succeeded(index)
        except NonFiniteError:
            kept.append(index)  # `--on-nan` decides about it
            continue
        outcomes[success] += 1
        if success:
            kept.append(index)
    if not outcomes[True]:
        silent = not outcomes[False]
        reason = "does not say which episodes succeeded" if silent else "has no successful episode"
        raise DataError(
            f"{source.paths[0]}: --only-successful: the source {reason}",
            "leave --only-successful out",
        )
    return kept, Finding(
        "unsuccessful", "note",
        f"{outcomes[False] + outcomes[None]} of {len(order)} episodes are left out:"
        f" {outcomes[False]} failed, {outcomes[None]} do not say",
        values={"failed": outcomes[False], "unknown": outcomes[None]},
    )  # fmt: skip


def _narrowed(
    spec: SourceSpec, outlines: Sequence[EpisodeOutline], config: IngestConfig
) -> SourceSpec:
    """Return the specification with only those tasks and labels that are stored."""
    if config.max_steps:
        spec = replace(spec, env=replace(spec.env, max_steps=config.max_steps))
    tasks, labels = {item.task for item in outlines}, {item.label for item in outlines}
    if "" not in tasks:  # an episode without a task belongs to the only one, or to none
        kept = tuple(task for task in spec.env.tasks if task in tasks)
        spec = replace(spec, env=replace(spec.env, tasks=kept))
    return replace(spec, labels=tuple(label for label in spec.labels if label in labels))


def _describe(spec: SourceSpec) -> dict[str, Any]:
    return {
        "format": spec.source_format,
        "env": spec.env.adapter,
        "observations": {item.name: item.size for item in spec.observations},
        "network_keys": list(spec.network_keys),
        "action": {
            name: getattr(spec.action, name)
            for name in ("size", "semantics", "units", "control_rate", "limits")
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
