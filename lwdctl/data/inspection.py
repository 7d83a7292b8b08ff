"""What is in files of demonstrations, found before anything is made of them.

`inspect_file` recognizes the data format, lists the arrays, reads every episode once and gathers
what `ingest` would take, what it would leave out and why, and everything that is doubtful. A file
that cannot be ingested is described as far as it can be read. `inspect_files` adds whether
several files fit together.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError, LwdctlError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.core.records import Episode, Finding, SourceSpec
from lwdctl.data.checks import NonFiniteError, artifact_hint
from lwdctl.data.files.contents import Contents, file_type, look_into_members
from lwdctl.data.files.contents_summary import FINAL, ArrayFamily, array_families, recorded_values
from lwdctl.data.formats import READERS
from lwdctl.data.inspection_text import describe
from lwdctl.data.quality.checks import DataChecks, check_conversion, read_finite, with_checks
from lwdctl.data.reader import (
    MergedReader,
    Recognized,
    ingest_command,
    open_source,
    recognize,
    why_not,
)

MOST_FILES = 20
"""Of a directory, to be listed."""


@dataclass(frozen=True)
class Inspection:
    """What is in one file, and what `ingest` would make of it.

    Attributes:
        path: The file or directory.
        bytes: Its size, 0 where it does not exist.
        container: `"hdf5"`, `"zarr"`, `"npz"`, `"directory"`, `"file"`, or "" where it cannot be
            opened.
        format: Name of the data format that it is read as, or "".
        recognized_by: What in the file says so; "" where the caller named another format.
        not_recognized: Of a file without a data format, why the nearest formats do not fit.
        files: Of a directory, the first files in it.
        arrays: The arrays; those that repeat in every episode as one.
        arrays_left_out: How many more arrays and groups there are than were listed.
        recorded: Versions, environment and other values that the file records about itself.
        spec: Observations, action and environment as `ingest` would store them, or None.
        episodes: Number of episodes.
        steps: Number of their steps.
        splits: Number of episodes by split (`"train"`, `"validation"`, "").
        stored: What else is stored of all episodes: `"rewards"`, `"final observation"`,
            `"initial state"`, `"simulator model"`.
        statistics: Lengths, returns, labels, tasks and ranges, as `DataChecks.statistics` gives
            them; {} where no episode could be read.
        findings: What is left out, adjusted or doubtful, worst first.
        error: Why `ingest` would refuse the file, or "".
        hint: What to do about it, or "".
        command: The command that ingests the file, or "" where none would.
    """

    path: str
    bytes: int = 0
    container: str = ""
    format: str = ""
    recognized_by: str = ""
    not_recognized: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    arrays: tuple[ArrayFamily, ...] = ()
    arrays_left_out: int = 0
    recorded: Mapping[str, Any] = field(default_factory=dict)
    spec: SourceSpec | None = None
    episodes: int = 0
    steps: int = 0
    splits: Mapping[str, int] = field(default_factory=dict)
    stored: tuple[str, ...] = ()
    statistics: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    error: str = ""
    hint: str = ""
    command: str = ""

    @property
    def can_be_ingested(self) -> bool:
        """Whether `ingest` would take the file with these settings."""
        return bool(self.command)

    @property
    def errors(self) -> list[Finding]:
        """Why `ingest` would not take it: the reader's refusal, else findings that stop it."""
        if self.error:
            return [Finding("refused", "error", self.error, hint=self.hint)]
        return [item for item in self.findings if item.severity == "error"]

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values, one per attribute.

        `spec` is given as `observations`, `action` and `environment`; `can_be_ingested` is added.
        """
        values = dataclasses.asdict(self)
        spec = values.pop("spec") or {}
        return {
            **values,
            "observations": spec.get("observations", ()),
            "action": spec.get("action"),
            "environment": spec.get("env"),
            "can_be_ingested": self.can_be_ingested,
        }


@dataclass(frozen=True)
class Inspections:
    """What is in several files.

    Attributes:
        files: The files, in the order in which they were given.
        disagreement: Of several files, why they cannot be ingested into one store, or "".
        command: The command that ingests all of them into one store, or "".
    """

    files: tuple[Inspection, ...]
    disagreement: str = ""
    command: str = ""

    @property
    def can_be_ingested(self) -> bool:
        """Whether `ingest` would take all files with these settings."""
        return bool(self.command)

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values: `files`, `agree`, `disagreement`, `command`."""
        return {
            "files": [item.to_mapping() for item in self.files],
            "agree": not self.disagreement if len(self.files) > 1 else None,
            "disagreement": self.disagreement,
            "command": self.command,
        }

    def __str__(self) -> str:
        """Return the text that `lwdctl inspect` prints."""
        return describe(self)


