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

from lwdctl.core.records import EnvSpec, FloatArray, ObservationSpec
from lwdctl.core.seeding import generator
from lwdctl.core.simulator_facts import METAWORLD_ACTION, METAWORLD_MAX_STEPS, OBSERVATION
from lwdctl.envs.mujoco_simulator import MujocoSimulator
from lwdctl.envs.simulator import Metric, Observation, Step
from lwdctl.envs.table import check_tasks

SUFFIX = "-v3"


def task_names() -> tuple[str, ...]:
    """Return every Metaworld v3 task name, without the version suffix."""
    return tuple(name.removesuffix(SUFFIX) for name in ALL_V3_ENVIRONMENTS)


class MetaworldSimulator(MujocoSimulator):
    """One Metaworld task with its goal in the last three observation components.

    An initial state is the random vector of an episode (object position, goal).

    Args:
        env: `settings` are not read; `max_steps` of 0 means Metaworld's 500.
        task: `"reach"` or `"reach-v3"`.
    """

    observations = (ObservationSpec(OBSERVATION, 39),)
    action = METAWORLD_ACTION
    metrics = (Metric("final_success", "success", "last"),)

    def __init__(self, env: EnvSpec, task: str) -> None:
        task = task.removesuffix(SUFFIX)
        check_tasks([task], task_names(), "environment 'metaworld'")
        super().__init__(task, _visible_goal_env(task + SUFFIX), _camera())
        self.max_steps = env.max_steps or METAWORLD_MAX_STEPS
        self._env._get_state_rand_vec = self._start_vector
        self._rng: np.random.Generator | None = None

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
        return self.restore(self._state)

    def restore(self, state: npt.NDArray[np.float64], model: str = "") -> Observation:
        """Start from the vector that `initial_state` returned."""
        del model
        self._set_state(state, len(self._env._random_reset_space.low))
        # reset() applies the vector to the model, resets the physics and applies it again: the
        # arm's way to its start then meets the same model, whatever the last episode left.
        observation, _ = self._env.reset()
        self._env.data.warning.number[:] = 0
        return self._observe(observation)

    def step(self, action: FloatArray) -> Step:
        """Apply one action (action,): 1 cm of hand motion per unit, and the gripper's effort.

        Raises:
            UnstablePhysicsError: MuJoCo reset a diverged state.
        """
        clipped = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        observation, reward, _, _, info = self._env.step(clipped)
        self._check_stable()
        success = bool(info["success"])
        metrics = {"success": float(success)}
        return Step(self._observe(observation), float(reward), success, False, metrics)

    def perturb(self, magnitude: float, rng: np.random.Generator) -> None:
        """Move the end effector's target by `magnitude` meters in a random direction."""
        if magnitude == 0:
            return
        direction = rng.normal(size=3)
        offset = magnitude * direction / np.linalg.norm(direction)
        moved = self._env.data.mocap_pos[0] + offset
        self._env.data.mocap_pos[0] = np.clip(moved, self._env.mocap_low, self._env.mocap_high)

    def _start_vector(self) -> npt.NDArray[np.float64]:
        if self._rng is not None:
            space = self._env._random_reset_space
            self._state = self._rng.uniform(space.low, space.high)
        # A copy: some tasks write into what they are given.
        return self._state.copy()

    def _skip_hand(self) -> None:
        self._env.init_tcp = self._env.tcp_center

    @staticmethod
    def _observe(observation: npt.NDArray[np.float64]) -> Observation:
        return {OBSERVATION: observation.astype(np.float32)}


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
