"""Facts about simulators that readers of recorded data and environment adapters share.

Each fact stands here once. The module imports no simulator, so a machine that only reads data
needs none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lwdctl.core.records import ActionSpec, ObservationSpec

# PushT, as gym-pusht simulates it and Diffusion Policy's replay buffers record it.
PUSHT_TASK = "push_t"
PUSHT_MAX_STEPS = 300
PUSHT_ARENA = 512.0
"""Side length of the arena in pixels."""
PUSHT_STATE_SIZE = 5
"""Agent x and y, block x and y (pixels), block angle (radians)."""
PUSHT_OBSERVATIONS = (
    ObservationSpec("agent_position", 2),
    ObservationSpec("block_position", 2),
    ObservationSpec("block_angle_sincos", 2),
    ObservationSpec("keypoint", 18, network=False),
)
PUSHT_ACTION = ActionSpec(
    2, "absolute", "pixels", (0.0, 0.0), (PUSHT_ARENA,) * 2, 10.0, reference="agent_position"
)

OBSERVATION = "observation"
"""Name of the observation of an environment that has a single array."""

# Metaworld v3: one physics frame is 2.5 ms, and an action lasts five of them.
METAWORLD_MAX_STEPS = 500
METAWORLD_CONTROL_RATE = 80.0
METAWORLD_ACTION = ActionSpec(
    4, "delta", "normalized", (-1.0,) * 4, (1.0,) * 4, METAWORLD_CONTROL_RATE, gripper=(3,)
)

# robosuite, as robomimic's data know it.
ROBOSUITE_CONTROL_RATE = 20.0
ROBOSUITE_LEAST_ACTION = 3
"""Components of the shortest action of an arm: a position without a gripper."""
ROBOSUITE_NETWORK_KEYS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
ROBOSUITE_TASKS = ("Lift", "PickPlaceCan", "NutAssemblySquare", "TwoArmTransport", "ToolHang")
"""The tasks that robomimic gives an episode limit for."""
ROBOSUITE_MAX_STEPS = {"TwoArmTransport": (700, 1100), "ToolHang": (700, 700)}
"""robomimic's episode limits for the data of one operator (ph) and of several (mh)."""
ROBOSUITE_DEFAULT_MAX_STEPS = (400, 500)
ROBOSUITE_REACH = 2.0
"""Meters from the robot's base that no reachable position exceeds."""
_POSE_LIMITS = (ROBOSUITE_REACH,) * 3 + (math.tau,) * 3 + (1.0,)


def is_before_robosuite_1_5(version: str) -> bool | None:
    """Return whether `env_version` is one before 1.5, or None where it is no version number."""
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return (int(parts[0]), int(parts[1])) < (1, 5)


def has_absolute_targets(arm: Mapping[str, Any]) -> bool:
    """Return whether an arm's controller takes targets instead of motions.

    Up to robosuite 1.4 the setting is `control_delta`, from 1.5 on `input_type`.
    """
    return not arm.get("control_delta", True) or arm.get("input_type") == "absolute"


_NETWORK_KEY = re.compile(
    r"object|robot\d+_((right_|left_)?(eef_pos|eef_quat|gripper_qpos)"
    r"|base_pos|base_quat|base_to_(right_|left_)?eef_(pos|quat))"
)


