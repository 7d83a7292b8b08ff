"""Where robosuite's gripper sits on the arm, from the scene (MJCF) in a robomimic file."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import h5py
from scipy.spatial.transform import Rotation

from lwdctl.core.errors import DataError
from lwdctl.data.hdf5_guard import text_of

HAND, SITE = "robot0_right_hand", "grip_site"
OTHER_TURNS = ("euler", "axisangle", "xyaxes", "zaxis")
HINT = "leave --actions out to store the actions as recorded"


def site_offset(data: h5py.Group, path: Path) -> Rotation:
    """Return the fixed turn from the arm's last body to the gripper's site.

    It belongs to the robot, so that any demonstration's scene says it.

    Args:
        data: The group of all demonstrations, of which one at least has `model_file`.
        path: Their file, for messages.

    Raises:
        DataError: No scene, or one that does not say it.
    """
    for name in data:
        model = data[name].attrs.get("model_file")
        if model is not None:
            return _turn_in_scene(text_of(model), f"{path}: data/{name}.attrs[model_file]")
    raise DataError(
        f"{path}: data: has neither obs/robot0_eef_quat_site nor a model_file, and "
        "--actions absolute needs one of them for the gripper's orientation",
        HINT,
    )


def _turn_in_scene(model: str, where: str) -> Rotation:
    try:
        # Entities that expand without bound are refused by expat itself.
        root = ET.fromstring(model)  # noqa: S314
    except ET.ParseError as error:
        raise DataError(f"{where}: is not XML ({error})", HINT) from None
    parents = {child: parent for parent in root.iter() for child in parent}
    sites = [item for item in root.iter("site") if _is_grip_site(item)]
    item = sites[0] if len(sites) == 1 else None
    turn = Rotation.identity()
    while item is not None and item.get("name") != HAND:
        turn = _own_turn(item, where) * turn
        item = parents.get(item)
    if item is None:
        raise DataError(f"{where}: holds no {HAND} with one {SITE}", HINT)
    return turn


def _is_grip_site(item: ET.Element) -> bool:
    name = item.get("name", "")
    return name.startswith("gripper0_") and name.endswith(SITE)


def _own_turn(item: ET.Element, where: str) -> Rotation:
    """Return how a part of a scene is turned against the one it is in."""
    other = [key for key in OTHER_TURNS if key in item.attrib]
    try:
        numbers = [float(word) for word in item.get("quat", "1 0 0 0").split()]
        if other or len(numbers) != 4:
            raise ValueError
        return Rotation.from_quat(numbers, scalar_first=True)
    except ValueError:
        name = item.get("name", item.tag)
        raise DataError(f"{where}: the turn of {name} is no quaternion", HINT) from None
