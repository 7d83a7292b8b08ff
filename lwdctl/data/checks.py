"""Checks of arrays that every reader makes, with errors that name file, key and row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError
from lwdctl.core.records import FloatArray, ObservationSpec
from lwdctl.core.suggest import did_you_mean

NUMBER_KINDS = "fiub"
RESERVED_KEYS = ("action", "action_relative", "reward")


class NonFiniteError(DataError):
    """A NaN or an infinity in an episode; `--on-nan drop` leaves the episode out."""


def finite_rows(values: npt.NDArray[Any], where: str, first_row: int = 0) -> FloatArray:
    """Return `values` (time, size) as float32, refusing NaN, infinity and overflow.

    Args:
        values: Numbers, one row per time step.
        where: File and key, as the message shall name them.
        first_row: Row of the source at which `values` begins.

    Raises:
        NonFiniteError: A value that is not a finite float32.
    """
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(values, dtype=np.float32)
    bad = ~np.isfinite(rows)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        worst = values[row][bad[row]].flat[0] if rows.ndim > 1 else values[row]
        raise NonFiniteError(
            f"{where}, row {first_row + row}: value is {worst}",
            "--on-nan drop leaves such episodes out",
        )
    return rows


def require_length(length: int, expected: int, where: str, beside: str) -> None:
    """Refuse an array whose length differs from that of the array it belongs to.

    Raises:
        DataError: The lengths differ.
    """
    if length != expected:
        shorter = min(length, expected)
        raise DataError(f"{where}, row {shorter}: has {length} rows, but {beside} has {expected}")


def require_size(size: int, expected: int, where: str) -> None:
    """Refuse an array whose number of components differs from that of earlier episodes.

    Raises:
        DataError: The sizes differ.
    """
    if size != expected:
        raise DataError(f"{where}, row 0: has {size} components, earlier episodes have {expected}")


def choose_keys(
    asked: Sequence[str], default: Sequence[str], present: Sequence[str], where: str
) -> tuple[tuple[str, bool], ...]:
    """Decide which observation keys are stored and which of them networks see.

    Keys of the format's default are seen by networks; others are stored beside them. When
    no asked key is a default one, networks see all of them.

    Args:
        asked: Keys the user named, or () for the default.
        default: Keys the format stores when none is named.
        present: Keys in the source.
        where: File and group, as the message shall name them.

    Returns:
        Pairs of key and whether networks see it.

    Raises:
        DataError: A key that the source does not hold.
    """
    keys = tuple(dict.fromkeys(asked)) or tuple(default)
    for key in keys:
        if key not in present:
            raise DataError(f"{where}: no observation '{key}'", did_you_mean(key, present))
    for key in keys:
        if key in RESERVED_KEYS:
            raise DataError(f"{where}: the name '{key}' is taken in snippet stores")
    if not keys:
        raise DataError(f"{where}: holds no observations")
    seen = [key for key in keys if key in default] or keys
    return tuple((key, key in seen) for key in keys)


def observation_specs(
    keys: Sequence[tuple[str, bool]], sizes: Sequence[int]
) -> tuple[ObservationSpec, ...]:
    """Return the records for chosen keys of the given sizes."""
    return tuple(
        ObservationSpec(name, size, network)
        for (name, network), size in zip(keys, sizes, strict=True)
    )
