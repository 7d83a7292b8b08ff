"""What a Minari dataset declares of its observations and actions: Gymnasium spaces, as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lwdctl.data.files.contents import ArrayEntry
from lwdctl.data.files.hdf5 import json_of

_IMAGE_SIDE = 16
"""Arrays whose rows have two axes of at least this length are images, or as large."""
_LARGEST = float(np.finfo(np.float32).max)
"""Limits of this size are those of the type: the space is unbounded."""
IMAGE = "is an image"
_INDEX = re.compile(r"(?:_index_)?(\d+)")
Space = Mapping[str, Any]


def json_object(text: Any) -> dict[str, Any]:
    """Return the JSON object in a metadata entry; anything else counts as absent."""
    value = json_of(text)[0] if isinstance(text, str) else text
    return dict(value) if isinstance(value, Mapping) else {}


def part_of(space: Space, key: str) -> Space:
    """Return the space of the array at a path (`"pose/hand"`) in a Dict or Tuple, {} if unknown."""
    for name in key.split("/") if key else ():
        parts = space.get("subspaces")
        index = _INDEX.fullmatch(name)
        if isinstance(parts, list) and index and int(index[1]) < len(parts):
            space = json_object(parts[int(index[1])])
        elif isinstance(parts, Mapping):
            space = json_object(parts.get(name))
        else:
            return {}
    return space


def kind_of(space: Space) -> str:
    """Return the type of a space, "" if unknown."""
    return str(space.get("type", ""))


def limits_of(space: Space, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return low and high of a Box, each () where it does not bound all `size` numbers."""
    low, high = _numbers(space.get("low"), size), _numbers(space.get("high"), size)
    return (low, high) if low and high else ((), ())


def _numbers(values: Any, size: int) -> tuple[float, ...]:
    try:
        numbers = np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return ()
    if numbers.size != size or not (np.abs(numbers) < _LARGEST).all():
        return ()
    return tuple(float(value) for value in numbers)


def why_no_vector(space: Space, entry: ArrayEntry) -> str:
    """Return why an observation array is not a vector of numbers (`IMAGE`), or ""."""
    kind = kind_of(space)
    declared = space.get("shape")
    if kind == "Text":
        return "is a text"
    if kind not in ("", "Box", "Discrete", "MultiDiscrete", "MultiBinary"):
        return f"is a {kind}"
    is_bytes = space.get("dtype") == "uint8" and isinstance(declared, list) and len(declared) > 1
    sides = sum(side >= _IMAGE_SIDE for side in entry.shape[1:])
    if is_bytes or sides > 1 or (entry.dtype == "uint8" and len(entry.shape) > 2):
        return IMAGE
    if not entry.is_numeric:
        return f"holds {entry.dtype}, not numbers"
    return ""
