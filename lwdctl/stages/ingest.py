"""`lwdctl ingest`: somebody's demonstrations into a snippet store."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.durable import fingerprint
from lwdctl.artifacts.kinds import sanitize_name
from lwdctl.artifacts.snippets import SNIPPETS_PAYLOAD, SnippetWriter
from lwdctl.configs import IngestConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.progress import Progress
from lwdctl.core.records import Episode, SourceSpec
from lwdctl.core.seeding import generator
from lwdctl.data.checks import NonFiniteError
from lwdctl.data.reader import MergedReader, ReadOptions, open_source, paths_of
from lwdctl.data.splits import assign_splits
from lwdctl.envs.table import with_outside_environment
from lwdctl.stages.stage import StageContext

DEMONSTRATIONS = "demonstrations"
DEMONSTRATIONS_PAYLOAD = "demonstrations.hdf5"
MINIMUM_SHARED_NAME = 3


def run(config: IngestConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Read the source once, episode by episode, and publish a `snippets` artifact.

    Raises:
        ConfigError: No path is given and nothing was collected, or the source's actions are
            not what was asked for.
        DataError: The source cannot be read; nothing is left behind.
    """
    paths, parents = _sources(config, inputs)
    name = context.name or _default_name(paths, parents)
    with open_source(config.format, paths, _read_options(config)) as reader:
        order = _order(config, reader)
        spec = _narrowed(with_outside_environment(reader.spec), reader, order)
        _require_actions(config.actions, spec.action.semantics)
        context.progress.message(_announcement(reader, spec, paths))
        with context.workspace.begin(
            "snippets", name, config=to_mapping(config), inputs=parents
        ) as draft:
            writer = SnippetWriter(draft.path / SNIPPETS_PAYLOAD, spec)
            tally = _Tally()
            for episode in _episodes(config, reader, order, context.progress, tally):
                writer.append(episode)
                tally.add(episode)
            if not tally.lengths:
                raise DataError(f"{paths[0]}: every episode has NaN or infinity")
            summary = {**writer.close(), **tally.to_mapping(), **_describe(spec)}
            summary["sources"] = [fingerprint(path) for path in paths]
            return draft.publish(summary, seed=config.seed)


def _sources(
    config: IngestConfig, inputs: Mapping[str, Artifact]
) -> tuple[tuple[Path, ...], list[Artifact]]:
    """Return the paths to read and the artifacts they belong to."""
    if config.paths:
        return paths_of(config.paths), []
    if config.format != "robomimic" or DEMONSTRATIONS not in inputs:
        raise ConfigError(
            "no path to read is given",
            f"lwdctl ingest {config.format} PATH, or `lwdctl collect` first (robomimic only)",
        )
    artifact = inputs[DEMONSTRATIONS]
    return (artifact.payload(DEMONSTRATIONS_PAYLOAD),), [artifact]


def _default_name(paths: Sequence[Path], parents: Sequence[Artifact]) -> str:
    """Name the store after its input; several files by what their names share."""
    if parents:
        return parents[0].name
    names = [_bare_name(path) for path in paths]
    shared = os.path.commonprefix(names).rstrip("._-")  # noqa: RUF071 - letters are meant
    return sanitize_name(names[0] if len(shared) < MINIMUM_SHARED_NAME else shared)


def _bare_name(path: Path) -> str:
    path = path.absolute()
    if path.name == "main_data.hdf5":  # Minari calls every file so
        path = path.parent
    if path.name == "data":
        path = path.parent
    name = path.name
    for suffix in (".zip", ".zarr", ".hdf5", ".h5"):
        name = name.removesuffix(suffix)
    return name


def _read_options(config: IngestConfig) -> ReadOptions:
    return ReadOptions(
        observation_keys=config.observation_keys,
        filter_key=config.filter_key or "",
        label=config.label or "",
        env=config.env or "",
        max_bytes=config.max_bytes,
        on_nan=config.on_nan,
        actions=config.actions,
    )


def _require_actions(asked: str, found: str) -> None:
    """Refuse a source whose actions are not, and cannot be made, what was asked for."""
    if asked not in ("recorded", found):
        raise ConfigError(
            f"--actions {asked}: the source's actions are {found} ones and cannot be converted",
            "leave --actions out to store them as recorded",
        )


