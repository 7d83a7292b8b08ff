"""Presents several files of one format as a single source."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Protocol

from lwdctl.core.errors import DataError
from lwdctl.core.records import Episode, SourceSpec
from lwdctl.data.reader import ReadOptions


@dataclass(frozen=True)
class EpisodeOutline:
    """What is known of an episode before its steps are read.

    Attributes:
        task: Task name.
        label: Behavior label, or "".
        split: `"train"`, `"validation"`, or "" when the source does not say.
    """

    task: str = ""
    label: str = ""
    split: str = ""


class FileReader(Protocol):
    """A `Reader` of one file, which is all that a new format has to write."""

    path: Path
    spec: SourceSpec
    sources: Sequence[str]
    lengths: Sequence[int]

    def outline(self, index: int) -> EpisodeOutline:
        """Say what an episode is without loading its steps."""

    def read(self, index: int) -> Episode:
        """Load one episode."""

    def close(self) -> None:
        """Close the file."""


class MergedReader:
    """Concatenates the episodes of several files whose dimensions agree.

    The environment's settings are those of the first file; tasks and labels are joined in
    order of appearance. With more than one file, episode names begin with the file's name.

    Args:
        make: Opens one file.
        paths: The files, at least one.
        options: What the user asked for.

    Raises:
        DataError: No path, the same path twice, or files that disagree in dimensions,
            action semantics or environment; the message names both files.
    """

    def __init__(
        self,
        make: Callable[[Path, ReadOptions], FileReader],
        paths: Sequence[Path],
        options: ReadOptions,
    ) -> None:
        if not paths:
            raise DataError("no path given", "name at least one file")
        _refuse_repeats(paths)
        with ExitStack() as opened:
            self._readers: list[FileReader] = []
            for path in paths:
                with _damage_named(path):
                    reader = make(path, options)
                opened.callback(reader.close)
                self._readers.append(reader)
            self.spec = _merge_specs(self._readers)
            self._closing = opened.pop_all()
        self._ends = list(accumulate(len(reader.sources) for reader in self._readers))
        prefixes = _prefixes(paths)
        self.sources = [
            f"{prefix}{source}"
            for prefix, reader in zip(prefixes, self._readers, strict=True)
            for source in reader.sources
        ]
        self.lengths = [length for reader in self._readers for length in reader.lengths]

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: Bad values; the message names file, key and row.
        """
        reader, position = self._locate(index)
        with _damage_named(reader.path):
            episode = reader.read(position)
        return dataclasses.replace(episode, source=self.sources[index])

    def outline(self, index: int) -> EpisodeOutline:
        """Say what an episode is without loading its steps."""
        reader, position = self._locate(index)
        return reader.outline(position)

    def close(self) -> None:
        """Close all files."""
        self._closing.close()

    def _locate(self, index: int) -> tuple[FileReader, int]:
        """Return the file of an episode and its index there."""
        which = bisect_right(self._ends, index)
        return self._readers[which], index - (self._ends[which - 1] if which else 0)

    def __enter__(self) -> MergedReader:
        """Return the reader."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all files."""
        del kind, error, trace
        self.close()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what a library raises over damaged bytes into an error that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: is damaged ({error})") from error


def _refuse_repeats(paths: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for path in paths:
        resolved = path.resolve()
        if resolved in seen:
            raise DataError(f"{path}: is named twice")
        seen.add(resolved)


def _prefixes(paths: Sequence[Path]) -> list[str]:
    """Return what tells the files' episodes apart: nothing, the stems, or the whole paths."""
    if len(paths) == 1:
        return [""]
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    return [f"{name}:" for name in names]


def _merge_specs(readers: Sequence[FileReader]) -> SourceSpec:
    first = readers[0]
    for other in readers[1:]:
        _require_agreement(first, other)
    specs = [reader.spec for reader in readers]
    tasks = tuple(dict.fromkeys(task for spec in specs for task in spec.env.tasks))
    labels = tuple(dict.fromkeys(label for spec in specs for label in spec.labels))
    seeds = [seed for spec in specs for seed in spec.collection_seeds or ()]
    env = dataclasses.replace(
        first.spec.env, tasks=tasks, max_steps=max(spec.env.max_steps for spec in specs)
    )
    return dataclasses.replace(
        first.spec,
        env=env,
        labels=labels,
        collection_seeds=(min(seeds), max(seeds)) if seeds else None,
    )


def _require_agreement(first: FileReader, other: FileReader) -> None:
    mine, theirs = first.spec, other.spec
    pairs = (
        ("observations", _describe(mine), _describe(theirs)),
        ("action", mine.action, theirs.action),
        ("environment", mine.env.adapter, theirs.env.adapter),
        ("environment settings", _settings(mine), _settings(theirs)),
    )
    for noun, ours, found in pairs:
        if ours == found:
            continue
        detail = f": {found} against {ours}" if noun in ("observations", "environment") else ""
        raise DataError(
            f"{other.path}: {noun} differ from those of {first.path}{detail}",
            "ingest the files one by one",
        )


def _settings(spec: SourceSpec) -> dict[str, object]:
    """Return the settings without the environment's name, which the tasks already say."""
    settings = dict(spec.env.settings)
    if isinstance(settings.get("env_args"), dict):
        arguments = settings["env_args"].items()
        settings["env_args"] = {key: value for key, value in arguments if key != "env_name"}
    return settings


def _describe(spec: SourceSpec) -> str:
    return ", ".join(f"{item.name} ({item.size})" for item in spec.observations)
