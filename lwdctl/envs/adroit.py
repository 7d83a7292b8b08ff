"""gymnasium-robotics' Adroit hand behind the `Simulator` contract: the hammer task.

The state is positions (33,), velocities (33,) and the board's position (3,), laid end to end. The
reward is that of gymnasium-robotics, which from 1.2.1 to 1.4.2 gives a tenth of the distance
between palm and hammer instead of taking it; over 200 steps this is worth a few points of about
13,000.
"""
# gymnasium-robotics offers no public way to observe without a step.
# ruff: noqa: SLF001

from __future__ import annotations

import sys
from contextlib import redirect_stderr
from io import StringIO

import gymnasium
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import ActionSpec, EnvSpec, FloatArray, ObservationSpec
from lwdctl.core.simulator_facts import (
    HAMMER,
    HAMMER_ACTION_SIZE,
    HAMMER_MAX_STEPS,
    HAMMER_OBSERVATION_SIZE,
    HAND_CONTROL_RATE,
)
from lwdctl.envs.d4rl_score import normalized_score
from lwdctl.envs.gymnasium_scene import GymnasiumScene
from lwdctl.envs.hammer_metrics import METRICS, hammer_metrics, hammer_numbers
from lwdctl.envs.simulator import BehaviorMeasure, Observation, Step
from lwdctl.envs.table import check_tasks

# It prints at every import that the reward has changed, which is said above.
_said = StringIO()
with redirect_stderr(_said):
    import gymnasium_robotics
for _line in _said.getvalue().splitlines():
    if "reward functions were updated" not in _line:
        print(_line, file=sys.stderr)  # noqa: T201
gymnasium.register_envs(gymnasium_robotics)

OBSERVATION = "observation"
POSITIONS, VELOCITIES, BOARD = 33, 33, 3


def task_names() -> tuple[str, ...]:
    """Return the one task, by its Gymnasium id."""
    return (HAMMER,)


class AdroitSimulator:
    """Take the hammer and drive the nail into the board.

    It is solved while the nail's head is within 1 cm of its goal. The score is D4RL's normalized
    return; the behavior metrics are those of `hammer_metrics`.

    Args:
        env: `settings` are not read; `max_steps` of 0 means 200.
        task: `"AdroitHandHammer-v1"`.

    Raises:
        ConfigError: Another task.
    """

    observations = (ObservationSpec(OBSERVATION, HAMMER_OBSERVATION_SIZE),)
    action = ActionSpec(
        HAMMER_ACTION_SIZE, "absolute", "normalized",
        (-1.0,) * HAMMER_ACTION_SIZE, (1.0,) * HAMMER_ACTION_SIZE, HAND_CONTROL_RATE,
    )  # fmt: skip
    metrics = (normalized_score("hammer"), *METRICS)

    @staticmethod
    def behavior_measure(task: str) -> BehaviorMeasure:
        """Return the metrics of `hammer_metrics`, from observations alone."""
        del task
        return BehaviorMeasure(hammer_metrics, tuple(metric.name for metric in METRICS))

    def __init__(self, env: EnvSpec, task: str) -> None:
        check_tasks([task], task_names(), "environment 'adroit'")
        self.max_steps = env.max_steps or HAMMER_MAX_STEPS
        self._scene = GymnasiumScene(task, {}, pushed="Object", camera="fixed")
        self._env = self._scene.env
        self._own_board = self._board()
        self._state = np.zeros(0)

    def reset(self, seed: int) -> Observation:
        """Start the episode that `seed` fixes entirely, as the environment's own `reset` does."""
        # Its reset draws the board's height and leaves the rest where the last episode had it.
        self._env.model.body_pos[self._env.target_body_id] = self._own_board
        observation, _ = self._env.reset(seed=seed)
        self._state = np.concatenate([self._env.state_vector(), self._board()])
        return self._observe(observation)

    def restore(self, state: npt.NDArray[np.float64], model: str = "") -> Observation:
        """Start from recorded positions, velocities and the board's position, laid end to end.

        Raises:
            SimulatorError: Not a state of this task.
        """
        del model
        size = POSITIONS + VELOCITIES + BOARD
        if state.shape != (size,):
            raise SimulatorError(
                f"a state of '{HAMMER}' has shape ({size},), not {state.shape}",
                "was it recorded on another task?",
            )
        self._state = np.array(state, dtype=np.float64)
        positions, velocities, board = np.split(self._state, [POSITIONS, POSITIONS + VELOCITIES])
        self._scene.clear()
        self._env.set_env_state({"qpos": positions, "qvel": velocities, "board_pos": board})
        return self._observe(self._env._get_obs())

    def initial_state(self) -> npt.NDArray[np.float64]:
        """Return the state this episode started from."""
        return self._state.copy()

    def step(self, action: FloatArray) -> Step:
        """Apply one action (action,): target angles of the joints, -1 to 1 of their ranges.

        Raises:
            UnstablePhysicsError: MuJoCo reset a diverged state.
        """
        raw, reward, terminated, info = self._scene.step(action)
        seen = self._observe(raw)
        numbers = hammer_numbers(seen[OBSERVATION])
        return Step(
            observation=seen,
            reward=reward,
            success=bool(info["success"]),
            terminated=terminated,
            metrics={"reward": reward, **{name: float(value) for name, value in numbers.items()}},
        )

    def perturb(self, magnitude: float, rng: np.random.Generator) -> None:
        """Push the hammer with `magnitude` newtons in a random direction for a step of 10 ms."""
        if magnitude == 0:
            return
        direction = rng.normal(size=3)
        self._scene.push(magnitude * direction / np.linalg.norm(direction))

    def render(self) -> npt.NDArray[np.uint8]:
        """Return an image (height, width, 3) of the hand and the board.

        Raises:
            SimulatorError: No OpenGL backend works on this machine.
        """
        return self._scene.render()

    def close(self) -> None:
        """Free the simulator."""
        self._scene.close()

    def _board(self) -> npt.NDArray[np.float64]:
        board: npt.NDArray[np.float64] = self._env.model.body_pos[self._env.target_body_id].copy()
        return board

    @staticmethod
    def _observe(observation: npt.NDArray[np.float64]) -> Observation:
        return {OBSERVATION: observation.astype(np.float32)}
