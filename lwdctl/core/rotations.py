"""Rotations as six numbers: the first two columns of the rotation matrix, concatenated.

Networks learn this representation better than angles or quaternions, because it is continuous
(Zhou et al. 2019, "On the continuity of rotation representations in neural networks"). The two
columns are the rotated x and y axes; the third is their cross product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

Array = npt.NDArray[np.float64]

# An axis shorter than this counts as zero.
SHORTEST = 1e-6


def six_numbers(rotation: Rotation) -> Array:
    """Return the six numbers (..., 6) of one rotation or of several."""
    matrix: Array = rotation.as_matrix()
    return np.concatenate([matrix[..., 0], matrix[..., 1]], axis=-1)


def rotation_of(six: Array) -> Rotation | None:
    """Return the rotation of six numbers, orthonormalized by the Gram-Schmidt process.

    Args:
        six: Any finite numbers (6,), such as the output of a network.

    Returns:
        The rotation, or None where the numbers define none: the first axis is zero, or the second
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
