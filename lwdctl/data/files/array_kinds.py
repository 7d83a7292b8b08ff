"""What an array of a recording can be, told by its name, shape and element type."""

from __future__ import annotations

from math import prod

from lwdctl.core.errors import DataError
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
_SMALLEST_SIDE = 8
_CHANNELS = (1, 3, 4)


def leaf(key: str) -> str:
    """Return the last part of a path in lower case."""
    return key.rpartition("/")[2].lower()


def components(entry: ArrayEntry) -> int:
    """Return the number of components of a row; one of rank 1 has one."""
    return prod(entry.shape[1:])


def is_image(entry: ArrayEntry) -> bool:
    """Return whether an array holds 8-bit images, or images of numbers of any other type.

    The latter have rows (height, width, channel) or (channel, height, width).
    """
    if entry.dtype == "uint8":
        return len(entry.shape) >= _IMAGE_RANK
    if len(entry.shape) != _IMAGE_RANK + 1:
        return False
    first, second, last = entry.shape[1:]
    sides = ((first, second, last), (second, last, first))
    return any(
        min(height, width) >= _SMALLEST_SIDE and channels in _CHANNELS
        for height, width, channels in sides
    )


def check_no_images(entry: ArrayEntry, where: str, hint: str) -> None:
    """Check that an observation does not hold images.

    Args:
        entry: What is declared of it.
        where: File and key, or episode and key, for the message.
        hint: How to leave it out.

    Raises:
        DataError: It does.
    """
    if is_image(entry):
        raise DataError(
            f"{where}: holds images {entry.shape[1:]} of {entry.dtype}; networks take"
            " low-dimensional observations",
            hint,
        )


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
