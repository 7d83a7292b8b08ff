"""Relative hand motions of robosuite (OSC_POSE) as absolute poses, from the recorded file alone.

An absolute pose is the position (3, meters, world frame), the orientation as six numbers
(`core.rotations`, the gripper's site in the world frame), and the gripper's command: 10 numbers.
robosuite adds a relative action to the hand's pose when the action arrives:
`position + motion` and `rotation * orientation`, both along the axes of the robot's base, which
in its single-arm tasks are the world's. Absolute targets of a file keep their frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import h5py
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, FloatArray
from lwdctl.core.rotations import six_numbers
from lwdctl.core.simulator_facts import (
    has_absolute_targets,
    is_before_robosuite_1_5,
    robosuite_control_rate,
    robosuite_pose_action,
)
from lwdctl.data.files.hdf5 import array_at, location, read_rows, text_of
from lwdctl.data.readers.robomimic_env import arm_settings
from lwdctl.data.readers.robosuite_object import BODY_KEY, POSITION_KEY

Array = npt.NDArray[np.float64]

# robosuite's controller rotates the gripper's site; the older key is the orientation of the arm's
# last body, to which the gripper is fixed.
SITE_KEY = "robot0_eef_quat_site"
HAND, SITE = "robot0_right_hand", "grip_site"
OTHER_ROTATIONS = ("euler", "axisangle", "xyaxes", "zaxis")
MOTION_SIZE = 7
HINT = "leave --actions out to store the actions as recorded"


@dataclass(frozen=True)
class Scale:
    """How a controller scales the numbers of an action to meters and radians, each (6,)."""

    input_min: Array
    input_max: Array
    output_min: Array
    output_max: Array

    def apply(self, motion: Array) -> Array:
        """Return motions (time, 6) in meters and radians."""
        factor = (self.output_max - self.output_min) / (self.input_max - self.input_min)
        clipped = np.clip(motion, self.input_min, self.input_max)
        middle = (self.input_max + self.input_min) / 2
        scaled: Array = (clipped - middle) * factor + (self.output_max + self.output_min) / 2
        return scaled


@dataclass(frozen=True)
class PoseTargets:
    """Converts the actions of one file to absolute poses.

    Attributes:
        spec: Specification of the absolute poses.
        scale: Scale of the recorded motions; None if absolute targets were recorded.
        keeps_rotation: Whether a motion without rotation keeps the previous target orientation,
            as in robosuite before 1.5, instead of the hand's present one.
        quaternion_key: Observation that holds the orientation.
        offset: Rotation from that orientation to the gripper's site.
    """

    spec: ActionSpec
    scale: Scale | None = None
    keeps_rotation: bool = False
    quaternion_key: str = SITE_KEY
    offset: Rotation | None = None

    def check(self, demo: h5py.Group, steps: int) -> None:
        """Check that the `steps` actions of a demonstration can be converted.

        Raises:
            DataError: The hand's pose is missing or has another shape.
        """
        if self.scale is None:
            return
        for key, size in ((POSITION_KEY, 3), (self.quaternion_key, 4)):
            where = location(demo, f"obs/{key}")
            if f"obs/{key}" not in demo:
                raise DataError(f"{where}: is missing, --actions absolute needs it", HINT)
            rows, found = array_at(demo, f"obs/{key}").shape
            if rows not in (steps, steps + 1) or found != size:
                shape = f"has shape {(rows, found)}, expected {(steps, size)}"
                raise DataError(f"{where}: {shape}", HINT)

    def convert(self, demo: h5py.Group, actions: FloatArray) -> FloatArray:
        """Return the absolute poses (time, 10) of a demonstration's actions (time, 7).

        Raises:
            DataError: NaN, infinity, or a quaternion of zeros; the message names the row.
        """
        motion = actions.astype(np.float64)
        if self.scale is None:
            position, rotation = motion[:, :3], Rotation.from_rotvec(motion[:, 3:6])
        else:
            scaled = self.scale.apply(motion[:, :6])
            present = read_rows(demo[f"obs/{POSITION_KEY}"], 0, len(motion)).astype(np.float64)
            position = present + scaled[:, :3]
            orientation = self._orientation(demo, len(motion))
            rotation = _target_rotations(scaled[:, 3:], orientation, keeps=self.keeps_rotation)
        gripper = np.clip(motion[:, 6:], -1.0, 1.0)
        return np.concatenate([position, six_numbers(rotation), gripper], 1).astype(np.float32)

    def _orientation(self, demo: h5py.Group, steps: int) -> Rotation:
        """Return the orientation of the gripper's site in the world at every step."""
        key = f"obs/{self.quaternion_key}"
        quaternions = read_rows(demo[key], 0, steps).astype(np.float64)
        zero = ~quaternions.any(axis=1)
        if zero.any():
            raise DataError(f"{location(demo, key)}, row {int(zero.argmax())}: is zero")
        rotation = Rotation.from_quat(quaternions)
        return rotation if self.offset is None else rotation * self.offset


