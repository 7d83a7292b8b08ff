"""gymnasium-robotics' Adroit hand: the hammer task, and the metrics that behaviors differ in.

The state is positions (33,), velocities (33,) and the board's position (3,), concatenated. The
reward is that of gymnasium-robotics, which from 1.2.1 to 1.4.2 adds a tenth of the distance
between palm and hammer instead of subtracting it; over 200 steps this makes a few points of about
13,000.

The five metrics are computed from observations alone, so that recorded data and rollouts compare:
how high the hammer was held, how far the nail was from its goal, and how hard it was hit. An
observation shows the hammer's position and the force on the nail; the distance follows from how far
the nail has moved. They need no simulator: gymnasium-robotics is imported when one is built.
"""
# gymnasium-robotics offers no public way to observe without a step.
# ruff: noqa: SLF001

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import MissingExtraError, install_extra
from lwdctl.core.records import ActionSpec, EnvSpec, FloatArray, ObservationSpec
from lwdctl.core.simulator_facts import (
    HAMMER,
    HAMMER_ACTION_SIZE,
    HAMMER_MAX_STEPS,
    HAMMER_OBSERVATION_SIZE,
    HAND_CONTROL_RATE,
    OBSERVATION,
)
from lwdctl.envs.mujoco_simulator import GymnasiumMujoco, build_environment, normalized_score
from lwdctl.envs.simulator import BehaviorMeasure, Metric, Observation, StillAction
from lwdctl.envs.table import check_tasks

POSITIONS, VELOCITIES, BOARD = 33, 33, 3
# Components of an observation: how far the nail is in the board, the height of the hammer's body
# (meters), and the force on the nail's head (newtons, clipped at 1).
NAIL_DEPTH, OBJECT_HEIGHT, NAIL_IMPACT = 26, 38, 45
# Depth at which the nail's head is at its goal, meters: by the model, head and goal are 0.101 and
# 0.010 from the board's middle.
GOAL_DEPTH = 0.091
HIGH_IMPACT, LIFTED = 0.8, 0.04

METRICS = (
    Metric("mean_object_height", "object_height", "mean"),
    Metric("mean_target_goal_distance", "target_goal_distance", "mean", failed=GOAL_DEPTH),
    Metric("max_nail_impact", "nail_impact", "max"),
    Metric("share_nail_impact_above_0.8", "nail_impact_above_0.8", "mean"),
    Metric("share_object_height_above_0.04", "object_height_above_0.04", "mean"),
)


def task_names() -> tuple[str, ...]:
    """Return the one task, by its Gymnasium id."""
    return (HAMMER,)


