"""Checks that every reader of somebody else's data makes; errors name file, key and row."""

from __future__ import annotations

import difflib
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.references import MAKERS
from lwdctl.core.errors import DataError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.records import RESERVED_KEYS, Finding, FloatArray, ObservationSpec, Severity
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.formats import READERS

NUMBER_KINDS = "fiub"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w-]*(\.\d[\w-]*)*")
_ARTIFACT = re.compile(
    rf"((?P<root>.*)/)?(?P<reference>({'|'.join(MAKERS)})/[A-Za-z0-9][\w+-]*(\.\d[\w+-]*)*)"
    r"(?P<version>:v\d+|:latest)?(/v(?P<directory>\d{4,}))?"
)
_MOST_DIGITS = 1000  # of a number at the end of a name; Python reads 4,300
MOST_NEIGHBORS = 2000
"""Files beside a missing path whose names are compared with it."""


SMALLEST_STEP = 1e-6
"""Smaller changes per step are taken for the noise of a simulator or sensor at rest."""


class ReportsFindings:
    """Base of the readers: what they find in a file is added to `findings`.

    Attributes:
        path: The file, as messages name it.
        findings: What was found so far.
    """

    path: Path
    findings: list[Finding]

    def _report(
        self,
        check: str,
        key: str,
        message: str,
        severity: Severity = "note",
        hint: str = "",
        /,
        **values: Any,
    ) -> None:
        """Add a finding about the array `key`, or about the whole file where that is ""."""
        where = f"{self.path}: {key}" if key else str(self.path)
        self.findings.append(Finding(check, severity, message, where, hint, values))


class NonFiniteError(DataError):
    """An episode holds NaN or infinity, or rows that were never written."""

    def __init__(self, message: str, hint: str = "--on-nan drop leaves such episodes out") -> None:
        super().__init__(message, hint)


def finite_rows(
    values: npt.NDArray[Any],
    where: str | Callable[[], str],
    first_row: int = 0,
    findings: list[Finding] | None = None,
) -> FloatArray:
    """Return `values` (time, size) as float32 after checking that every value is finite.

    Args:
        values: Numbers, one row per time step.
        where: File and key, or what returns them, for the error message.
        first_row: Row of the source at which `values` begins.
        findings: Gets a warning, once per key, where float32 rounds away how the values change.

    Raises:
        NonFiniteError: A value is NaN, infinite, or too large for float32.
    """
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(rows)
    if not finite.all():
        bad = ~finite
        row = int(np.argwhere(bad)[0][0])
        worst = values[row][bad[row]].flat[0] if rows.ndim > 1 else values[row]
        place = where if isinstance(where, str) else where()
        raise NonFiniteError(f"{place}, row {first_row + row}: value is {worst}")
    if findings is not None and not np.can_cast(values.dtype, np.float32):
        note_rounding(values, rows, where, findings)
    return rows


def note_rounding(
    values: npt.NDArray[Any],
    rows: FloatArray,
    where: str | Callable[[], str],
    findings: list[Finding],
) -> None:
    """Add a warning where components change by less per step than float32 can tell apart.

    Args:
        values: Numbers (time, size) of one episode, as recorded.
        rows: The same as float32.
        where: File and key, or what returns them.
        findings: Gets the warning, once per key.
    """
    if len(rows) < 2 or not rows.size:
        return
    rows = rows.reshape(len(rows), -1)
    largest = np.abs(rows).max(axis=0)
    spacing = np.spacing(largest).astype(np.float64)
    if 2 * spacing.max() < SMALLEST_STEP:
        return
    numbers = values.reshape(len(rows), -1)
    steps = np.abs(np.diff(numbers.astype(np.float64), axis=0))
    usual = steps.sum(axis=0) / np.maximum(np.count_nonzero(steps, axis=0), 1)
    doubtful = np.flatnonzero((usual >= SMALLEST_STEP) & (usual < 2 * spacing))
    distinct = {
        index: (len(np.unique(numbers[:, index])), len(np.unique(rows[:, index])))
        for index in doubtful.tolist()
    }
    lost = {index: counts for index, counts in distinct.items() if counts[1] < counts[0]}
    if not lost:
        return
    place = where if isinstance(where, str) else where()
    group, _, name = place.rpartition("/")  # episodes are groups that differ in their number
    key = f"{re.sub('[0-9]+', '', group)}/{name}"
    if any(item.check == "rounded" and item.values["key"] == key for item in findings):
        return
    worst = min(lost, key=lambda index: lost[index][1] / lost[index][0])
    before, after = lost[worst]
    message = (
        f"float32, in which steps are stored, is too coarse for {len(lost)} of {rows.shape[1]}"
        f" components: component {worst} reaches {largest[worst]:.7g}, where float32 has steps of"
        f" {spacing[worst]:.3g}, but changes by {usual[worst]:.3g} per row; of {before} distinct"
        f" values {after} remain"
    )
    hint = "subtract an offset in the source (for example its first value), or leave the array out"
    found = {"key": key, "components": list(lost), "distinct": before, "remaining": after}
    findings.append(Finding("rounded", "warning", message, place, hint, found))


def check_rows(found: int, expected: int, where: str, reference: str, hint: str = "") -> None:
    """Check that an array has as many rows as the array `reference` it belongs to.

    Raises:
        DataError: The numbers of rows differ.
    """
    if found != expected:
        row = min(found, expected)
        raise DataError(
            f"{where}, row {row}: has {found} rows, but {reference} has {expected}", hint
        )


