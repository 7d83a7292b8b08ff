"""Flies robosuite's arm along waypoints with an operator's habits; sees observations only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from lwdctl.core.records import FloatArray
from lwdctl.envs.robosuite_operators import Operator
from lwdctl.envs.robosuite_waypoints import JOBS, Array, Planner, Scene, Waypoint
from lwdctl.envs.simulator import Observation

# What a full action moves the target by in one step: meters, radians.
REACH, TURN = 0.05, 0.5
MAX_TURN = 0.4
# Farther from the hand than this, the object has slipped out of it.
LOST_DISTANCE = 0.07
# Of the noise that stays from step to step.
TREMOR_MEMORY = 0.8


class Pilot:
    """One episode of one operator; an `Expert`.

    Args:
        operator: Whose habits.
        task: `"Lift"` or `"PickPlaceCan"`.
        rng: Every draw of the episode.
    """

    def __init__(self, operator: Operator, task: str, rng: np.random.Generator) -> None:
        self._job = JOBS[task]
        self._habits = _hastened(operator, self._job.pace)
        self._rng = rng
        self._planner = Planner(self._habits, self._job, rng)
        self._linger = int(rng.integers(*operator.linger_steps))
        self._plan: list[Waypoint] = []
        self._steps = 0
        self._origin = np.zeros(3)
        self._angle = 0.0
        self._tremor = np.zeros(6)
        self._pause = 0
        self._solved = 0

    def act(self, observation: Observation) -> FloatArray:
        """Return the next action: motion (3), turn (3), grip, each in [-1, 1]."""
        scene = self._job.see(observation)
        self._follow(scene)
        leg = self._plan[0]
        goal = self._origin if leg.target is None else leg.target(scene)
        action = np.zeros(7)
        action[:3] = self._motion(goal - scene.hand, leg)
        action[3:6] = self._turn(scene)
        action[:6] = self._hesitated(action[:6])
        action[6] = leg.grip
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def finished(self, success: bool) -> bool:
        """End when the task has stayed solved for as long as this operator lingers."""
        self._solved = self._solved + 1 if success else 0
        return self._solved > self._linger

    def _follow(self, scene: Scene) -> None:
        """Go on to the next leg, or to a new attempt."""
        if not self._plan:
            self._try(scene, retry=False)
        leg = self._plan[0]
        self._steps += 1
        if leg.carries and np.linalg.norm(scene.thing - scene.hand) > LOST_DISTANCE:
            self._try(scene, retry=True)
            return
        goal = self._origin if leg.target is None else leg.target(scene)
        near = np.linalg.norm(goal - scene.hand) < leg.tolerance and self._steps > leg.least
        late = self._steps > leg.most
        if (near or late) and len(self._plan) > 1:
            self._begin(scene, self._plan[1:])
        elif late:
            self._try(scene, retry=True)

    def _try(self, scene: Scene, *, retry: bool) -> None:
        attempt = self._planner.attempt(scene, retry=retry)
        self._angle = attempt.angle
        self._begin(scene, attempt.legs)

    def _begin(self, scene: Scene, plan: list[Waypoint]) -> None:
        self._plan, self._steps, self._origin = plan, 0, scene.hand.copy()

    def _motion(self, offset: Array, leg: Waypoint) -> Array:
        habits = self._habits
        if habits.stepwise and np.linalg.norm(offset) > 0.03:
            shares = np.full(3, 0.15)
            shares[np.argmax(np.abs(offset))] = 1.0
            offset = offset * shares
        motion = habits.gain * offset / REACH
        motion = motion * min(1.0, leg.speed / (np.abs(motion).max() + 1e-9))
        drawn = self._rng.normal(0, habits.tremor, 6)
        self._tremor = TREMOR_MEMORY * self._tremor + np.sqrt(1 - TREMOR_MEMORY**2) * drawn
        motion = motion + self._tremor[:3] * (1.0 if leg.tolerance > 0.02 else 0.5)
        if habits.levels:
            motion = np.round(motion * habits.levels) / habits.levels
        return np.asarray(motion, dtype=np.float64)

    def _turn(self, scene: Scene) -> Array:
        """Turn towards a hand that points down, at the angle of this grasp."""
        down = Rotation.from_matrix(np.diag([1.0, -1.0, -1.0]))
        wanted = Rotation.from_rotvec([0.0, 0.0, self._angle]) * down
        error = (wanted * scene.turn.inv()).as_rotvec()
        turn = np.clip(0.6 * error / TURN, -MAX_TURN, MAX_TURN) + 0.15 * self._tremor[3:]
        return np.asarray(turn, dtype=np.float64)

    def _hesitated(self, motion: Array) -> Array:
        """Return the motion, or next to none during a pause."""
        habits, rng = self._habits, self._rng
        if self._pause > 0:
            self._pause -= 1
            return rng.normal(0, 0.1 * habits.tremor, 6)
        if rng.random() < habits.pause_rate:
            self._pause = int(rng.integers(*habits.pause_steps))
        return motion


def _hastened(operator: Operator, pace: float) -> Operator:
    """Return the same operator on a way so long that everybody hurries a little."""
    if pace == 1.0:
        return operator
    return replace(
        operator,
        speed=min(1.0, operator.speed * pace),
        carry_speed=min(1.0, operator.carry_speed * pace),
        gain=operator.gain * 1.2,
        tremor=operator.tremor * 0.8,
        pause_rate=operator.pause_rate * 0.5,
    )