def robosuite_network_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the observation keys that networks see by default, of every robot and arm.

    These are the objects and each arm's end effector and gripper; of a robot that drives, its base
    as well. The order is that of `ROBOSUITE_NETWORK_KEYS`, robot after robot.

    Args:
        keys: The keys that a file holds.

    Returns:
        () where the keys are not robosuite's: no robot's end effector is among them.
    """
    found = sorted(key for key in keys if _NETWORK_KEY.fullmatch(key))
    if not any("eef_pos" in key for key in found):
        return ()
    return tuple(sorted(found, key=lambda key: (key != "object", key.partition("_")[0], key)))


def robosuite_control_rate(arguments: Mapping[str, Any]) -> float:
    """Return the actions per second of the environment made from the keyword `arguments`."""
    return float(arguments.get("control_freq", ROBOSUITE_CONTROL_RATE))


def robosuite_action(arm: Mapping[str, Any], size: int, control_rate: float) -> ActionSpec:
    """Describe the actions of robosuite controllers.

    robosuite sets no limits on absolute targets. Theirs are wide enough for any reachable one: 2 m
    around the base, a full turn, and the gripper's own [-1, 1]; none where an action commands more
    than arms and grippers.

    Args:
        arm: Settings of the (first) arm's controller; {} stands for robosuite's default.
        size: Components of an action.
        control_rate: Actions per second.
    """
    controller = str(arm.get("type", "OSC_POSE"))
    if controller == "JOINT_TORQUE" or not has_absolute_targets(arm):
        semantics = "torque" if controller == "JOINT_TORQUE" else "delta"
        low, high = (-1.0,) * size, (1.0,) * size
        per_arm = len(_POSE_LIMITS) if controller.endswith("_POSE") else size
        # Behind one arm and its gripper, a size of another multiple holds other parts.
        last = size if size % per_arm == 0 else per_arm
        gripper = tuple(range(per_arm - 1, min(last, size), per_arm))
        return ActionSpec(size, semantics, "normalized", low, high, control_rate, gripper=gripper)
    if controller.endswith("_POSE") and size % len(_POSE_LIMITS) == 0:
        high = _POSE_LIMITS * (size // len(_POSE_LIMITS))
    elif controller.endswith("_POSE") or not controller.startswith(("OSC_", "JOINT_")):
        # Parts beside the arms, such as a base or fingers, are not known.
        return ActionSpec(size, "absolute", "unknown", (), (), control_rate, limits="")
    else:
        high = (*(math.tau,) * (size - 1), 1.0)
    low = tuple(-value for value in high)
    return ActionSpec(size, "absolute", "meters and radians", low, high, control_rate)


def robosuite_pose_action(control_rate: float) -> ActionSpec:
    """Describe absolute poses (10): position (3), orientation as six numbers, gripper.

    The six numbers are those of `core.rotations`.
    """
    high = (ROBOSUITE_REACH,) * 3 + (1.0,) * 7
    low = tuple(-value for value in high)
    return ActionSpec(len(high), "absolute", "meters and a 6-D rotation", low, high, control_rate)


REFERENCE_RETURNS = {
    "ant": (-325.6, 3879.7),
    "door": (-56.512833, 2880.5693087298737),
    "halfcheetah": (-280.178953, 12135.0),
    "hammer": (-274.856578, 12794.134825156867),
    "hopper": (-20.272305, 3234.3),
    "pen": (96.262799, 3076.8331017826877),
    "relocate": (-6.425911, 4233.877797728884),
    "walker2d": (1.629008, 4592.3),
}
"""Mean returns of a random policy and of the expert, from `d4rl/infos.py` of Fu et al., D4RL:
datasets for deep data-driven reinforcement learning (2020); the same for its v0, v1 and v2."""


@dataclass(frozen=True)
class GymEnvironment:
    """A Gymnasium environment that D4RL's and Minari's data come from.

    Attributes:
        id: Gymnasium id, of the version whose physics the data match.
        adapter: Row of the environment table.
        action_size: Components of an action; all are normalized to [-1, 1].
        observation_sizes: Observation sizes, each with the constructor arguments that give it.
        max_steps: Episode limit in steps.
        control_rate: Actions per second.
        semantics: What an action is, as in `ActionSpec.semantics`.
        observed_positions: First and one past the last component of `qpos` that an observation
            begins with.
        state_keys: Arrays under `infos` that restore a state beside `qpos` and `qvel`.
    """

    id: str
    adapter: str
    action_size: int
    observation_sizes: Mapping[int, Mapping[str, Any]]
    max_steps: int
    control_rate: float
    semantics: str
    observed_positions: tuple[int, int]
    state_keys: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """Lower-case name without version."""
        return self.id.partition("-")[0].lower()


LOCOMOTION_MAX_STEPS = 1000
ANT_CONTACT_FORCES = 84
"""The last components of Ant's longer observation."""
HAND_CONTROL_RATE = 100.0
HAMMER = "AdroitHandHammer-v1"
HAMMER_MAX_STEPS = 200
HAMMER_OBSERVATION_SIZE = 46
HAMMER_ACTION_SIZE = 26


def _locomotion(
    env_id: str,
    action_size: int,
    control_rate: float,
    positions: tuple[int, int],
    sizes: Mapping[int, Mapping[str, Any]],
) -> GymEnvironment:
    return GymEnvironment(
        env_id,
        "mujoco",
        action_size,
        sizes,
        LOCOMOTION_MAX_STEPS,
        control_rate,
        "torque",
        positions,
    )


def _hand(
    env_id: str,
    action_size: int,
    observation_size: int,
    max_steps: int,
    positions: tuple[int, int],
    *state_keys: str,
) -> GymEnvironment:
    return GymEnvironment(
        env_id,
        "adroit",
        action_size,
        {observation_size: {}},
        max_steps,
        HAND_CONTROL_RATE,
        "absolute",
        positions,
        state_keys,
    )


GYM_ENVIRONMENTS = (
    _locomotion("HalfCheetah-v4", 6, 20.0, (1, 9), {17: {}}),
    _locomotion("Hopper-v4", 3, 125.0, (1, 6), {11: {}}),
    _locomotion("Walker2d-v4", 6, 125.0, (1, 9), {17: {}}),
    _locomotion(
        "Ant-v4", 8, 20.0, (2, 15), {27: {}, 27 + ANT_CONTACT_FORCES: {"use_contact_forces": True}}
    ),
    _hand(
        HAMMER, HAMMER_ACTION_SIZE, HAMMER_OBSERVATION_SIZE, HAMMER_MAX_STEPS, (0, 27), "board_pos"
    ),
    _hand("AdroitHandDoor-v1", 28, 39, 200, (1, 28), "door_body_pos"),
    _hand("AdroitHandPen-v1", 24, 45, 100, (0, 24), "desired_orien"),
    _hand("AdroitHandRelocate-v1", 30, 39, 200, (0, 30), "obj_pos", "target_pos"),
)