def check_components(found: int, expected: int, where: str, hint: str = "") -> None:
    """Check that an array has as many components as the same array of earlier episodes.

    Raises:
        DataError: The numbers of components differ.
    """
    if found != expected:
        raise DataError(
            f"{where}, row 0: has {found} components, earlier episodes have {expected}", hint
        )


def check_declared_bytes(total: int, max_bytes: int, where: str) -> None:
    """Check the uncompressed size that the arrays of a file declare, counted up to `where`.

    Raises:
        DataError: It is larger than `max_bytes`.
    """
    if total > max_bytes:
        raise DataError(
            f"{where}, which brings the file to {total:,} bytes, more than {max_bytes:,}",
            "raise --max-bytes if the size is right",
        )


def choose_observations(
    requested: Sequence[str], default: Sequence[str], sizes: Mapping[str, int], where: str
) -> tuple[ObservationSpec, ...]:
    """Decide which observation keys are stored and which of them are network inputs.

    Stored keys of the format's default are network inputs; the others are stored beside them.
    If no requested key is a default one, all of them are network inputs.

    Args:
        requested: Keys that the user named, or () for the default.
        default: Keys that the format stores by default.
        sizes: Number of components of every key in the source.
        where: File and group, for error messages.

    Raises:
        DataError: The source does not hold a key, or its name is reserved.
    """
    keys = tuple(dict.fromkeys(requested)) or tuple(default)
    for key in keys:
        if key not in sizes:
            raise DataError(f"{where}: no observation '{key}'", did_you_mean(key, sizes))
        if key in RESERVED_KEYS:
            raise DataError(f"{where}: the name '{key}' is reserved in snippet stores")
    if not keys:
        raise DataError(f"{where}: holds no observations")
    inputs = [key for key in keys if key in default] or keys
    return tuple(ObservationSpec(key, sizes[key], key in inputs) for key in keys)


def without_dropped(drop: Sequence[str], keys: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the observation keys that `--drop` does not name.

    Args:
        drop: Keys that the user wants to leave out.
        keys: The default choice, or what `--observation-keys` names.
        where: File and group, for error messages.

    Raises:
        DataError: A dropped key is not among them, or none is left.
    """
    for key in drop:
        if key not in keys:
            raise DataError(f"{where}: --drop: no observation '{key}'", did_you_mean(key, keys))
    left = tuple(key for key in keys if key not in drop)
    if drop and not left:
        raise nothing_left(where)
    return left


def nothing_left(where: str) -> DataError:
    """Return the error about `--drop` of every observation."""
    return DataError(
        f"{where}: --drop leaves no observation",
        "drop fewer keys, or name the keys to store with --observation-keys",
    )


def check_path(path: Path) -> None:
    """Check that a path leads to a file or a directory.

    Raises:
        DataError: Nothing is there, the system refuses the path (it is too long, links lead in
            circles), or it is a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no path holds a NUL
        raise _missing_path(path) from None
    except OSError as error:
        raise DataError(f"{plain_text(str(path), 300)}: {error.strerror}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: is neither a file nor a directory")


def _missing_path(path: Path) -> DataError:
    """Return the error about a path that does not exist, with formats and files of like names."""
    text = str(path)
    is_word = path.name == text and not path.suffix
    formats = [f"{name} (a data format)" for name in _close(text, READERS)] if is_word else []
    try:
        beside = [item.name for item in islice(path.parent.iterdir(), MOST_NEIGHBORS)]
    except OSError:
        beside = []
    files = [str(path.with_name(name)) for name in _close(path.name, beside)]
    hint = "did you mean " + " or ".join([*formats, *files]) + "?" if formats or files else ""
    hint = hint or artifact_hint(path)
    if not hint and _HUB_NAME.fullmatch(text):
        hint = f"if it is a dataset of the Hugging Face Hub: lwdctl download lerobot {text}"
    if not is_word:
        return DataError(f"{text}: no such file or directory", hint)
    hint = hint or f"data formats: {', '.join(READERS)}"
    return DataError(f"{text}: no such file or directory, and no data format has that name", hint)


def artifact_hint(path: Path) -> str:
    """Return the hint about a path that is the reference or the directory of an artifact, or ""."""
    found = _ARTIFACT.fullmatch(str(path))
    if not found:
        return ""
    root, reference, version, directory = found.group("root", "reference", "version", "directory")
    reference += f":v{int(directory)}" if directory else version or ""
    if path.is_dir():
        reference += f" --workspace {shlex.quote(root or '.')}"
    elif root:
        return ""  # a missing file of any other directory
    return f"if it is an artifact of the workspace: lwdctl show {reference}"


def _close(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that differ little from `name`, the closest first."""
    folded = {item.lower(): item for item in known}
    return [folded[item] for item in difflib.get_close_matches(name.lower(), folded, n=3)]


@contextmanager
def closed_on_error(file: Any) -> Iterator[None]:
    """Close `file` if the block raises: for constructors that check a file they opened."""
    with ExitStack() as stack:
        stack.callback(file.close)
        yield
        stack.pop_all()


def numeric_order(name: str) -> tuple[str, int, str]:
    """Return a sort key that puts `demo_2` before `demo_10`."""
    stem = without_number(name)
    digits = name[len(stem) :].lstrip("0") or "0"
    if stem == name:
        return name, -1, name
    return stem, int(digits) if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS, name


def without_number(name: str) -> str:
    """Return a name without the number at its end (`demo_`), in time linear in its length."""
    return name.rstrip("0123456789")