class AdroitSimulator(GymnasiumMujoco):
    """Take the hammer and drive the nail into the board.

    Actions are target angles of the joints, -1 to 1 of their ranges. The task is solved while the
    nail's head is within 1 cm of its goal. The score is D4RL's normalized return.

    Args:
        env: `settings` are not read; `max_steps` of 0 means 200.
        task: `"AdroitHandHammer-v1"`.

    Raises:
        ConfigError: Another task.
        MissingExtraError: gymnasium-robotics is not installed.
    """

    observations = (ObservationSpec(OBSERVATION, HAMMER_OBSERVATION_SIZE),)
    action = ActionSpec(
        HAMMER_ACTION_SIZE, "absolute", "normalized",
        (-1.0,) * HAMMER_ACTION_SIZE, (1.0,) * HAMMER_ACTION_SIZE, HAND_CONTROL_RATE,
    )  # fmt: skip
    metrics = (normalized_score("hammer"), *METRICS)

    @staticmethod
    def still_action(env: EnvSpec) -> StillAction:
        """Return what aims every joint at the angle that an observation shows."""
        del env
        _register_environments()
        ranges = build_environment(HAMMER).model.actuator_ctrlrange
        middle, half = ranges.mean(axis=1), np.diff(ranges)[:, 0] / 2

        def compute(observation: Observation) -> FloatArray:
            angles = observation[OBSERVATION][:HAMMER_ACTION_SIZE]
            target: FloatArray = np.clip((angles - middle) / half, -1.0, 1.0).astype(np.float32)
            return target

        return compute

    @staticmethod
    def behavior_measure(task: str) -> BehaviorMeasure:
        """Return the metrics of `hammer_metrics`."""
        del task
        return BehaviorMeasure(hammer_metrics, tuple(metric.name for metric in METRICS))

    def __init__(self, env: EnvSpec, task: str) -> None:
        check_tasks([task], task_names(), "environment 'adroit'")
        self.max_steps = env.max_steps or HAMMER_MAX_STEPS
        _register_environments()
        super().__init__(task, {}, body="Object", camera="fixed")
        self._own_board = self._board()

    def reset(self, seed: int) -> Observation:
        """Start the episode that `seed` fixes entirely, as the environment's own `reset` does."""
        # Its reset draws the board's height and leaves its other coordinates as they were.
        self._env.model.body_pos[self._env.target_body_id] = self._own_board
        observation, _ = self._env.reset(seed=seed)
        self._state = np.concatenate([self._env.state_vector(), self._board()])
        return self._observe(observation)

    def restore(self, state: npt.NDArray[np.float64], model: str = "") -> Observation:
        """Start from recorded positions, velocities and the board's position, concatenated.

        Raises:
            SimulatorError: Not a state of this task.
        """
        del model
        self._set_state(state, POSITIONS + VELOCITIES + BOARD)
        positions, velocities, board = np.split(self._state, [POSITIONS, POSITIONS + VELOCITIES])
        self._clear()
        self._env.set_env_state({"qpos": positions, "qvel": velocities, "board_pos": board})
        return self._observe(self._env._get_obs())

    def _board(self) -> npt.NDArray[np.float64]:
        board: npt.NDArray[np.float64] = self._env.model.body_pos[self._env.target_body_id].copy()
        return board

    def _numbers(self, observation: FloatArray) -> Mapping[str, float]:
        return {name: float(value) for name, value in hammer_numbers(observation).items()}


def hammer_numbers(observation: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the numbers that `METRICS` reduce, by source, for observations (..., obs).

    Raises:
        ValueError: Observations of another size.
    """
    if observation.shape[-1] != HAMMER_OBSERVATION_SIZE:
        raise ValueError(
            f"a hammer observation has {HAMMER_OBSERVATION_SIZE} components,"
            f" not {observation.shape[-1]}"
        )
    # In the precision of stored observations, so that files and rollouts agree on thresholds.
    seen = np.asarray(observation, dtype=np.float32).astype(np.float64)
    height, impact = seen[..., OBJECT_HEIGHT], seen[..., NAIL_IMPACT]
    return {
        "object_height": height,
        "target_goal_distance": np.abs(GOAL_DEPTH - seen[..., NAIL_DEPTH]),
        "nail_impact": impact,
        "nail_impact_above_0.8": (impact > HIGH_IMPACT).astype(np.float64),
        "object_height_above_0.04": (height > LIFTED).astype(np.float64),
    }


def hammer_metrics(observations: npt.NDArray[Any]) -> Mapping[str, float]:
    """Return the five metrics of one episode, by name.

    Args:
        observations: (time, obs), at least one row.

    Raises:
        ValueError: Observations of another size, or none.
    """
    if len(observations) == 0:
        raise ValueError("an episode has at least one observation")
    numbers = hammer_numbers(observations)
    return {
        item.name: float(
            numbers[item.source].max() if item.reduce == "max" else numbers[item.source].mean()
        )
        for item in METRICS
    }


def _register_environments() -> None:
    """Let Gymnasium know the environments of gymnasium-robotics.

    Raises:
        MissingExtraError: gymnasium-robotics is not installed.
    """
    # It prints at every import that the reward has changed, which is described above.
    printed = StringIO()
    try:
        with redirect_stderr(printed):
            import gymnasium_robotics
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"environment 'adroit' needs the package '{error.name}', which is not installed",
            install_extra("adroit"),
        ) from error
    for line in printed.getvalue().splitlines():
        if "reward functions were updated" not in line:
            print(line, file=sys.stderr)  # noqa: T201
    gymnasium.register_envs(gymnasium_robotics)
