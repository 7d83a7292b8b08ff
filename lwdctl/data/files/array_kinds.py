"""What an array of a recording can be, told by its name, shape and element type."""

from __future__ import annotations

from math import prod

from lwdctl.data.files.contents import ArrayEntry

NO_OBSERVATIONS = frozenset({
    "reward", "rewards", "terminal", "terminals", "done", "dones", "timeout", "timeouts",
    "terminated", "truncated", "terminations", "truncations", "success", "successes", "is_success",
    "is_first", "is_last", "is_terminal", "fail", "timestamp", "timestamps", "time", "stage",
    "episode_index", "frame_index", "index", "episode_ends", "return", "returns", "discount",
    "episode_id", "step",
})  # fmt: skip
"""Names of arrays that say something about a step, but are no observation."""
LARGEST_VECTOR = 1024
"""Components up to which an array is an observation by default; more are images or points."""
_IMAGE_RANK = 3


def leaf(key: str) -> str:
    """Return the last part of a path in lower case."""
    return key.rpartition("/")[2].lower()


def components(entry: ArrayEntry) -> int:
    """Return the number of components of a row; one of rank 1 has one."""
    return prod(entry.shape[1:])


def is_image(entry: ArrayEntry) -> bool:
    """Return whether an array holds 8-bit images."""
    return entry.dtype == "uint8" and len(entry.shape) >= _IMAGE_RANK


def why_not_observed(key: str, entry: ArrayEntry) -> str:
    """Return why an array is no observation by default, "" if it can be one."""
    reason = ""
    if not entry.is_numeric:
        reason = f"no numbers ({entry.dtype})"
    elif not entry.shape:
        reason = "a single number"
    elif is_image(entry) or len(entry.shape) > _IMAGE_RANK:
        reason = "images"
    elif components(entry) > LARGEST_VECTOR:
        reason = f"more than {LARGEST_VECTOR} components a step"
    elif leaf(key) in NO_OBSERVATIONS or leaf(key).startswith("next_"):
        reason = "not observed at its step"
    return reason
