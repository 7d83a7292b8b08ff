"""Rotations as six numbers: the first two columns of the rotation matrix, one after the other.

Networks learn them better than angles or quaternions, because nearby rotations have nearby
numbers everywhere (Zhou et al. 2019, "On the continuity of rotation representations in neural
networks"). The two columns are the turned x and y axes; the third is their cross product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

Array = npt.NDArray[np.float64]

# Shorter than this, what an axis must be told from is taken for zero.
SHORTEST = 1e-6


def six_numbers(rotation: Rotation) -> Array:
    """Return the numbers (..., 6) of one rotation or of several."""
    matrix: Array = rotation.as_matrix()
    return np.concatenate([matrix[..., 0], matrix[..., 1]], axis=-1)


def rotation_of(six: Array) -> Rotation | None:
    """Return the rotation nearest in the sense of Gram and Schmidt.

    Args:
        six: Any finite numbers (6,), as a network gives them.

    Returns:
        The rotation, or None where the numbers say none: the first axis is zero, or the second
        is zero or parallel to it.
    """
    first, second = six[:3], six[3:]
    length = np.linalg.norm(first)
    if length < SHORTEST:
        return None
    x = first / length
    second = second - (x @ second) * x
    length = np.linalg.norm(second)
    if length < SHORTEST:
        return None
    y = second / length
    return Rotation.from_matrix(np.stack([x, y, np.cross(x, y)], axis=-1))
