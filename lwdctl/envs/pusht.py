"""gym-pusht behind the `Simulator` contract, with the keys of the public PushT data."""
# gym-pusht offers no public way to set a state exactly.
# ruff: noqa: SLF001

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import EnvSpec, FloatArray
from lwdctl.core.simulator_facts import (
    PUSHT_ACTION,
    PUSHT_ARENA,
    PUSHT_MAX_STEPS,
    PUSHT_OBSERVATIONS,
    PUSHT_STATE_SIZE,
    PUSHT_TASK,
)
from lwdctl.envs.simulator import Metric, Observation, Step
from lwdctl.envs.table import check_tasks

# pygame greets on stdout, which belongs to results.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from gym_pusht.envs.pusht import PushTEnv

# The nine points of the block whose positions the public data records, in the block's own
# frame; measured on that data (median over its 25,650 rows, spread 0.03 pixels).
KEYPOINTS = np.array(
    [
        [9.270, 90.041],
        [-60.983, -1.187],
        [60.913, -1.393],
        [-0.271, 25.544],
        [-14.065, 122.816],
        [39.003, 32.857],
        [-39.966, 32.730],
        [-16.824, 62.863],
        [23.541, -1.700],
    ]
)


def task_names() -> tuple[str, ...]:
    """Return the one task."""
    return (PUSHT_TASK,)


class PushTSimulator:
    """Push the T onto its target with a disc that follows target positions.

    The state is (agent x, agent y, block x, block y, block angle), pixels and radians, at
    rest. The overlap is clip(covered fraction of the target / 0.95, 0, 1).
    """

    observations = PUSHT_OBSERVATIONS
    action = PUSHT_ACTION
    metrics = (Metric("max_overlap", "overlap", "max"), Metric("final_overlap", "overlap", "last"))

    def __init__(self, env: EnvSpec, task: str) -> None:
        check_tasks([task], task_names(), "environment 'pusht'")
        self.max_steps = env.max_steps or PUSHT_MAX_STEPS
        self._env: Any = PushTEnv(obs_type="state", render_mode="rgb_array")
        self._state = np.zeros(PUSHT_STATE_SIZE)

    def reset(self, seed: int) -> Observation:
        """Start the episode that `seed` fixes entirely."""
        self._env.reset(seed=seed)
        body = self._env.block
        # gym-pusht lets the physics run once after its draw. Starting again at rest from where
        # that led makes the five numbers the whole state.
        return self.restore(np.array([*self._env.agent.position, *body.position, body.angle]))

    def restore(self, state: npt.NDArray[np.float64], model: str = "") -> Observation:
        """Start at rest from a recorded state (5,)."""
        del model
        if state.shape != (PUSHT_STATE_SIZE,):
            raise SimulatorError(
                f"a PushT state has shape ({PUSHT_STATE_SIZE},), not {state.shape}"
            )
        self._state = np.array(state, dtype=np.float64)
        self._env._setup()
        self._env._last_action = None  # it would be drawn
        agent, block = self._env.agent, self._env.block
        agent.position, agent.velocity = self._state[:2].tolist(), (0.0, 0.0)
        # Turning is about the center of mass and moves the block's origin: angle first.
        block.angle = float(self._state[4])
        block.position = self._state[2:4].tolist()
        block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
        self._env.space.reindex_shapes_for_body(agent)
        self._env.space.reindex_shapes_for_body(block)
        return self._observe()

    def initial_state(self) -> npt.NDArray[np.float64]:
        """Return the five numbers this episode started from."""
        return self._state.copy()

    def state_at(self, observation: Observation) -> npt.NDArray[np.float64]:
        """Return the state (5,) that an observation shows; its speeds are not seen and are 0."""
        sine, cosine = observation["block_angle_sincos"]
        places = (observation["agent_position"], observation["block_position"])
        return np.array([*np.concatenate(places), np.arctan2(sine, cosine)], dtype=np.float64)

    def step(self, action: FloatArray) -> Step:
        """Move towards the target position `action` (2,) for a tenth of a second."""
        target = np.clip(np.asarray(action, dtype=np.float64), 0.0, PUSHT_ARENA)
        _, reward, terminated, _, _ = self._env.step(target)
        # The area's last bit depends on where the polygons lie in memory.
        overlap = round(float(reward), 9)
        return Step(
            observation=self._observe(),
            reward=overlap,
            success=bool(terminated),
            terminated=bool(terminated),
            metrics={"overlap": overlap},
        )

    def perturb(self, magnitude: float, rng: np.random.Generator) -> None:
        """Displace the block by `magnitude` pixels in a random direction, inside the arena."""
        if magnitude == 0:
            return
        angle = rng.uniform(-np.pi, np.pi)
        offset = magnitude * np.array([np.cos(angle), np.sin(angle)])
        block = self._env.block
        block.position = np.clip(np.array(block.position) + offset, 0.0, PUSHT_ARENA).tolist()
        self._env.space.reindex_shapes_for_body(block)

    def render(self) -> npt.NDArray[np.uint8]:
        """Return an image (680, 680, 3)."""
        image: npt.NDArray[np.uint8] = self._env.render()
        return image

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    def _observe(self) -> Observation:
        agent, block = self._env.agent.position, self._env.block
        position, angle = np.array(block.position), block.angle
        sine, cosine = np.sin(angle), np.cos(angle)
        turn = np.array([[cosine, -sine], [sine, cosine]])
        return {
            "agent_position": np.array(agent, dtype=np.float32),
            "block_position": position.astype(np.float32),
            "block_angle_sincos": np.array([sine, cosine], dtype=np.float32),
            "keypoint": (KEYPOINTS @ turn.T + position).astype(np.float32).ravel(),
        }
