"""The contract of a data format, and the one source that its files are read as.

A data format is one module with a class that fulfills `FileReader`, and one row of
`data.formats`; a package outside lwdctl registers its class under the entry point group
`lwdctl.readers` instead. `open_source` then reads any number of files of that format, and
`lwdctl ingest FORMAT PATH...` works. With the static method `recognize` of `Recognizes`,
`lwdctl ingest PATH...` and `lwdctl inspect PATH...` work as well.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lwdctl.artifacts.files import user_path
from lwdctl.configs import IngestConfig
from lwdctl.core.config import list_text
from lwdctl.core.errors import DataError, LwdctlError
from lwdctl.core.records import Episode, Finding, FloatArray, SourceSpec
from lwdctl.data.formats import READERS
from lwdctl.data.named_environments import with_requested
from lwdctl.data.source_spec import (
    check_sizes,
    with_finite_settings,
    with_renames,
    with_stored_reference,
)

if TYPE_CHECKING:
    from lwdctl.data.files.contents import Contents

EPISODE_OPTIONS = ("episode_ends", "lengths_key", "terminals_key")
"""Fields of `IngestConfig` that say where episodes end, for formats that do not say it."""
SEMANTICS_UNKNOWN = ("semantics", "warning")
"""Check and severity of the finding that nothing says what the actions of a file are."""


@dataclass(frozen=True)
class EpisodeOutline:
    """What is known of an episode before its steps are read.

    Attributes:
        source: Its name, unique in the file (`"demo_12"`, `"rows 0:1000"`).
        length: Number of steps.
        task: Task name, one of `spec.env.tasks`, or "".
        label: Behavior label, or "".
        split: `"train"`, `"validation"`, or "" when the source does not say.
        seed: Collection seed, or None when unknown.
    """

    source: str
    length: int
    task: str = ""
    label: str = ""
    split: str = ""
    seed: int | None = None


class FileReader(Protocol):
    """Random access to the episodes of one file (or directory) of a data format.

    A format's class is built as `Format(path, config)`, where `config` says what the user
    requests: `observation_keys`, `drop`, `action_key`, `filter_key`, `label`, `label_from`,
    `task_from`, `env`, `terminals`, `max_steps`, `max_bytes` and `actions` (absolute poses, where
    the reader can convert; `spec.action.semantics` says whether it did). An option that the
    format has no use for is an error (`check_unused`), never ignored.

    Nothing is guessed in silence: what a reader leaves out, adjusts, converts or doubts is a
    `Finding`. Limits of the action are the environment's or the file's; a reader that knows none
    leaves them empty.

    Construction validates the structure (keys, shapes, declared sizes, links) without loading
    steps, and raises `DataError` with file and key where it is not the format's; `read` loads and
    validates one episode. A reader trusts nothing in the file: `data.files.hdf5` opens HDF5 files
    safely, `data.checks` has the common checks. A reader may also have a method `succeeded(index)`
    that returns `read(index).success` without reading the steps.

    Attributes:
        path: The file, as error messages name it.
        spec: Observations, action, environment and tasks of the file. `spec.labels`,
            `spec.collection_seeds` and, where it is 0, `spec.env.max_steps` are filled in from the
            episodes by `open_source`; step limit and actions in unknown units before that from the
            environment that `config.env` names, where it is a known one.
        episodes: One outline per episode, in numeric order (`"demo_2"` before `"demo_10"`).
        findings: What was found so far; `read` may add to it.
    """

    path: Path
    spec: SourceSpec
    episodes: Sequence[EpisodeOutline]
    findings: Sequence[Finding]

    def read(self, index: int) -> Episode:
        """Load one episode: float32 arrays with one row per action; the outline has the rest.

        Raises:
            DataError: NaN or infinity (`NonFiniteError`), unequal lengths, or changed
                dimensions; the message names file, key and row.
        """

    def close(self) -> None:
        """Close the file."""


class Recognizes(Protocol):
    """What a data format's class has besides, so that its files are recognized by content."""

    generic: bool
    """Whether the format is tried after all others: a container without a layout of its own. May be
    left out where it is not."""
    array_uses: Mapping[str, str]
    """May be left out: what arrays are stored as whose names do not say it, for `inspect`
    (`{"data/state": "observation"}`)."""

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a file is recognized as this format (`"data/demo_0/obs"`), or ""."""


@dataclass(frozen=True)
class Recognized:
    """What a file was recognized as.

    Attributes:
        format: Name of a row of `data.formats.READERS`, or "" for none.
        reason: What in the file says so.
        contents: What the file holds.
    """

    format: str
    reason: str
    contents: Contents


def recognize(path: Path) -> Recognized:
    """Find the data format of a file by its content, never by its name alone.

    Raises:
        DataError: No such path, or it cannot be opened.
    """
    from lwdctl.data.files.contents import look_into

    contents = look_into(path)
    formats = [(name, READERS.load(name)) for name in READERS]
    formats.sort(key=lambda item: getattr(item[1], "generic", False))
    for name, reader in formats:
        reason = getattr(reader, "recognize", lambda _: "")(contents)
        if reason:
            return Recognized(name, reason, contents)
    return Recognized("", "", contents)


def recognize_all(paths: Sequence[Path]) -> list[Recognized]:
    """Find the data format that all files have, by their content.

    Raises:
        DataError: A path that cannot be opened, one of no known format, or files of different
            formats.
    """
    found: list[Recognized] = []
    for path in paths:
        item = recognize(path)
        if not item.format:
            from lwdctl.data.checks import artifact_hint  # with numpy, which `--help` does not need

            raise DataError(
                f"{path}: is of no data format that lwdctl knows ({', '.join(READERS)})",
                artifact_hint(path) or f"lwdctl inspect {shlex.quote(str(path))}",
            )
        found.append(item)
        if item.format != found[0].format:
            raise DataError(
                f"{path}: is a {item.format} file, but {paths[0]} is a {found[0].format} file",
                "ingest each data format into a store of its own",
            )
    return found


def why_not(path: Path) -> dict[str, str]:
    """Return why a file is not of each data format of its own whose kind of container it has."""
    reasons = {}
    for name in READERS:
        try:
            reader = READERS.load(name)
            if getattr(reader, "generic", False):
                continue  # such a format has no layout to compare with
            reader(path, IngestConfig()).close()
        except LwdctlError as error:
            reasons[name] = error.message.removeprefix(f"{path}: ")
        except (OSError, RuntimeError) as error:
            reasons[name] = str(error)
    return {name: text for name, text in reasons.items() if not _OTHER_CONTAINER.search(text)}


_OTHER_CONTAINER = re.compile(r"^is (not an? |neither |a file$)|^cannot be opened|no such file")


def ingest_command(paths: Sequence[Path], config: IngestConfig) -> str:
    """Return the command that ingests files with the settings of `config`, to paste."""
    texts = [f"./{path}" if str(path).startswith("-") else str(path) for path in paths]
    words = ["lwdctl", "ingest"]
    if config.format or texts[0] in READERS:
        words.append(config.format or recognize_all(paths)[0].format)
    words += texts
    for item in dataclasses.fields(config):
        value, option = getattr(config, item.name), f"--{item.name.replace('_', '-')}"
        if value == item.default or item.metadata["argument"]:
            continue
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        else:
            words += [option, list_text(value) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def open_source(
    data_format: str | None, paths: Sequence[Path], config: IngestConfig
) -> MergedReader:
    """Open one or several files of a data format as one source.

    Args:
        data_format: Name of a row of `data.formats.READERS`; None recognizes it by content.
        paths: The files, at least one.
        config: What the user requests.

    Raises:
        ConfigError: No such format.
        DataError: No path, the same path twice, a structure that is not the format's, or files
            that disagree in dimensions, action semantics or environment.
    """
    if not paths:
        raise DataError("no path given", "give at least one file")
    if config.drop and config.observation_keys:
        from lwdctl.data.checks import without_dropped  # with numpy, which `--help` does not need

        left = without_dropped(config.drop, config.observation_keys, "--observation-keys")
        config = dataclasses.replace(config, observation_keys=left, drop=())
    if data_format:
        return MergedReader(READERS.load(data_format), paths, config)
    found = recognize_all(paths)
    source = MergedReader(READERS.load(found[0].format), paths, config)
    source.recognized_by = tuple(item.reason for item in found)
    return source


def check_unused(config: IngestConfig, path: Path, what: str, *names: str) -> None:
    """Check that options which a format has no use for are not given.

    Args:
        config: What the user requests.
        path: The file.
        what: What the file is, for the message.
        *names: Fields of `config` (`"filter_key"`).

    Raises:
        DataError: One differs from its default.
    """
    for name in names:
        if getattr(config, name) != getattr(IngestConfig(), name):
            option = f"--{name.replace('_', '-')}"
            raise DataError(f"{path}: {option}: {what} has nothing that it applies to")


def check_no_subset(config: IngestConfig, path: Path, what: str) -> None:
    """Check that no subset is requested of a format that has none.

    Raises:
        DataError: One is; the message says `what` the file is.
    """
    if config.filter_key:
        raise DataError(f"{path}: {what} has no subset '{config.filter_key}'")


class MergedReader:
    """The episodes of one or several files of a format, as one source.

    The environment's settings are those of the first file; tasks and labels are joined in
    order of appearance. With more than one file, episode names begin with the file's name.
    Usable as a context manager; has the attributes and methods of `FileReader`, with `paths`
    and `weights`. `open_source` describes arguments and errors.

    Attributes:
        readers: One per file.
        recognized_by: Per file, what in it says that it is of the format; "" where the caller
            named the format.
        weights: Per episode, `config.weight` of its file; 1 where none is given.
    """

    def __init__(
        self,
        make: Callable[[Path, IngestConfig], FileReader],
        paths: Sequence[Path],
        config: IngestConfig,
    ) -> None:
        self.paths = tuple(paths)
        self.recognized_by = ("",) * len(paths)
        _check_distinct(paths)
        weights = _weights(config, len(paths))
        with ExitStack() as opened:
            self.readers: list[FileReader] = []
            for path in paths:
                reader = _made(make, path, config)
                opened.callback(reader.close)
                self.readers.append(reader)
            specs = [
                with_requested(reader.spec, config, str(reader.path)) for reader in self.readers
            ]
            self._limits = [spec.env.max_steps for spec in specs]
            self._semantics_known = specs[0].action != self.readers[0].spec.action
            spec, self._names = with_renames(_merge_specs(self.readers, specs), config.rename)
            check_sizes(spec, paths[0])
            spec, unstored = with_stored_reference(spec, paths[0])
            self.spec, self._found = with_finite_settings(spec, paths[0])
            self._found += unstored
            self._closing = opened.pop_all()
        self.episodes = [
            dataclasses.replace(outline, source=f"{prefix}{outline.source}")
            for prefix, reader in zip(_prefixes(paths), self.readers, strict=True)
            for outline in reader.episodes
        ]
        counts = [len(reader.episodes) for reader in self.readers]
        self._ends = list(accumulate(counts))
        self.weights = [
            weight for weight, count in zip(weights, counts, strict=True) for _ in range(count)
        ]
        env = dataclasses.replace(self.spec.env, max_steps=self._longest(()))
        self._read_spec = self.spec = dataclasses.replace(self.spec, env=env)

    def step_limit(self, left_out: Collection[int]) -> int:
        """Return the step limit where some of the episodes, by index, are not stored.

        It is that of `spec` if the caller has replaced it: an environment may have a limit of its
        own.
        """
        return self._longest(left_out) if self.spec is self._read_spec else self.spec.env.max_steps

    def _longest(self, left_out: Collection[int]) -> int:
        """Return the largest limit; in a file that names none it is the length of an episode."""
        return max(
            self._limits[bisect_right(self._ends, index)] or item.length
            for index, item in enumerate(self.episodes)
            if index not in left_out
        )

    @property
    def findings(self) -> list[Finding]:
        """What the readers of all files have found so far."""
        found = [item for reader in self.readers for item in getattr(reader, "findings", ())]
        if self._semantics_known:  # by the environment that `--env` names, not by the file
            found = [item for item in found if (item.check, item.severity) != SEMANTICS_UNKNOWN]
        return [*found, *self._found]

    def succeeded(self, index: int) -> bool | None:
        """Return whether an episode solved its task, None where the source does not say.

        Raises:
            DataError: Bad values, where the format has to read the whole episode for that.
        """
        reader, place = self._place(index)
        with _damage_as_data_error(reader.path):
            known: Callable[[int], bool | None] | None = getattr(reader, "succeeded", None)
            return known(place) if known else reader.read(place).success

    def _place(self, index: int) -> tuple[FileReader, int]:
        """Return the reader of an episode, and which of its episodes it is."""
        which = bisect_right(self._ends, index)
        return self.readers[which], index - (self._ends[which - 1] if which else 0)

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: Bad values; the message names file, key and row.
        """
        reader, place = self._place(index)
        with _damage_as_data_error(reader.path):
            episode = reader.read(place)
        outline = self.episodes[index]
        final = episode.final_observation
        return dataclasses.replace(
            episode,
            observations=self._stored(episode.observations),
            final_observation=None if final is None else self._stored(final),
            source=outline.source,
            task=outline.task,
            label=outline.label,
            split=outline.split,
            seed=outline.seed,
            weight=self.weights[index],
        )

    def _stored(self, arrays: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        return {self._names.get(name, name): array for name, array in arrays.items()}

    def close(self) -> None:
        """Close all files."""
        self._closing.close()

    def __enter__(self) -> MergedReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _damage_as_data_error(path: Path) -> Iterator[None]:
    """Raise a library's error about damaged bytes as a `DataError` that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: is damaged ({error})") from error


def _made(
    make: Callable[[Path, IngestConfig], FileReader], path: Path, config: IngestConfig
) -> FileReader:
    """Open a file; rows that its structure needs are those of no episode that can be left out."""
    from lwdctl.data.checks import NonFiniteError  # with numpy, which `--help` does not need

    try:
        with _damage_as_data_error(path):
            return make(path, config)
    except NonFiniteError as error:
        raise DataError(error.message) from error


def _weights(config: IngestConfig, count: int) -> tuple[float, ...]:
    """Return one weight per file.

    Raises:
        DataError: There are more or fewer than files, one is infinite, or all are 0.
    """
    given = config.weight or (1.0,) * count
    if len(given) != count:
        options = " ".join(["--weight 1"] * count)
        raise DataError(
            f"--weight: {len(given)} numbers for {count} paths, expected one number per path",
            f"one per path, in the order of the paths: {options}",
        )
    if not all(map(math.isfinite, given)) or not any(given):
        shown = ", ".join(f"{weight:g}" for weight in given)
        raise DataError(
            f"--weight: {shown}: expected finite numbers, at least one of them above 0",
            "leave --weight out to visit all files alike",
        )
    return given


def _check_distinct(paths: Sequence[Path]) -> None:
    seen: set[str] = set()
    for path in paths:
        try:
            place = os.path.realpath(path)  # `resolve` fails where links lead in circles
        except ValueError:  # it holds a NUL; its reader says that there is no such path
            continue
        if place in seen:
            raise DataError(f"{path}: is given twice", "give every file once")
        seen.add(place)


def _prefixes(paths: Sequence[Path]) -> list[str]:
    """Return a prefix per file that makes episode names unique: none, the stem, or the path."""
    if len(paths) == 1:
        return [""]
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    return [f"{name}:" for name in names]


def _merge_specs(readers: Sequence[FileReader], specs: Sequence[SourceSpec]) -> SourceSpec:
    first = readers[0]
    for other in readers[1:]:
        _check_agreement(first, other)
    tasks = tuple(dict.fromkeys(task for reader in readers for task in reader.spec.env.tasks))
    labels = [label for reader in readers for label in sorted({e.label for e in reader.episodes})]
    seeds = [e.seed for reader in readers for e in reader.episodes if e.seed is not None]
    return dataclasses.replace(
        specs[0],
        env=dataclasses.replace(specs[0].env, tasks=tasks),
        labels=tuple(dict.fromkeys(filter(None, labels))),
        collection_seeds=(min(seeds), max(seeds)) if seeds else None,
    )


def _check_agreement(first: FileReader, other: FileReader) -> None:
    own, theirs = first.spec, other.spec
    pairs = (
        ("observations", _describe(own), _describe(theirs)),
        ("action", own.action, theirs.action),
        ("environment", own.env.adapter, theirs.env.adapter),
        ("environment settings", _settings(own), _settings(theirs)),
    )
    for noun, expected, found in pairs:
        if expected != found:
            shown = noun in ("observations", "environment")
            detail = f": {found}, expected {expected}" if shown else ""
            hint = "ingest each file into a store of its own"
            names = [item.name for item in own.observations]
            if noun == "observations" and set(own.observations) == set(theirs.observations):
                hint = (
                    f"give all files one order: --observation-keys {shlex.quote(list_text(names))}"
                )
            raise DataError(f"{other.path}: {noun} differ from those of {first.path}{detail}", hint)


# LIBERO describes the tasks of one suite in files of their own.
_ENVIRONMENT_NAMES = ("env_name", "problem_name", "bddl_file")


def _settings(spec: SourceSpec) -> dict[str, object]:
    """Return the settings without names of the environment, which the tasks already say."""
    settings = dict(spec.env.settings)
    arguments = settings.get("env_args")
    if isinstance(arguments, dict):
        kept = {key: value for key, value in arguments.items() if key not in _ENVIRONMENT_NAMES}
        if isinstance(kept.get("env_kwargs"), dict):
            kwargs = kept["env_kwargs"].items()
            kept["env_kwargs"] = {key: value for key, value in kwargs if key != "bddl_file_name"}
        settings["env_args"] = kept
    return settings


def _describe(spec: SourceSpec) -> str:
    return ", ".join(f"{item.name} ({item.size})" for item in spec.observations)


def source_settings(
    paths: Sequence[str | Path], settings: Mapping[str, object]
) -> dict[str, object]:
    """Return settings with `paths`, the first of which may name the data format instead."""
    words = [str(path) for path in paths]
    named = words[0] if words and words[0] in READERS else None
    return {"format": named, "paths": words[1:] if named else words, **settings}


def paths_of(texts: Sequence[str]) -> tuple[Path, ...]:
    """Return command-line arguments as paths, with `~` expanded."""
    return tuple(map(user_path, texts))