def _announcement(reader: MergedReader, spec: SourceSpec, paths: Sequence[Path]) -> str:
    files = ", ".join(str(path) for path in paths)
    action = spec.action
    return (
        f"reading {len(reader.sources)} episodes, {sum(reader.lengths)} steps from {files}; "
        f"actions: {action.size} numbers, {action.semantics} ({action.units})"
    )


def _order(config: IngestConfig, reader: MergedReader) -> Sequence[int]:
    """Return which episodes are stored, in the store's order.

    It is random, so that neighboring blocks of the store hold many tasks and labels.
    """
    drawn = generator("ingest-order", config.seed).permutation(len(reader.sources)).tolist()
    return _at_most_per_label(drawn, reader, config.max_per_label)[: config.max_episodes]


def _narrowed(spec: SourceSpec, reader: MergedReader, order: Sequence[int]) -> SourceSpec:
    """Return the description with those tasks and labels alone that are stored."""
    outlines = [reader.outline(index) for index in order]
    tasks, labels = {item.task for item in outlines}, {item.label for item in outlines}
    kept = tuple(task for task in spec.env.tasks if task in tasks)
    if "" in tasks:  # belongs to the only task, or to none
        kept = spec.env.tasks
    return replace(
        spec,
        env=replace(spec.env, tasks=kept),
        labels=tuple(label for label in spec.labels if label in labels),
    )


def _episodes(
    config: IngestConfig,
    reader: MergedReader,
    order: Sequence[int],
    progress: Progress,
    tally: _Tally,
) -> Iterator[Episode]:
    """Yield the episodes in the store's order, each with its split."""
    outlines = [reader.outline(index) for index in order]
    splits = assign_splits(outlines, config.validation_fraction, config.seed)
    with progress.task("ingest", len(order), "episode") as task:
        for index, split in zip(order, splits, strict=True):
            try:
                episode = reader.read(index)
            except NonFiniteError as error:
                if config.on_nan != "drop":
                    raise
                tally.dropped += 1
                progress.message(f"left out: {error.message}")
            else:
                yield replace(episode, split=split)
            task.advance()


def _at_most_per_label(
    order: Sequence[int], reader: MergedReader, limit: int | None
) -> Sequence[int]:
    """Keep the first `limit` episodes of every label; None keeps all."""
    if limit is None:
        return order
    seen: Counter[str] = Counter()
    kept = []
    for index in order:
        label = reader.outline(index).label
        seen[label] += 1
        if seen[label] <= limit:
            kept.append(index)
    return kept


@dataclass
class _Tally:
    """Counts of what was stored, for the summary."""

    dropped: int = 0
    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)
    tasks: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, episode: Episode) -> None:
        """Count one stored episode."""
        self.lengths.append(episode.length)
        if episode.rewards is not None:
            self.returns.append(float(episode.rewards.sum(dtype="float64")))
        if episode.success is not None:
            self.successes.append(episode.success)
        self.tasks[episode.task] += 1
        self.labels[episode.label] += 1

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values; `return` and `success` where the source knows them."""
        values: dict[str, Any] = {
            "dropped_episodes": self.dropped,
            "length": _spread(self.lengths),
            "episodes_by_task": dict(sorted(self.tasks.items())),
            "episodes_by_label": dict(sorted(self.labels.items())),
        }
        if self.returns:
            values["return"] = _spread(self.returns)
        if self.successes:
            values["success"] = sum(self.successes) / len(self.successes)
        return values


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "minimum": min(values),
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "maximum": max(values),
    }


def _describe(spec: SourceSpec) -> dict[str, Any]:
    """Say what the store holds, in the summary's words."""
    return {
        "format": spec.source_format,
        "env": spec.env.adapter,
        "observations": {item.name: item.size for item in spec.observations},
        "network_keys": list(spec.network_keys),
        "action": {
            "size": spec.action.size,
            "semantics": spec.action.semantics,
            "units": spec.action.units,
            "control_rate": spec.action.control_rate,
        },
    }
