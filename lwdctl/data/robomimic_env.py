"""Environment and actions as robomimic's `env_args` describe them (versions 1.2 to 1.5)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import h5py

from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec
from lwdctl.core.registry import is_outsider
from lwdctl.data.hdf5 import location, text_of

ROBOSUITE_KEYS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
METAWORLD_CONTROL_RATE = 80.0
# robomimic's limits for one operator's (ph) and several operators' (mh) data.
ROBOSUITE_STEPS = {"TwoArmTransport": (700, 1100), "ToolHang": (700, 700)}
ROBOSUITE_STEPS_DEFAULT = (400, 500)
METAWORLD_STEPS = 500


def read_env_args(data: h5py.Group) -> dict[str, Any]:
    """Return `env_args` as written, or {} when the file has none.

    Raises:
        DataError: Not a JSON object.
    """
    if "env_args" not in data.attrs:
        return {}
    where = f"{location(data)}.attrs[env_args]"
    try:
        values = json.loads(text_of(data.attrs["env_args"]))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is not JSON ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("env_kwargs", {}), dict):
        raise DataError(f"{where}: is not a JSON object")
    return values


def adapter_of(env_args: Mapping[str, Any]) -> str:
    """Return the environment table's row: robosuite for robomimic's type 1, or a name as written.

    Code to import (`package.module:Class`) is named by the user with `--env`, never by a file.
    """
    kind = env_args.get("type")
    if isinstance(kind, str):
        return "" if is_outsider(kind) else kind
    return "robosuite" if kind == 1 else ""


def max_steps_of(
    adapter: str, task: str, env_args: Mapping[str, Any], *, several_operators: bool
) -> int:
    """Return the episode limit in steps with which results on this data are reported."""
    if adapter == "robosuite":
        return ROBOSUITE_STEPS.get(task, ROBOSUITE_STEPS_DEFAULT)[several_operators]
    if adapter != "metaworld":
        return 0
    return int(env_args.get("env_kwargs", {}).get("max_steps", METAWORLD_STEPS))


def action_spec(adapter: str, env_args: Mapping[str, Any], size: int, where: str) -> ActionSpec:
    """Describe the recorded actions.

    Raises:
        DataError: Controller settings that are not the objects robosuite writes.
    """
    low, high = (-1.0,) * size, (1.0,) * size
    kwargs = env_args.get("env_kwargs", {})
    if adapter == "metaworld":
        return ActionSpec(size, "delta", "normalized", low, high, METAWORLD_CONTROL_RATE)
    if adapter != "robosuite":
        return ActionSpec(size, "absolute", "unknown", low, high)
    rate = float(kwargs.get("control_freq", 20))
    arm = arm_settings(kwargs.get("controller_configs"), where) or {}
    kind = str(arm.get("type", "OSC_POSE"))
    if kind == "JOINT_TORQUE":
        return ActionSpec(size, "torque", "normalized", low, high, rate)
    if not is_absolute(arm):
        return ActionSpec(size, "delta", "normalized", low, high, rate)
    low, high = _absolute_limits(kind, size)
    return ActionSpec(size, "absolute", "meters and radians", low, high, rate)


def arm_settings(configs: Any, where: str) -> dict[str, Any] | None:
    """Return the settings of the (first) arm's controller, or None where there are none.

    Up to robosuite 1.4 the controller is at the top level (for two arms, in a list); from 1.5 it
    is under `body_parts`, in robosuite's own files one level deeper.

    Raises:
        DataError: They are not the objects robosuite writes.
    """
    if configs is None:
        return None
    if isinstance(configs, list) and configs:
        configs = configs[0]
    if isinstance(configs, dict) and "body_parts" in configs:
        parts = configs["body_parts"]
        parts = parts.get("arms", parts) if isinstance(parts, dict) else None
        configs = parts.get("right", parts.get("left")) if isinstance(parts, dict) else None
    if not isinstance(configs, dict):
        raise DataError(f"{where}: controller_configs is not what robosuite writes")
    return configs


def is_absolute(arm: Mapping[str, Any]) -> bool:
    """Return whether a controller takes targets: `control_delta` up to 1.4, then `input_type`."""
    return not arm.get("control_delta", True) or arm.get("input_type") == "absolute"


def _absolute_limits(kind: str, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the limits of absolute targets, wide enough for any reachable one.

    A pose per arm is 2 m around the base, a full turn, and the gripper's own [-1, 1]; other
    controllers take angles.
    """
    pose = (2.0, 2.0, 2.0, math.tau, math.tau, math.tau, 1.0)
    if kind.endswith("_POSE") and size % len(pose) == 0:
        high = pose * (size // len(pose))
    else:
        high = (math.tau,) * size
    return tuple(-value for value in high), high
