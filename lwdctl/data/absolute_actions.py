"""robosuite's motions of the hand (OSC_POSE) as absolute targets, from the file alone.

A target is the position (3, meters, world frame), the orientation as six numbers
(`core.rotations`, the gripper's site in the world frame), and the gripper's direction: 10 numbers.
robosuite adds a motion to where the hand is when the action arrives:
`position + motion` and `turn * orientation`, both along the axes of the robot's base, which in
its tasks for one arm are the world's. Absolute targets of a file keep the frame they are in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, FloatArray
from lwdctl.core.rotations import six_numbers
from lwdctl.data.hdf5_guard import array_shape, dataset_at, location, read_rows
from lwdctl.data.robomimic_env import arm_settings, is_absolute
from lwdctl.data.robosuite_object import is_before_15
from lwdctl.data.robosuite_scene import HINT, site_offset

Array = npt.NDArray[np.float64]

POSITION_KEY = "robot0_eef_pos"
# robosuite's controller turns the gripper's site; the older key is the turn of the arm's last
# body, to which the gripper is fixed.
SITE_KEY, BODY_KEY = "robot0_eef_quat_site", "robot0_eef_quat"
POSE_SIZE, TARGET_SIZE = 7, 10
FARTHEST = 2.0


@dataclass(frozen=True)
class Scale:
    """How a controller turns the numbers of an action into meters and radians, each (6,)."""

    input_min: Array
    input_max: Array
    output_min: Array
    output_max: Array

    def apply(self, motion: Array) -> Array:
        """Return motions (time, 6) in meters and radians."""
        share = (self.output_max - self.output_min) / (self.input_max - self.input_min)
        clipped = np.clip(motion, self.input_min, self.input_max)
        middle = (self.input_max + self.input_min) / 2
        scaled: Array = (clipped - middle) * share + (self.output_max + self.output_min) / 2
        return scaled


@dataclass(frozen=True)
class PoseTargets:
    """Turns the actions of one file into absolute targets.

    Attributes:
        path: The file, for messages.
        control_rate: Actions per second in hertz.
        scale: Of recorded motions; None where targets were recorded.
        keeps_turn: Whether a motion without a turn keeps the orientation aimed at before, as
            robosuite before 1.5 does, instead of the one the hand has.
        quaternion_key: Where the orientation stands.
        offset: From that orientation to the gripper's site.
    """

    path: Path
    control_rate: float
    scale: Scale | None = None
    keeps_turn: bool = False
    quaternion_key: str = SITE_KEY
    offset: Rotation | None = None

    @property
    def spec(self) -> ActionSpec:
        """What the targets mean."""
        high = (FARTHEST,) * 3 + (1.0,) * 7
        low = tuple(-value for value in high)
        units = "meters and a 6-D rotation"
        return ActionSpec(TARGET_SIZE, "absolute", units, low, high, self.control_rate)

    def check(self, demo: h5py.Group) -> None:
        """Refuse a demonstration whose actions cannot be converted.

        Raises:
            DataError: The hand's pose is missing or has another shape.
        """
        if self.scale is None:
            return
        steps = demo["actions"].shape[0]
        for key, size in ((POSITION_KEY, 3), (self.quaternion_key, 4)):
            where = f"{self.path}: {location(demo, f'obs/{key}')}"
            if key not in demo["obs"]:
                raise DataError(f"{where}: is missing, --actions absolute needs it", HINT)
            shape = array_shape(dataset_at(demo, f"obs/{key}", self.path), self.path)
            if shape != (steps, size):
                raise DataError(f"{where}: has shape {shape}, expected {(steps, size)}", HINT)

    def convert(self, demo: h5py.Group, actions: FloatArray) -> FloatArray:
        """Return the targets (time, 10) of a demonstration's actions (time, 7).

        Raises:
            DataError: NaN, infinity, or a quaternion of zeros; the message names the row.
        """
        motion = actions.astype(np.float64)
        if self.scale is None:
            position, turn = motion[:, :3], Rotation.from_rotvec(motion[:, 3:6])
        else:
            scaled = self.scale.apply(motion[:, :6])
            here = read_rows(demo["obs"][POSITION_KEY], self.path).astype(np.float64)
            position = here + scaled[:, :3]
            turn = _aimed(scaled[:, 3:], self._orientation(demo), keeps=self.keeps_turn)
        gripper = np.clip(motion[:, 6:], -1.0, 1.0)
        return np.concatenate([position, six_numbers(turn), gripper], axis=1).astype(np.float32)

    def _orientation(self, demo: h5py.Group) -> Rotation:
        """Return the turns of the gripper's site in the world, one a step."""
        key = f"obs/{self.quaternion_key}"
        quaternions = read_rows(demo[key], self.path).astype(np.float64)
        zero = ~quaternions.any(axis=1)
        if zero.any():
            row = int(zero.argmax())
            raise DataError(f"{self.path}: {location(demo, key)}, row {row}: is zero")
        turn = Rotation.from_quat(quaternions)
        return turn if self.offset is None else turn * self.offset


