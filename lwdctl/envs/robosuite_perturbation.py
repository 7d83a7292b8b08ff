"""robosuite's perturbation: the end effector is displaced between two steps.

The hand moves along a straight line and turns about one axis, in pieces of at most 2.5 mm; each
piece is solved for the arm's joints by damped least squares. What the hand holds moves with it. The
displacement ends early at an obstacle and at the end of the arm's reach, so that no bodies
interpenetrate, which MuJoCo would resolve with huge forces.
"""
# robosuite offers no public way to its joint indices.
# ruff: noqa: SLF001

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

Array = npt.NDArray[np.float64]

# 1, 2 and 4 cm go with 5, 10 and 20 degrees.
RADIANS_PER_METER = math.radians(5.0) / 0.01
PIECE = 0.0025
ITERATIONS = 30
DAMPING, LEAST_DAMPING = 0.1, 1e-8
# Of one joint in one iteration, radians.
LONGEST = 0.1
TOLERANCE = 1e-6
# Beyond the arm's reach the solution jumps: a piece is not taken where it misses its pose by more
# than this (meters and radians), or moves a joint by more than this (radians).
LARGEST_ERROR = 1e-3
LARGEST_TURN = 0.5
# In rest and in a grasp, objects interpenetrate by about a millimeter.
DEEPEST = 0.004


def displace_hand(env: Any, magnitude: float, rng: np.random.Generator) -> None:
    """Displace the end effector of a robosuite environment's first robot.

    Args:
        env: The environment, at any time of an episode.
        magnitude: Length of the translation in meters; the rotation is 5 degrees a centimeter.
            Directions of both are uniform and independent. 0 changes and draws nothing.
        rng: Where the directions come from.
    """
    if magnitude == 0:
        return
    translation = magnitude * _direction(rng)
    rotation = magnitude * RADIANS_PER_METER * _direction(rng)
    hand = _Hand(env)
    position, turn = hand.pose()
    pieces = math.ceil(magnitude / PIECE - 1e-9)
    for piece in range(1, pieces + 1):
        fraction = piece / pieces
        target = Rotation.from_rotvec(fraction * rotation).as_matrix() @ turn
        if not hand.move_to(position + fraction * translation, target):
            break
    # The controller would not read the new pose before its first step.
    env.robots[0].part_controllers[env.robots[0].arms[0]].update(force=True)


def _direction(rng: np.random.Generator) -> Array:
    vector = rng.normal(size=3)
    unit: Array = vector / np.linalg.norm(vector)
    return unit


class _Hand:
    """The arm, its hand and what it holds, as MuJoCo sees them."""

    def __init__(self, env: Any) -> None:
        robot = env.robots[0]
        arm = robot.arms[0]
        self._model, self._data = env.sim.model._model, env.sim.data._data
        # After a step, poses are still those before its last substep.
        mujoco.mj_forward(self._model, self._data)
        self._site = robot.eef_site_id[arm]
        joints = robot._ref_arm_joint_indexes
        self._positions = self._model.jnt_qposadr[joints]
        self._velocities = self._model.jnt_dofadr[joints]
        limited = self._model.jnt_limited[joints].astype(bool)
        self._low = np.where(limited, self._model.jnt_range[joints, 0], -np.inf)
        self._high = np.where(limited, self._model.jnt_range[joints, 1], np.inf)
        self._held = [
            self._model.joint(item.joints[0]).id
            for item in env.model.mujoco_objects
            if item.joints and env._check_grasp(gripper=robot.gripper[arm], object_geoms=item)
        ]
        roots = [self._model.body_rootid[self._model.site_bodyid[self._site]]]
        roots += [self._model.body_rootid[self._model.jnt_bodyid[joint]] for joint in self._held]
        self._moving = np.isin(self._model.body_rootid[self._model.geom_bodyid], roots)

    def pose(self) -> tuple[Array, Array]:
        """Return position (3,) and orientation (3, 3)."""
        turn = self._data.site_xmat[self._site].reshape(3, 3)
        return self._data.site_xpos[self._site].copy(), turn.copy()

    def move_to(self, position: Array, turn: Array) -> bool:
        """Move there; stay and return False where it cannot be reached or is occupied."""
        before, pose, pressed = self._data.qpos.copy(), self.pose(), self._pressed()
        self._solve(position, turn)
        turned = np.abs(self._data.qpos - before)[self._positions].max()
        error = np.linalg.norm(self._error(position, turn))
        self._carry(pose)
        mujoco.mj_forward(self._model, self._data)
        reached = error < LARGEST_ERROR and turned < LARGEST_TURN
        if reached and self._pressed() <= max(pressed, DEEPEST):
            return True
        self._data.qpos[:] = before
        mujoco.mj_forward(self._model, self._data)
        return False

    def _error(self, position: Array, turn: Array) -> Array:
        """Return the error to a pose: meters (3,) and a rotation vector (3,)."""
        here, now = self.pose()
        rest = Rotation.from_matrix(turn @ now.T).as_rotvec()
        error: Array = np.concatenate([position - here, rest])
        return error

    def _solve(self, position: Array, turn: Array) -> None:
        """Set the joints by damped least squares, kept within their limits."""
        jacobian = np.zeros((6, self._model.nv))
        for _ in range(ITERATIONS):
            error = self._error(position, turn)
            if np.linalg.norm(error) < TOLERANCE:
                return
            mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
            part = jacobian[:, self._velocities]
            # Damped by the error (Levenberg and Marquardt): near a singularity a constant would
            # stop short of the pose.
            damped = part @ part.T + (DAMPING * error @ error + LEAST_DAMPING) * np.eye(6)
            change = part.T @ np.linalg.solve(damped, error)
            change *= min(1.0, LONGEST / np.abs(change).max())
            joints = self._data.qpos[self._positions] + change
            self._data.qpos[self._positions] = np.clip(joints, self._low, self._high)
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)

    def _carry(self, before: tuple[Array, Array]) -> None:
        """Move the held object as the hand has moved since it was at `before`."""
        position, turn = self.pose()
        moved = turn @ before[1].T
        for joint in self._held:
            start = self._model.jnt_qposadr[joint]
            free = self._data.qpos[start : start + 7]
            free[:3] = position + moved @ (free[:3] - before[0])
            own = Rotation.from_quat(free[3:], scalar_first=True)
            free[3:] = (Rotation.from_matrix(moved) * own).as_quat(scalar_first=True)

    def _pressed(self) -> float:
        """Return how deep the arm or the held object penetrates the rest, in meters."""
        contacts = self._data.contact
        crossing = self._moving[contacts.geom1] != self._moving[contacts.geom2]
        return float(-contacts.dist[crossing].min(initial=0.0))
