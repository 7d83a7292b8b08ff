"""A LeRobot dataset's columns that are read, and its data files.

Rows are read in any order, with bounded memory.

Parquet can only be decoded from the beginning of a row group. One that holds several episodes is
decoded once, into a temporary file (in `TMPDIR`), from which rows are read as they are needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import RESERVED_KEYS, ActionSpec, EnvSpec, Finding, FloatArray
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.checks import note_rounding, without_dropped
from lwdctl.data.files.array_kinds import why_not_observed
from lwdctl.data.files.contents import ArrayEntry
from lwdctl.data.files.parquet_files import ParquetTable, is_whole, rank_of
from lwdctl.data.named_environments import describe_requested
from lwdctl.data.readers.lerobot_meta import Feature, Folder, Info
from lwdctl.data.readers.lerobot_rows import (
    DONE,
    EPISODE,
    FRAME,
    REWARD,
    SUCCESS,
    TASK,
    TIME,
    Recording,
    RowIndex,
    Run,
)

NUMBER_BYTES = 4
MAX_OPEN = 32
"""Data files that are open at the same time."""


class DataFiles:
    """The data files of a dataset.

    Args:
        folder: The dataset.
        names: Paths of the files in it.
        findings: Gets a warning, once per column, where float32 rounds away how values change.

    Attributes:
        types: Type of every column of the first file.

    Raises:
        DataError: The first file is damaged, or leads out of the folder.
    """

    def __init__(self, folder: Folder, names: Sequence[str], findings: list[Finding]) -> None:
        self._folder, self._names, self._findings = folder, names, findings
        self._open: dict[int, ParquetTable] = {}
        self._group_rows: dict[int, tuple[int, ...]] = {}
        self._sizes: dict[str, int] = {}
        self._runs: dict[tuple[int, int], list[Run]] = {}
        self._spool: IO[bytes] | None = None
        self._offsets: dict[tuple[int, int], int] = {}
        self.types = dict(self._table(0).types)

    def name(self, file: int) -> str:
        """Return the path of a file in the dataset."""
        return self._names[file]

    def measure(self, keys: Iterable[str]) -> dict[str, int]:
        """Return the number of components of columns, each from its first row that is not null.

        Raises:
            DataError: A column is missing, holds no numbers, or is ragged.
        """
        return {key: self._measure(key) for key in keys}

    def _measure(self, key: str) -> int:
        for file in range(len(self._names)):
            table = self._table(file)
            self._check(table, [key])
            for group in range(len(table.group_rows)):
                for batch in table.batches(group, [key], rows=1):
                    size = int(batch.numbers(key).shape[1])
                    if size:
                        return size
        raise DataError(f"{self._folder.root}: {key}: holds no numbers in any row")

    def index(self, sizes: Mapping[str, int], extra: Sequence[str]) -> RowIndex:
        """Find out which rows belong to which episode.

        Args:
            sizes: Number of components of the columns that will be read.
            extra: Columns whose values at the first rows of episodes are wanted.

        Raises:
            DataError: A column is missing in a file or holds something else there, the files
                declare more bytes than allowed, or damaged bytes.
        """
        index = RowIndex()
        for file in range(len(self._names)):
            table = self._table(file)
            self._check(table, sizes)
            missing = [name for name in extra if name not in table.types]
            if missing:
                raise DataError(f"{table.path}: {missing[0]}: is missing; other files have it")
            size = table.declared_bytes([*sizes, *index.wanted(table, extra)])
            self._folder.count(size, f"{table.path}: declares {size:,} bytes")
            index.scan(table, file, extra)
        return index

    def prepare(self, sizes: Mapping[str, int], recordings: Iterable[Recording]) -> None:
        """Say what `rows` will be asked for.

        Args:
            sizes: Columns and their numbers of components.
            recordings: All recordings.
        """
        self._sizes = dict(sizes)
        self._runs = {}
        for run in (run for item in recordings for run in item.runs):
            self._runs.setdefault((run.file, run.group), []).append(run)

    def place(self, run: Run) -> tuple[Path, int]:
        """Return the file of a run and the row of its first step in it."""
        path = self._folder.root / self._names[run.file]
        return path, sum(self._group_rows[run.file][: run.group]) + run.row

    def rows(self, run: Run) -> dict[str, FloatArray]:
        """Return the columns of a run by name, each (time, size); null is NaN.

        Raises:
            DataError: Damaged bytes, or rows of another size.
        """
        if len(self._runs[run.file, run.group]) > 1:
            values = self._spooled_rows(run)
        else:
            stop = run.row + run.length
            values = np.concatenate(list(self._decode(run.file, run.group)))[run.row : stop]
        ends = np.cumsum(list(self._sizes.values())).tolist()
        return {
            key: values[:, end - size : end]
            for (key, size), end in zip(self._sizes.items(), ends, strict=True)
        }

    def close(self) -> None:
        """Close the files and remove the temporary one."""
        for table in self._open.values():
            table.close()
        if self._spool is not None:
            self._spool.close()

    def _table(self, file: int) -> ParquetTable:
        if file not in self._open:
            if len(self._open) == MAX_OPEN:
                self._open.pop(next(iter(self._open))).close()
            table = ParquetTable(self._folder.file(self._names[file]))
            self._open[file] = table
            self._group_rows[file] = table.group_rows
        return self._open[file]

    def _check(self, table: ParquetTable, keys: Iterable[str]) -> None:
        for key in keys:
            if key not in table.types:
                raise DataError(f"{table.path}: {key}: is missing; other files have it")
            if rank_of(table.types[key]) is None:
                raise DataError(f"{table.path}: {key}: holds {table.types[key]}, not numbers")

    def _spooled_rows(self, run: Run) -> FloatArray:
        """Return rows (time, size) from the temporary file, after filling it."""
        width = sum(self._sizes.values())
        if self._spool is None:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        place = run.file, run.group
        if place not in self._offsets:
            start = self._spool.seek(0, 2)
            for batch in self._decode(*place):
                self._spool.write(batch.tobytes())
            self._offsets[place] = start
        self._spool.seek(self._offsets[place] + run.row * width * NUMBER_BYTES)
        content = self._spool.read(run.length * width * NUMBER_BYTES)
        return np.frombuffer(content, np.float32).reshape(run.length, width)

    def _decode(self, file: int, group: int) -> Iterator[FloatArray]:
        """Yield the rows (time, size) of a row group, a batch at a time."""
        first = 0
        for batch in self._table(file).batches(group, list(self._sizes)):
            columns = {key: batch.numbers(key, size) for key, size in self._sizes.items()}
            with np.errstate(over="ignore", invalid="ignore"):  # found where rows are read
                runs = [(run.row - first, run) for run in self._runs[file, group]]
                self._note_rounding(columns, runs)
                parts = list(columns.values())
                rows = np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe")
            yield rows
            first += batch.count

    def _note_rounding(
        self, columns: Mapping[str, npt.NDArray[Any]], runs: Sequence[tuple[int, Run]]
    ) -> None:
        """Look at one run after the other: values jump from an episode to the next.

        Args:
            columns: A batch of rows (time, size), as recorded.
            runs: Each run of the row group, after its first row, counted from that of the batch.
        """
        for key, values in columns.items():
            if np.can_cast(values.dtype, np.float32):
                continue
            for start, run in runs:
                rows = values[max(0, start) : max(0, start + run.length)]
                place = f"{self._folder.root}: {key}"
                note_rounding(rows, rows.astype(np.float32), place, self._findings)


ACTION_KEYS = ("action", "actions")
BOOKKEEPING = (EPISODE, FRAME, TASK, TIME, "index")
MAX_RANK = 2
_VISUAL = ("video", "image")
_NOT_DEFAULT = "not in the default choice"


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset's data files.

    Attributes:
        path: The dataset, for error messages.
        types: Type of every column of the first data file.
        info: What the metadata say of them.
        config: What the user requests.
    """

    path: Path
    types: Mapping[str, Any]
    info: Info
    config: IngestConfig

    def feature(self, name: str) -> Feature:
        """Return what the metadata says of a column; empty where it says nothing."""
        return self.info.features.get(name, Feature("", (), ()))

    def vectors(self) -> list[str]:
        """Return the columns of numbers or of at most two-dimensional arrays."""
        return [
            name
            for name, kind in self.types.items()
            if (rank := rank_of(kind)) is not None
            and rank <= MAX_RANK
            and name not in BOOKKEEPING
            and self.feature(name).dtype not in _VISUAL
        ]

    def action_key(self) -> str:
        """Return the column of the actions.

        Raises:
            DataError: There is none, or it does not hold vectors of real numbers.
        """
        vectors, requested = self.vectors(), self.config.action_key
        key = requested or next((name for name in ACTION_KEYS if name in self.types), "")
        if key not in vectors:
            hint = f"--action-key NAME chooses one of: {', '.join(vectors)}" if vectors else ""
            if requested:
                hint = did_you_mean(key, vectors)
            held = f"holds {self.types[key]}, no vectors" if key in self.types else "is missing"
            raise DataError(f"{self.path}: {key or ACTION_KEYS[0]}: {held}", hint)
        if is_whole(self.types[key]):
            raise DataError(
                f"{self.path}: {key}: holds {self.types[key]}: discrete actions are not regressed",
                "--action-key NAME chooses another column",
            )
        return key

    def default_keys(self, action: str) -> tuple[str, ...]:
        """Return the observation keys that are stored by default.

        They are the vectors whose name begins with `observation`; where there are none, all that
        are neither an action nor the outcome of a step.

        Raises:
            DataError: One to drop is not among them.
        """
        others = [name for name in self.vectors() if name != action and name not in RESERVED_KEYS]
        named = [name for name in others if name.startswith("observation")]
        default = [name for name in named or others if not self._why_not(name)]
        return without_dropped(self.config.drop, default, f"{self.path}: features")

    def _why_not(self, name: str) -> str:
        """Return why a vector is not in the default choice, "" if it can be."""
        if name.startswith(("next.", "action")):
            return "not observed at its step"
        return why_not_observed(name, ArrayEntry((1, *self.feature(name).shape), "float32"))

    def left_out(self, used: Sequence[str]) -> Iterator[Finding]:
        """Yield what is not read and why.

        Args:
            used: Columns that are read.
        """
        reasons: dict[str, list[str]] = {}
        for name in dict.fromkeys([*self.types, *self.info.features]):
            if name not in (*used, *BOOKKEEPING, REWARD, DONE, SUCCESS):
                reasons.setdefault(self._reason(name), []).append(name)
        if reasons:
            text = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
            yield Finding(
                "left-out", "note", f"not read: {text}", str(self.path),
                "--observation-keys NAME,... chooses" if _NOT_DEFAULT in reasons else "",
                {"reasons": reasons},
            )  # fmt: skip

    def _reason(self, name: str) -> str:
        dtype = self.feature(name).dtype
        if dtype in _VISUAL:
            return f"{dtype}s are not read"
        if name not in self.types:
            return "no such column in the data files"
        if name not in self.vectors():
            return f"holds {self.types[name]}, not vectors"
        if name in self.config.drop:
            return "--drop"
        return self._why_not(name) or _NOT_DEFAULT

    def describe_action(self, key: str, size: int) -> tuple[ActionSpec, EnvSpec, list[Finding]]:
        """Describe action and environment as the user requests them.

        Where neither the user nor the environment says what the actions are, they are targets,
        unless the names of their components say motions. Steps per second are those of the dataset.

        Raises:
            DataError: The environment takes actions of another size, or the actions cannot be
                converted.
        """
        where, names = f"{self.path}: {key}", self.feature(key).names[:size]
        action, env, found = describe_requested(self.config, size, where)
        motions = [name for name in names if "delta" in name.lower()]
        if found and motions:
            message = f"components are called {', '.join(motions)}: read as motions"
            hint = "--actions recorded-absolute declares targets"
            action = replace(action, semantics="delta")
            found = [Finding("semantics", "note", message, where, hint)]
        gripper = tuple(at for at, name in enumerate(names) if "gripper" in name.lower())
        rate = self.info.fps or action.control_rate
        return replace(action, control_rate=rate, gripper=gripper or action.gripper), env, found
