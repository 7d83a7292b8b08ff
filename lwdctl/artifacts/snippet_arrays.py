"""The arrays of a snippet store, which follow from the description of its data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.stored_files import is_inside
from lwdctl.artifacts.zarr_columns import EPISODE_CHUNK, step_chunk
from lwdctl.core.errors import ArtifactError, DataError
from lwdctl.core.moments import STATISTICS
from lwdctl.core.plain_text import encodable, plain_text
from lwdctl.core.records import RELATIVE, RESERVED_KEYS, ActionSpec, SourceSpec
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