Complete = Callable[[SourceSpec], SourceSpec]
"""Adds to a description what the environment says; may raise `LwdctlError`."""


def inspect_files(
    paths: Sequence[Path],
    config: IngestConfig,
    progress: Progress | None = None,
    complete: Complete = lambda spec: spec,
) -> Inspections:
    """Describe files one after the other, then whether one store can hold them all.

    Args:
        paths: The files, at least one.
        config: How `ingest` would be asked to read them, with `format` or without.
        progress: Where to report.
        complete: What adds to a description what the environment says.

    Raises:
        DataError: No path is given.
    """
    if not paths:
        raise DataError("no path given", "lwdctl inspect PATH")
    files = tuple(inspect_file(path, config, progress, complete) for path in paths)
    if len(files) == 1:
        return Inspections(files, command=files[0].command)
    refused = [item.path for item in files if not item.can_be_ingested]
    try:
        open_source(config.format, paths, config).close()
    except LwdctlError as error:
        return Inspections(files, plain_text(error.message))
    return Inspections(files, command="" if refused else ingest_command(paths, config))


def inspect_file(
    path: Path,
    config: IngestConfig,
    progress: Progress | None = None,
    complete: Complete = lambda spec: spec,
) -> Inspection:
    """Describe one file or directory; what cannot be read becomes part of the description.

    Args:
        path: The file.
        config: How `ingest` would be asked to read it, with `format` or without.
        progress: Where to report.
        complete: What adds to a description what the environment says.
    """
    found = Inspection(str(path), _size(path))
    try:
        recognized = recognize(path)
    except LwdctlError as error:
        if config.format is None:  # a reader may know more than files (the name of a remote set)
            return _refused(found, error)
        recognized = Recognized("", "", Contents(path, "file"))
    contents = look_into_members(recognized.contents)
    name = config.format or recognized.format
    found = dataclasses.replace(
        found,
        container=contents.container,
        format=name,
        recognized_by=recognized.reason if name == recognized.format else "",
        files=contents.files[:MOST_FILES],
        recorded=recorded_values(contents),
    )
    try:
        if not name:
            raise _no_format(path, contents)
        with open_source(name, (path,), config) as source:
            # Merging takes the longest episode for the limit where the file knows none.
            limit = source.readers[0].spec.env.max_steps
            env = dataclasses.replace(source.spec.env, max_steps=limit)
            spec = complete(dataclasses.replace(source.spec, env=env))
            env = dataclasses.replace(spec.env, max_steps=config.max_steps or spec.env.max_steps)
            source.spec = dataclasses.replace(spec, env=env)
            found = _survey(found, source, config, progress or SilentProgress())
    except LwdctlError as error:
        found = _refused(found, error)
    stored = _stored_keys(found)
    families, left_out = array_families(contents, stored, config.action_key)
    found = dataclasses.replace(found, arrays=families, arrays_left_out=left_out)
    if not found.spec and (not name or getattr(READERS.load(name), "generic", False)):
        found = dataclasses.replace(found, not_recognized=why_not(path))
    if not found.errors:
        found = dataclasses.replace(found, command=ingest_command((path,), config))
    return cast(Inspection, _plain(found))


def _refused(found: Inspection, error: LwdctlError) -> Inspection:
    return dataclasses.replace(found, error=error.message, hint=error.hint)


