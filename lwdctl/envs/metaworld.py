"""Metaworld v3 behind the `Simulator` contract.

Metaworld fixes an episode's start by one random vector (object position, goal), but takes
it from a cycle of 50 frozen ones or from a global generator, and ignores `reset(seed)`.
Here the vector comes from the seed alone and is the whole initial state: physics, goal and
observation history are rebuilt from it, so it gives the same episode in any process and
after any history.
"""
# Metaworld offers no public way to fix the start or to show the goal.
# ruff: noqa: SLF001

from __future__ import annotations

import sys
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import ActionSpec, EnvSpec, FloatArray, ObservationSpec
from lwdctl.core.seeding import generator
from lwdctl.core.simulator_facts import METAWORLD_CONTROL_RATE, METAWORLD_MAX_STEPS
from lwdctl.envs.mujoco_rendering import open_renderer
from lwdctl.envs.simulator import Metric, Observation, Step, UnstablePhysicsError
from lwdctl.envs.table import check_tasks

SUFFIX = "-v3"
ACTION = ActionSpec(4, "delta", "normalized", (-1.0,) * 4, (1.0,) * 4, METAWORLD_CONTROL_RATE)
OBSERVATIONS = (ObservationSpec("observation", 39),)

_WARNINGS = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


def task_names() -> tuple[str, ...]:
    """Return every Metaworld v3 task name, without the version suffix."""
    return tuple(name.removesuffix(SUFFIX) for name in ALL_V3_ENVIRONMENTS)


class MetaworldSimulator:
    """One Metaworld task with its goal in the last three observation components.

    Args:
        env: `settings` are not read; `max_steps` of 0 means Metaworld's 500.
        task: `"reach"` or `"reach-v3"`.
    """

    observations = OBSERVATIONS
    action = ACTION
    metrics = (Metric("final_success", "success", "last"),)

    def __init__(self, env: EnvSpec, task: str) -> None:
        self.task = task.removesuffix(SUFFIX)
        check_tasks([self.task], task_names(), "environment 'metaworld'")
        self.max_steps = env.max_steps or METAWORLD_MAX_STEPS
        self._env = _visible_goal_env(self.task + SUFFIX)
        self._env._get_state_rand_vec = self._start_vector
        self._rng: np.random.Generator | None = None
        self._vector = np.zeros(0)
        self._renderer: Any = None

    def reset(self, seed: int) -> Observation:
        """Start the episode that `seed` fixes entirely."""
        self._rng = generator("metaworld reset", self.task, seed)
        # The task's own reset draws, and draws again while it dislikes the result. The arm's
        # 250 physics frames are left out: the start is rebuilt below anyway.
        move_hand = self._env._reset_hand
        self._env._reset_hand = self._skip_hand
        try:
            self._env.reset_model()
        finally:
            self._env._reset_hand = move_hand
            self._rng = None
        return self.restore(self._vector)

    def restore(self, state: npt.NDArray[np.float64], model: str = "") -> Observation:
        """Start from the vector that `initial_state` returned."""
        del model
        low = self._env._random_reset_space.low
        if state.shape != low.shape:
            raise SimulatorError(
                f"an initial state of '{self.task}' has shape {low.shape}, not {state.shape}",
                "was it recorded on another task?",
            )
        self._vector = np.array(state, dtype=np.float64)
        # reset() applies the vector to the model, resets the physics and applies it again: the
        # arm's way to its start then meets the same model, whatever the last episode left.
        observation, _ = self._env.reset()
        self._env.data.warning.number[:] = 0
        return self._observe(observation)

    def initial_state(self) -> npt.NDArray[np.float64]:
        """Return the random vector of this episode (object position, goal)."""
        return self._vector.copy()

    def step(self, action: FloatArray) -> Step:
        """Apply one action (action,): 1 cm of hand motion per unit, and the gripper's effort.

        Raises:
            UnstablePhysicsError: MuJoCo reset a diverged state.
        """
        clipped = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        observation, reward, _, _, info = self._env.step(clipped)
        if any(self._env.data.warning[kind].number for kind in _WARNINGS):
            raise UnstablePhysicsError(f"the physics of '{self.task}' became unstable")
        success = bool(info["success"])
        return Step(
            observation=self._observe(observation),
            reward=float(reward),
            success=success,
            terminated=False,
            metrics={"success": float(success)},
        )

    def perturb(self, magnitude: float, rng: np.random.Generator) -> None:
        """Move the end effector's target by `magnitude` meters in a random direction."""
        if magnitude == 0:
            return
        direction = rng.normal(size=3)
        offset = magnitude * direction / np.linalg.norm(direction)
        moved = self._env.data.mocap_pos[0] + offset
        self._env.data.mocap_pos[0] = np.clip(moved, self._env.mocap_low, self._env.mocap_high)

    def render(self) -> npt.NDArray[np.uint8]:
        """Return an image (height, width, 3) of the table and the arm from its right.

        Raises:
            SimulatorError: No OpenGL backend works on this machine.
        """
        if self._renderer is None:
            self._renderer = open_renderer(self._env.model)
        self._renderer.update_scene(self._env.data, camera=_camera())
        image: npt.NDArray[np.uint8] = self._renderer.render()
        return image

    def close(self) -> None:
        """Free the renderer; the physics go with the object."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _start_vector(self) -> npt.NDArray[np.float64]:
        if self._rng is not None:
            space = self._env._random_reset_space
            self._vector = self._rng.uniform(space.low, space.high)
        # A copy: some tasks write into what they are given.
        return self._vector.copy()

    def _skip_hand(self) -> None:
        self._env.init_tcp = self._env.tcp_center

    @staticmethod
    def _observe(observation: npt.NDArray[np.float64]) -> Observation:
        return {"observation": observation.astype(np.float32)}


def _camera() -> Any:
    """Look at the middle of the table; Metaworld's own corner cameras stand on their heads."""
    camera = mujoco.MjvCamera()
    camera.lookat[:] = (0.0, 0.6, 0.15)
    camera.distance, camera.azimuth, camera.elevation = 1.5, 145.0, -30.0
    return camera


def _visible_goal_env(name: str) -> Any:
    env = ALL_V3_ENVIRONMENTS[name]()
    env._partially_observable = False
    # The space was cached while the goal was hidden and would clip it to zero.
    env.__dict__.pop("sawyer_observation_space", None)
    env._set_task_called = True
    env.max_path_length = sys.maxsize  # whoever steps counts; Metaworld would raise
    return env
