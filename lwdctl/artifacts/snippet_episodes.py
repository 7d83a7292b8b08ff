"""What a snippet store checks and computes of an episode before it holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError
from lwdctl.core.moments import statistics_of
from lwdctl.core.records import Episode


def values_of(
    values: Mapping[str, npt.NDArray[np.float32]], name: str, source: str
) -> npt.NDArray[np.float32]:
    """Return an observation of an episode as float32.

    Args:
        values: Observations by their names.
        name: The observation.
        source: The episode, for the message.

    Raises:
        DataError: The episode has no such observation.
    """
    if name not in values:
        raise DataError(f"{source}: the observation '{name}' is missing")
    return np.asarray(values[name], np.float32)


def check_shape(array: npt.NDArray[Any], shape: tuple[int, ...], what: str) -> None:
    """Check the shape of an array that the message calls `what`.

    Raises:
        DataError: It has another one.
    """
    if array.shape != shape:
        raise DataError(f"{what} has shape {array.shape}, not {shape}")


def check_finite(array: npt.NDArray[Any], what: str) -> None:
    """Check that all values of an array that the message calls `what` are finite.

    Raises:
        DataError: One is NaN or infinite; the message names its row.
    """
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise DataError(f"{what} has NaN or infinity in row {row}")


def index_of(name: str, known: tuple[str, ...], what: str) -> int:
    """Return the index of a name, -1 for an empty one.

    Raises:
        DataError: The name is not known.
    """
    if name in known:
        return known.index(name)
    if name:
        raise DataError(f"{what} '{name}' is not among {', '.join(known) or 'any declared'}")
    return -1


def task_index(episode: Episode, known: tuple[str, ...]) -> int:
    """Return the index of an episode's task; the only one where none is named.

    Raises:
        DataError: The task is not known.
    """
    found = index_of(episode.task, known, f"{episode.source}: task")
    return 0 if found < 0 and len(known) == 1 else found


def stored_seed(seed: int | None) -> int:
    """Return the seed as the table holds it; one beyond 63 bits is not kept."""
    return seed if seed is not None and 0 <= seed < 2**63 else -1


def episode_statistics(
    arrays: Mapping[str, npt.NDArray[np.float32]],
    slices: Mapping[str, slice],
    known: npt.NDArray[np.float64] | None,
) -> npt.NDArray[np.float64]:
    """Return `STATISTICS` (statistic, dim) of the steps of an episode, (time, dim) per key.

    Args:
        arrays: The keys, side by side in this order.
        slices: Where each key stands.
        known: What `statistics_of` returns of the first keys, None for none.
    """
    if known is None:
        found = statistics_of(np.concatenate(list(arrays.values()), axis=1))
    else:
        count = known.shape[1]
        rest = [values for name, values in arrays.items() if slices[name].start >= count]
        found = np.concatenate([known, *map(statistics_of, rest)], axis=1)
    for name, place in slices.items():
        if place.stop - place.start == 1:
            # NumPy adds a single column pairwise, several ones row by row: stores that hold one
            # key keep their last bits.
            found[:, place] = statistics_of(arrays[name])
    return found