def pose_targets(
    data: h5py.Group, demo: h5py.Group, env_args: Mapping[str, Any], path: Path
) -> PoseTargets | None:
    """Say how a file's actions become absolute targets, or None where they are something else.

    Args:
        data: The group of all demonstrations.
        demo: One that is read.
        env_args: robomimic's description of a robosuite environment.
        path: The file, for messages.

    Returns:
        None for absolute targets that are no poses (joint angles), which stay as they are.

    Raises:
        DataError: Motions that cannot be converted; the message says why.
    """
    kwargs = env_args.get("env_kwargs", {})
    where = f"{path}: data.attrs[env_args]"
    arm = arm_settings(kwargs.get("controller_configs"), str(path))
    if arm is None:
        raise DataError(f"{where}: has no controller_configs, --actions absolute needs them", HINT)
    kind = str(arm.get("type", "OSC_POSE"))
    if is_absolute(arm) and kind != "OSC_POSE":
        return None
    _require_pose(arm, kind, array_shape(dataset_at(demo, "actions", path), path)[1], where)
    rate = float(kwargs.get("control_freq", 20))
    if is_absolute(arm):
        return PoseTargets(path, rate)
    scale = _scale(arm, where)
    old = is_before_15(str(env_args.get("env_version", "")))
    if old is None:
        old = "input_type" not in arm
    if isinstance(demo.get("obs"), h5py.Group) and SITE_KEY in demo["obs"]:
        return PoseTargets(path, rate, scale, keeps_turn=old)
    return PoseTargets(path, rate, scale, old, BODY_KEY, site_offset(data, path))


def _require_pose(arm: Mapping[str, Any], kind: str, size: int, where: str) -> None:
    """Refuse a controller whose motions are not six numbers and a gripper's."""
    said = ""
    if kind != "OSC_POSE":
        said = f"the controller is {kind}, not OSC_POSE"
    elif size != POSE_SIZE:
        said = f"actions have {size} numbers, not the {POSE_SIZE} of one arm and its gripper"
    elif arm.get("impedance_mode", "fixed") != "fixed":
        said = f"impedance_mode is {arm['impedance_mode']}, not fixed"
    elif arm.get("position_limits") is not None or arm.get("orientation_limits") is not None:
        said = "the controller cuts targets off at limits"
    if said:
        raise DataError(f"{where}: {said}: --actions absolute cannot convert them", HINT)


def _scale(arm: Mapping[str, Any], where: str) -> Scale:
    """Read a controller's limits; those of its input are -1 and 1 unless it says so."""
    values = {"input_min": -1.0, "input_max": 1.0, **arm}
    limits = []
    for key in ("input_min", "input_max", "output_min", "output_max"):
        if values.get(key) is None:
            raise DataError(f"{where}: the controller has no {key}, the size of a motion", HINT)
        try:
            limits.append(np.broadcast_to(np.asarray(values[key], np.float64), (6,)))
        except (TypeError, ValueError):
            raise DataError(f"{where}: {key} is not one number or six", HINT) from None
    if not np.isfinite(limits).all() or not (limits[0] < limits[1]).all():
        raise DataError(f"{where}: input_min is not below input_max", HINT)
    return Scale(*limits)


def _aimed(turns: Array, orientation: Rotation, *, keeps: bool) -> Rotation:
    """Return the orientations aimed at, for rotation vectors (time, 3) in radians."""
    aimed = Rotation.from_rotvec(turns) * orientation
    if not keeps:
        return aimed
    # Before the first turn the goal is the orientation at the start.
    rows = Rotation.concatenate([orientation[:1], aimed])
    turned = np.where(turns.any(axis=1), np.arange(len(turns)) + 1, 0)
    return rows[np.maximum.accumulate(turned)]