def _no_format(path: Path, contents: Contents) -> DataError:
    """Return the error about a file of no data format, with what it is instead."""
    known = f"lwdctl reads {', '.join(READERS)}"
    if contents.container == "file":
        kind = file_type(path)
        message = f"{path}: is {kind.name}, of no data format that is known"
        return DataError(message, kind.hint or known)
    data = [
        name for name in contents.files
        if any(key.startswith(f"{name}/") for key in contents.arrays)
    ]  # fmt: skip
    hint = f"lwdctl inspect {shlex.quote(str(path / data[0]))}" if data else ""
    hint = hint or artifact_hint(path) or known
    return DataError(f"{path}: is of no data format that is known", hint)


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a directory."""
    try:
        if path.is_dir():
            return sum(item.lstat().st_size for item in path.rglob("*") if item.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def _stored_keys(found: Inspection) -> dict[str, str]:
    """Return what the store holds, by the name that arrays of the file may have."""
    if found.spec is None:
        return {}
    uses = dict(getattr(READERS.load(found.format), "array_uses", {}))
    uses |= {
        item.name: "observation" if item.network else "observation, no network input"
        for item in found.spec.observations
    }
    layout = found.spec.env.settings.get("initial_state", ())
    states = ["states", "initial_state", *(name for name, _ in layout)]
    for names, use, kept in (
        (("rewards", "reward"), "reward", "rewards"),
        (states, "initial state", "initial state"),
    ):
        if kept in found.stored:
            uses |= dict.fromkeys(names, use)
    if "final observation" in found.stored:
        uses[FINAL] = FINAL
    return uses


def _survey(
    found: Inspection, source: MergedReader, config: IngestConfig, progress: Progress
) -> Inspection:
    """Read every episode once and add what they say to a description."""
    check_conversion(source.spec.action, config)
    checks = DataChecks(source.spec, config, source.findings)
    failures = list[tuple[str, DataError]]()
    outlines, read = source.episodes, 0
    stored: Counter[str] = Counter()
    with progress.task(f"inspect {Path(found.path).name}", len(outlines), "episode") as task:
        for index, outline in enumerate(outlines):
            try:
                episode = read_finite(source, index)
            except DataError as error:
                failures.append((outline.source, error))
            else:
                checks.add(episode)
                stored.update(_stored_beside(episode))
                read += 1
            task.advance()
    read_and_failed = [*source.findings, *_failure_findings(failures, len(outlines))]
    return dataclasses.replace(
        found,
        spec=dataclasses.replace(source.spec, action=checks.action()),
        episodes=len(outlines),
        steps=sum(item.length for item in outlines),
        splits=dict(Counter(item.split for item in outlines)),
        stored=tuple(what for what, count in stored.items() if count == read),
        statistics=checks.statistics(),
        findings=tuple(with_checks(read_and_failed, checks)),
    )


def _stored_beside(episode: Episode) -> Iterator[str]:
    """Yield what an episode has beside observations and actions."""
    if episode.rewards is not None:
        yield "rewards"
    if episode.final_observation is not None:
        yield "final observation"
    if episode.initial_state is not None:
        yield "initial state"
    if episode.model:
        yield "simulator model"


def _failure_findings(failures: Sequence[tuple[str, DataError]], episodes: int) -> list[Finding]:
    """Return a finding for episodes with NaN or infinity, and one for others that do not open."""
    found = []
    for check, what, is_nan in (
        ("not-finite", "hold missing, NaN or infinite values", True),
        ("unreadable", "cannot be read", False),
    ):
        those = [item for item in failures if isinstance(item[1], NonFiniteError) == is_nan]
        if those:
            _, error = those[0]
            names = [name for name, _ in those]
            message = f"{len(those):,} of {episodes:,} episodes {what}; the first: {error.message}"
            values = {"episodes": len(those), "first": names[:8]}
            found.append(Finding(check, "error", message, hint=error.hint, values=values))
    return found


def _plain(value: Any) -> Any:
    """Return a record in which every text, also in what it holds, is plain."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_plain(item) for item in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(
            value, **{item.name: _plain(getattr(value, item.name)) for item in fields}
        )
    return value
