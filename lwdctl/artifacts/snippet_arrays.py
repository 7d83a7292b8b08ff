"""The arrays of a snippet store, and what is checked and computed of an episode for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.stored_files import is_inside
from lwdctl.artifacts.zarr_columns import EPISODE_CHUNK, step_chunk
from lwdctl.core.errors import ArtifactError, DataError
from lwdctl.core.moments import STATISTICS, statistics_of
from lwdctl.core.plain_text import encodable, plain_text
from lwdctl.core.records import RELATIVE, RESERVED_KEYS, ActionSpec, Episode, SourceSpec
from lwdctl.core.untrusted import MOST_BYTES, MOST_VALUES

MOST_KEY = 200
"""Bytes of a part of an observation's name."""
EPISODE_COLUMNS = {
    "start": np.int64,
    "length": np.int64,
    "task": np.int32,
    "label": np.int32,
    "split": np.int8,
    "success": np.int8,
    "seed": np.int64,
    "model": np.int32,
    "has_final_observation": np.int8,
    "initial_state_end": np.int64,
}

Row = Literal["step", "episode", "other"]
"""What a row of an array stands for."""
_CHUNKS: Mapping[Row, int] = {"episode": EPISODE_CHUNK, "other": 65536}


class StoredArray(NamedTuple):
    """An array of a store.

    Attributes:
        row: What a row stands for.
        shape: Shape of a row.
        dtype: Element type.
        optional: Whether there are stores without it.
    """

    row: Row
    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    optional: bool = False

    @property
    def chunk(self) -> int:
        """Rows per chunk."""
        if self.row == "step":
            return step_chunk(math.prod(self.shape) * np.dtype(self.dtype).itemsize)
        return _CHUNKS[self.row]


def check_key(name: str) -> None:
    """Check that an observation may have a name: arrays of a store are directories called so.

    Raises:
        DataError: It is reserved, leads elsewhere, or is no name of a directory.
    """
    if name in RESERVED_KEYS:
        raise DataError(
            f"the name '{name}' is reserved in snippet stores", "give the observation another name"
        )
    parts = name.split("/")
    if (
        not (encodable(name) == name and is_inside(name))
        or "\\" in name
        or any(part in ("", ".", "zarr.json") or len(part.encode()) > MOST_KEY for part in parts)
    ):
        raise DataError(
            f"an observation is called '{plain_text(name, 100)}', which can be no name of an array"
            " in a snippet store",
            f"rename it with --rename: at most {MOST_KEY} bytes between slashes, no '..'",
        )


def check_paths(paths: Collection[str]) -> None:
    """Check that no array of a store would lie in another one, as observations' names can ask for.

    Args:
        paths: Paths of all arrays (`arrays_of`).

    Raises:
        DataError: One would (`observation/arm/q` where there is `observation/arm`).
    """
    for path in paths:
        for place, letter in enumerate(path):
            if letter == "/" and path[:place] in paths:
                raise DataError(
                    f"the names of the observations make '{path[:place]}' an array of the snippet"
                    f" store that holds another array, '{path}'",
                    "rename an observation, without the slash (--rename OLD=NEW)",
                )


def check_counts(where: str, episodes: int, characters: int) -> None:
    """Check that the table of episodes is one that can be held, before any of it is read.

    Args:
        where: The store, for the message.
        episodes: Number of episodes that it declares.
        characters: Bytes of their names.

    Raises:
        ArtifactError: It is too large.
    """
    if episodes > MOST_VALUES or characters > MOST_BYTES:
        raise ArtifactError(
            f"{where}: declares {episodes:,} episodes with {characters:,} bytes of names; at most"
            f" {MOST_VALUES:,} with {MOST_BYTES:,} are read",
            "make the artifact again",
        )


def arrays_of(spec: SourceSpec) -> dict[str, StoredArray]:
    """Return every array of a store by its path."""
    sizes = {item.name: item.size for item in spec.observations}
    found = {
        "action": StoredArray("step", (spec.action.size,), np.float32),
        "reward": StoredArray("step", (), np.float32, optional=True),
        "episode/weight": StoredArray("episode", (), np.float64, optional=True),
        "episode/initial_state": StoredArray("other", (), np.float64),
        "episode/source": StoredArray("other", (), np.uint8),
    }
    for name, size in sizes.items():
        found[f"observation/{name}"] = StoredArray("step", (size,), np.float32)
        found[f"final_observation/{name}"] = StoredArray("episode", (size,), np.float32)
    for name, dtype in EPISODE_COLUMNS.items():
        found[f"episode/{name}"] = StoredArray("episode", (), dtype)
    for name, place in component_slices(sizes, spec.action).items():
        for part in STATISTICS:
            shape = (place.stop - place.start,)
            found[f"statistics/{name}/{part}"] = StoredArray("episode", shape, np.float64)
    return found


def component_slices(sizes: Mapping[str, int], action: ActionSpec) -> dict[str, slice]:
    """Return where each key stands among all components of a step that have statistics."""
    relative = {RELATIVE: action.size} if action.reference else {}
    sizes = {**sizes, "action": action.size, **relative}
    ends = list(itertools.accumulate(sizes.values()))
    return {
        name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


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
