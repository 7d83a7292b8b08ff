"""robomimic's `env_args` (written for robosuite 1.2 to 1.5) as arguments of robosuite 1.5.

Up to 1.4 an arm's controller stands at the top level and has `control_delta`; from 1.5 on it is
part of a composite controller and has `input_type`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import ActionSpec
from lwdctl.core.rotations import rotation_of
from lwdctl.core.simulator_facts import (
    is_before_robosuite_1_5,
    robosuite_action,
    robosuite_control_rate,
)

Array = npt.NDArray[np.float64]

# Settings of the environment class that were renamed, and those that no longer exist and never
# affected the physics.
RENAMED = {"mount_types": "base_types"}
DROPPED = frozenset({"gripper_visualizations", "use_indicator_object"})
CONTROLLER_RENAMED = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}
# Low-dimensional observations, no window, and no episode limit of its own. A soft reset
# keeps the compiled model: milliseconds instead of a second.
FIXED = {
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "use_camera_obs": False,
    "camera_depths": False,
    "use_object_obs": True,
    "ignore_done": True,
    "hard_reset": False,
}


def make_arguments(env_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments for `robosuite.make`, without the task's name.

    Args:
        env_args: As robomimic wrote them; {} gives a Panda with robosuite's own controller.

    Raises:
        ConfigError: Controller settings that cannot be understood.
    """
    kwargs = {
        RENAMED.get(key, key): value
        for key, value in env_args.get("env_kwargs", {}).items()
        if key not in DROPPED
    }
    kwargs.setdefault("robots", ["Panda"])
    if isinstance(kwargs["robots"], str):
        kwargs["robots"] = [kwargs["robots"]]
    if len(kwargs["robots"]) != 1:
        raise ConfigError(f"env_args: robots are {kwargs['robots']}, and one was expected")
    config = _one(kwargs.get("controller_configs"))
    if config is not None:
        kwargs["controller_configs"] = composite_controller(config)
    if _is_old(env_args, config):
        # robosuite 1.5 skips parts of the physics' second pass by default.
        kwargs.setdefault("lite_physics", False)
    return {**kwargs, **FIXED}


def composite_controller(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return one robot's controller in the form of robosuite 1.5.

    Raises:
        ConfigError: Neither an arm's controller nor a composite one.
    """
    if "body_parts" in config:
        parts = dict(config["body_parts"])
        # robosuite's own files put the arms one level deeper than its environments accept.
        arms = parts.pop("arms", {})
        return {**config, "body_parts": {**parts, **arms}}
    if "type" not in config:
        raise ConfigError("env_args: controller_configs has neither 'body_parts' nor 'type'")
    arm = {CONTROLLER_RENAMED.get(key, key): value for key, value in config.items()}
    delta = arm.pop("control_delta", True)
    arm.setdefault("input_type", "delta" if delta else "absolute")
    # Before 1.5 motions and targets were given in the world's frame.
    arm.setdefault("input_ref_frame", "world")
    arm.setdefault("gripper", {"type": "GRIP"})
    return {"type": "BASIC", "body_parts": {"right": arm}}


def pose_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return `arguments` with a controller that takes absolute poses.

    A controller of motions gets its targets in the world's frame; one that took targets in the
    data keeps its frame.

    Raises:
        ConfigError: No controller is given, or one of another kind.
    """
    config, arm = arguments.get("controller_configs") or {}, _arm(arguments)
    if arm.get("type") != "OSC_POSE":
        raise ConfigError(
            "env_args: absolute poses need the controller OSC_POSE,"
            f" not {arm.get('type', 'the default one')}"
        )
    if arm.get("input_type") != "absolute":
        arm = {**arm, "input_type": "absolute", "input_ref_frame": "world"}
    parts = {**config["body_parts"], "right": arm}
    return {**arguments, "controller_configs": {**config, "body_parts": parts}}


def pose_command(action: Array, target: Array) -> Array:
    """Return what robosuite's controller takes for an absolute pose.

    Args:
        action: Position (3), orientation as six numbers (`core.rotations`), gripper.
        target: Rotation matrix (3, 3) of the controller's present target, which is kept where the
            six numbers are no rotation.

    Returns:
        Position (3), rotation vector in radians (3), gripper.
    """
    turn = rotation_of(action[3:9])
    if turn is None:
        turn = Rotation.from_matrix(target)
    return np.concatenate([action[:3], turn.as_rotvec(), action[9:]])


def action_spec(arguments: Mapping[str, Any], size: int) -> ActionSpec:
    """Describe what the environment made from `arguments` accepts."""
    return robosuite_action(_arm(arguments), size, robosuite_control_rate(arguments))


def _arm(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    config = arguments.get("controller_configs") or {}
    arm: Mapping[str, Any] = config.get("body_parts", {}).get("right", {})
    return arm


def _one(configs: Any) -> Mapping[str, Any] | None:
    if isinstance(configs, list) and len(configs) == 1:
        configs = configs[0]
    if configs is not None and not isinstance(configs, Mapping):
        raise ConfigError("env_args: controller_configs cannot be understood")
    return configs


def _is_old(env_args: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
    """Return whether robosuite before 1.5 wrote this; without a version, the controller tells."""
    before = is_before_robosuite_1_5(str(env_args.get("env_version", "")))
    return config is not None and "body_parts" not in config if before is None else before
