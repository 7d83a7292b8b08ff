"""How the task of robosuite's scripted operators is done: waypoints of the hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from lwdctl.envs.robosuite_operators import Operator
from lwdctl.envs.simulator import Observation

Array = npt.NDArray[np.float64]
OPEN, CLOSED = -1.0, 1.0
DESCENT_SPEED = 0.6
RETRY_CARE = 0.35


@dataclass(frozen=True)
class Scene:
    """What a pilot sees: positions in meters, the hand's turn, the object's angle about z."""

    hand: Array
    turn: Rotation
    thing: Array
    angle: float


@dataclass(frozen=True)
class Waypoint:
    """One leg of the way.

    Attributes:
        target: Where the hand should be; None is where it was when the leg began.
        grip: `OPEN` or `CLOSED`.
        tolerance: Meters at which it counts as reached.
        speed: Share of the controller's limit.
        least: Steps it lasts at least.
        most: Steps after which it is given up.
        carries: Whether the object should be in the hand.
    """

    target: Callable[[Scene], Array] | None
    grip: float
    tolerance: float
    speed: float
    least: int = 0
    most: int = 90
    carries: bool = False


@dataclass(frozen=True)
class Job:
    """One task as a pilot knows it; lengths in meters.

    Attributes:
        position: Where `object` holds the object's position.
        quaternion: Where it holds its orientation, or None where the angle does not matter.
        floor: Height that `Operator.carry` counts from.
        hover: Added to `Operator.hover`.
        grasp: Added to `Operator.grasp`.
        fumble: How far above the object a fumbled grasp closes.
        goal: Where the object is set down (x, y), or None where lifting it is all.
        pace: Factor on speeds, for a long way.
    """

    position: slice
    quaternion: slice | None
    floor: float
    hover: float = 0.0
    grasp: float = 0.0
    fumble: float = 0.05
    goal: tuple[float, float] | None = None
    pace: float = 1.0

    def see(self, observation: Observation) -> Scene:
        """Read what matters out of an observation."""
        thing = observation["object"].astype(np.float64)
        angle = 0.0
        if self.quaternion is not None:
            angle = _square_angle(Rotation.from_quat(thing[self.quaternion]))
        return Scene(
            hand=observation["robot0_eef_pos"].astype(np.float64),
            turn=Rotation.from_quat(observation["robot0_eef_quat"].astype(np.float64)),
            thing=thing[self.position],
            angle=angle,
        )


# Within the can's bin (x 0.1 to 0.295, y 0.28 to 0.525 in robosuite's PickPlace) the part that
# the arm reaches without stretching.
CAN_GOAL = (0.16, 0.36)
JOBS = {
    "Lift": Job(slice(0, 3), slice(3, 7), floor=0.82),
    "PickPlaceCan": Job(
        slice(7, 10), None, floor=1.02, hover=0.05, grasp=0.015, fumble=0.1, goal=CAN_GOAL,
        pace=1.6,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """One grasp and what follows it.

    Attributes:
        legs: The way.
        angle: The hand's turn about z, radians.
    """

    legs: list[Waypoint]
    angle: float


class Planner:
    """Plans one operator's attempts in one episode.

    Args:
        habits: The operator, at the job's pace.
        job: The task.
        rng: Draws what habits leave open.
    """

    def __init__(self, habits: Operator, job: Job, rng: np.random.Generator) -> None:
        self._habits, self._job, self._rng = habits, job, rng
        self._speed = habits.speed * rng.uniform(0.85, 1.1)

    def attempt(self, scene: Scene, *, retry: bool) -> Attempt:
        """Plan the first attempt, or another one with more care."""
        habits, rng = self._habits, self._rng
        share = max(habits.turns, 0.8) if retry else habits.turns
        straight = rng.normal(0, 0.15) * (1.5 - share)
        angle = straight if self._job.quaternion is None else scene.angle * share
        aim = rng.normal(0, habits.miss * (RETRY_CARE if retry else 1), 2)
        height = rng.uniform(*habits.hover) + self._job.hover
        depth = (rng.uniform(-0.004, 0.004) if retry else rng.uniform(*habits.grasp)) + (
            self._job.grasp
        )
        if not retry and rng.random() < habits.fumble_rate:
            depth += self._job.fumble
        over, down = _beside(aim, height), _beside(aim, depth)
        slack, speed = habits.tremor, self._speed
        wait = int(rng.integers(*habits.close_steps))
        legs = [
            *([] if retry else self._way(scene, height)),
            Waypoint(over, OPEN, 0.012 + 0.05 * slack, speed),
            *([] if retry else self._doubt(over)),
            Waypoint(down, OPEN, 0.007 + 0.03 * slack, min(speed, DESCENT_SPEED), most=60),
            Waypoint(None, CLOSED, 1.0, 0.3, least=wait, most=wait),
            *(self._lift(scene) if self._job.goal is None else self._carry(scene, self._job.goal)),
        ]
        return Attempt(legs, angle)

    def _way(self, scene: Scene, height: float) -> list[Waypoint]:
        """Plan the operator's own way to the object: a detour, a bow, or neither."""
        habits, rng, legs = self._habits, self._rng, []
        if rng.random() < habits.detour_rate:
            aside = rng.normal(0, habits.detour, 2)
            place = scene.thing + np.array([*aside, height + rng.uniform(0, 0.05)])
            legs.append(Waypoint(_at(place), OPEN, 0.03, self._speed, most=60))
        if habits.bow:
            place = (scene.thing + scene.hand) / 2
            place[:2] += _across(scene) * habits.bow * rng.uniform(0.4, 1.2)
            place[2] = max(scene.hand[2] - 0.02, scene.thing[2] + height)
            legs.append(Waypoint(_at(place), OPEN, 0.035, self._speed, most=50))
        return legs

    def _doubt(self, over: Callable[[Scene], Array]) -> list[Waypoint]:
        """Close the fingers too early and open them again, sometimes."""
        if self._rng.random() >= self._habits.doubt_rate:
            return []
        return [Waypoint(over, grip, 0.05, self._speed, least=5, most=8) for grip in (CLOSED, OPEN)]

    def _lift(self, scene: Scene) -> list[Waypoint]:
        habits, rng = self._habits, self._rng
        height = self._job.floor + rng.uniform(*habits.carry)
        place = np.array([*(scene.thing[:2] + rng.normal(0, 0.01, 2)), height])
        high = place + np.array([0, 0, habits.overshoot])
        return [
            *([self._held(high, 0.02, most=30)] if habits.overshoot else []),
            self._held(place, 0.01, least=10, most=60),
        ]

    def _carry(self, scene: Scene, goal: tuple[float, float]) -> list[Waypoint]:
        """Plan up, over, down, open and away."""
        habits, rng = self._habits, self._rng
        place = np.array(goal) + rng.normal(0, 0.012, 2)
        height = self._job.floor + rng.uniform(*habits.carry)
        start = scene.thing[:2] + rng.normal(0, 0.01, 2)
        legs = [self._held(np.array([*start, height]), 0.04, most=70)]
        if habits.bow:
            middle = (start + place) / 2 + np.array([habits.bow * rng.uniform(0.3, 1.0), 0])
            legs.append(self._held(np.array([*middle, height]), 0.06, most=60))
        if habits.overshoot:
            past = place + np.array([0, 2 * habits.overshoot])
            legs.append(self._held(np.array([*past, height]), 0.03, most=90))
        drop = rng.uniform(0.93, 1.0)
        low, away = np.array([*place, drop]), np.array([*place, drop + 0.12])
        wait = int(rng.integers(3, 8))
        return [
            *legs,
            self._held(np.array([*place, height]), 0.03, most=120),
            self._held(low, 0.03, most=30),
            Waypoint(_at(low), OPEN, 1.0, 0.3, least=wait, most=wait),
            Waypoint(_at(away), OPEN, 0.02, habits.carry_speed, least=8, most=40),
        ]

    def _held(self, place: Array, tolerance: float, least: int = 0, most: int = 90) -> Waypoint:
        speed = self._habits.carry_speed
        return Waypoint(_at(place), CLOSED, tolerance, speed, least, most, carries=True)


def _at(place: Array) -> Callable[[Scene], Array]:
    return lambda _: place


def _beside(aim: Array, height: float) -> Callable[[Scene], Array]:
    """Aim at a place relative to the object, wherever it is by then."""
    offset = np.array([*aim, height])
    return lambda scene: scene.thing + offset


def _across(scene: Scene) -> Array:
    """Return the unit vector (2,) across the straight way over the table."""
    way = (scene.thing - scene.hand)[:2]
    across: Array = np.array([-way[1], way[0]]) / (np.linalg.norm(way) + 1e-6)
    return across


def _square_angle(turn: Rotation) -> float:
    """Return a cube's angle about z; a quarter turn makes no difference."""
    matrix = turn.as_matrix()
    angle = np.arctan2(matrix[1, 0], matrix[0, 0])
    return float((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)
