"""The observation `object` of robosuite's tasks, converted to one convention.

Between robosuite 1.4 and 1.5 Lift's relative position changed its sign and the pick-and-place
tasks changed the order of parts. Stores hold the convention of 1.5:

- Lift (10): cube position, cube quaternion, cube minus end effector;
- PickPlace, one object (14): position and quaternion in the end effector's frame, then
  position and quaternion in the world.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lwdctl.core.errors import DataError
from lwdctl.core.records import FloatArray
from lwdctl.core.simulator_facts import is_before_robosuite_1_5

POSITION_KEY, BODY_KEY = "robot0_eef_pos", "robot0_eef_quat"
"""The end effector's pose: its position, and the orientation of the arm's last body."""
CONVENTION = "robosuite-1.5"
LIFT_SIZE, PLACE_SIZE = 10, 14
PLACE_TASKS = ("PickPlaceCan", "PickPlaceMilk", "PickPlaceBread", "PickPlaceCereal")
LIFT_TOLERANCE = 0.005
# Relative poses of pick-and-place lag one control step behind, up to 5 cm of motion.
PLACE_TOLERANCE = 0.06


@dataclass(frozen=True)
class ObjectConvention:
    """How a file of the environment `task`, written by version `version`, stores `object`."""

    task: str
    version: str

    def applies(self, size: int) -> bool:
        """Return whether the convention of this task's `object` of `size` components changed."""
        if self.task == "Lift":
            return size == LIFT_SIZE
        return self.task in PLACE_TASKS and size == PLACE_SIZE

    def is_old(
        self,
        values: FloatArray,
        position: FloatArray | None,
        quaternion: FloatArray | None,
        where: str,
    ) -> bool:
        """Decide by version and data whether `values` follow the convention before 1.5.

        Args:
            values: `object`, (time, obs), as stored.
            position: End effector's position (time, 3) in meters, or None if not in the file.
            quaternion: Its orientation (time, 4) as x, y, z, w, or None.
            where: File and key, for error messages.

        Raises:
            DataError: The data contradict the version or fit neither convention, or there is
                neither a version nor an end-effector position to decide by.
        """
        old = is_before_robosuite_1_5(self.version)
        if position is None:
            if old is None:
                raise DataError(
                    f"{where}, row 0: the robosuite version that wrote it is unknown",
                    "the file needs env_version or robot0_eef_pos",
                )
            return old
        error = {
            old: self._residual(values, position, quaternion, old=old) for old in (False, True)
        }
        likely = error[True] < error[False] if old is None else old
        tolerance = LIFT_TOLERANCE if self.task == "Lift" else PLACE_TOLERANCE
        if error[likely] <= tolerance:
            return likely
        if error[not likely] <= tolerance:
            raise DataError(
                f"{where}, row 0: follows robosuite {'1.5' if likely else '1.4'}'s convention, "
                f"but env_version is {self.version}",
                "correct env_version in the attribute env_args of the group data",
            )
        raise DataError(
            f"{where}, row 0: is not an object pose of {self.task} that fits robot0_eef_pos "
            f"(off by {min(error.values()):.3f} m)",
            "--drop object leaves it out",
        )

    def convert(self, values: FloatArray) -> FloatArray:
        """Return `object` (..., obs) of an old file in the convention of 1.5."""
        converted = values.copy()
        if self.task == "Lift":
            converted[..., 7:10] = -values[..., 7:10]
        else:
            converted[..., :7], converted[..., 7:] = values[..., 7:], values[..., :7]
        return converted

    def _residual(
        self, values: FloatArray, position: FloatArray, quaternion: FloatArray | None, *, old: bool
    ) -> float:
        """Return the median disagreement in meters with one of the two conventions."""
        rows = self.convert(values) if old else values
        if self.task == "Lift":
            expected = rows[:, :3] - position
            return float(np.median(np.linalg.norm(rows[:, 7:10] - expected, axis=1)))
        offset = rows[:, 7:10] - position
        if quaternion is not None:
            offset = _rotate_inverse(quaternion, offset)
            return float(np.median(np.linalg.norm(rows[:, :3] - offset, axis=1)))
        # Without a rotation only the distances can be compared.
        distances = np.linalg.norm(rows[:, :3], axis=1) - np.linalg.norm(offset, axis=1)
        return float(np.median(np.abs(distances)))


def _rotate_inverse(quaternion: FloatArray, vector: FloatArray) -> FloatArray:
    """Rotate (time, 3) by the inverse of unit quaternions (time, 4) in the order x, y, z, w."""
    axis, real = -quaternion[:, :3], quaternion[:, 3:]
    twice = 2 * np.cross(axis, vector)
    rotated: FloatArray = vector + real * twice + np.cross(axis, twice)
    return rotated