def pose_targets(
    data: h5py.Group, demo: h5py.Group, env_args: Mapping[str, Any], size: int
) -> PoseTargets | None:
    """Return the conversion of a file's actions to absolute poses.

    Args:
        data: The group of all demonstrations.
        demo: One that is read.
        env_args: robomimic's description of a robosuite environment.
        size: Components of a recorded action.

    Returns:
        None for absolute targets that are no poses (joint angles), which stay as they are.

    Raises:
        DataError: Motions that cannot be converted; the message says why.
    """
    where = f"{data.file.filename}: data.attrs[env_args]"
    arm = arm_settings(env_args, where)
    if arm is None:
        raise DataError(f"{where}: has no controller_configs, --actions absolute needs them", HINT)
    controller = str(arm.get("type", "OSC_POSE"))
    if has_absolute_targets(arm) and controller != "OSC_POSE":
        return None
    _check_pose_controller(arm, controller, size, where)
    # robosuite sets no limits on targets.
    rate = robosuite_control_rate(env_args.get("env_kwargs", {}))
    spec = robosuite_pose_action(rate).unlimited()
    if has_absolute_targets(arm):
        return PoseTargets(spec)
    scale = _scale(arm, where)
    old = is_before_robosuite_1_5(str(env_args.get("env_version", "")))
    if old is None:
        old = "input_type" not in arm
    if f"obs/{SITE_KEY}" in demo:
        return PoseTargets(spec, scale, keeps_rotation=old)
    return PoseTargets(spec, scale, old, BODY_KEY, site_offset(data))


def site_offset(data: h5py.Group) -> Rotation:
    """Return the fixed rotation from the arm's last body to the gripper's site.

    It belongs to the robot, so the scene (MJCF) of any demonstration gives it.

    Args:
        data: The group of all demonstrations, of which at least one has `model_file`.

    Raises:
        DataError: There is no scene, or it does not give the rotation.
    """
    for name in data:
        model = data[name].attrs.get("model_file")
        if model is not None:
            return _rotation_in_scene(text_of(model), location(data, f"{name}.attrs[model_file]"))
    raise DataError(
        f"{location(data)}: has neither obs/robot0_eef_quat_site nor a model_file, and "
        "--actions absolute needs one of them for the gripper's orientation",
        HINT,
    )


def _check_pose_controller(arm: Mapping[str, Any], controller: str, size: int, where: str) -> None:
    """Check that a controller takes six numbers of motion and one for the gripper."""
    reason = ""
    if controller != "OSC_POSE":
        reason = f"the controller is {controller}, not OSC_POSE"
    elif size != MOTION_SIZE:
        reason = f"actions have {size} numbers, not the {MOTION_SIZE} of one arm and its gripper"
    elif arm.get("impedance_mode", "fixed") != "fixed":
        reason = f"impedance_mode is {arm['impedance_mode']}, not fixed"
    elif arm.get("position_limits") is not None or arm.get("orientation_limits") is not None:
        reason = "the controller clips targets at limits"
    if reason:
        raise DataError(f"{where}: {reason}: --actions absolute cannot convert them", HINT)


def _scale(arm: Mapping[str, Any], where: str) -> Scale:
    """Read a controller's limits; the input's default to -1 and 1."""
    values = {"input_min": -1.0, "input_max": 1.0, **arm}
    limits = []
    for key in ("input_min", "input_max", "output_min", "output_max"):
        if values.get(key) is None:
            raise DataError(f"{where}: the controller has no {key}, the size of a motion", HINT)
        try:
            limits.append(np.broadcast_to(np.asarray(values[key], np.float64), (6,)))
        except (TypeError, ValueError):
            raise DataError(f"{where}: {key} is neither one number nor six", HINT) from None
    if not np.isfinite(limits).all() or not (limits[0] < limits[1]).all():
        raise DataError(f"{where}: input_min is not below input_max", HINT)
    return Scale(*limits)


def _target_rotations(vectors: Array, orientation: Rotation, *, keeps: bool) -> Rotation:
    """Return the target orientations for rotation vectors (time, 3) in radians."""
    targets = Rotation.from_rotvec(vectors) * orientation
    if not keeps:
        return targets
    # Before the first rotation the target is the orientation at the start.
    rows = Rotation.concatenate([orientation[:1], targets])
    rotated = np.where(vectors.any(axis=1), np.arange(len(vectors)) + 1, 0)
    return rows[np.maximum.accumulate(rotated)]


def _rotation_in_scene(model: str, where: str) -> Rotation:
    try:
        # expat itself rejects entities that expand without bound.
        root = ET.fromstring(model)  # noqa: S314
    except ET.ParseError as error:
        raise DataError(f"{where}: is not XML ({error})", HINT) from None
    parents = {child: parent for parent in root.iter() for child in parent}
    sites = [
        item
        for item in root.iter("site")
        if item.get("name", "").startswith("gripper0_") and item.get("name", "").endswith(SITE)
    ]
    item = sites[0] if len(sites) == 1 else None
    rotation = Rotation.identity()
    while item is not None and item.get("name") != HAND:
        rotation = _own_rotation(item, where) * rotation
        item = parents.get(item)
    if item is None:
        raise DataError(f"{where}: holds no {HAND} with one {SITE}", HINT)
    return rotation


def _own_rotation(item: ET.Element, where: str) -> Rotation:
    """Return the rotation of a part of a scene relative to its parent."""
    other = [key for key in OTHER_ROTATIONS if key in item.attrib]
    try:
        numbers = [float(text) for text in item.get("quat", "1 0 0 0").split()]
        if other or len(numbers) != 4:
            raise ValueError
        return Rotation.from_quat(numbers, scalar_first=True)
    except ValueError:
        name = item.get("name", item.tag)
        raise DataError(f"{where}: the rotation of {name} is not a quaternion", HINT) from None
