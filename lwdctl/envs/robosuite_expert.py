"""Six scripted operators of robosuite's Lift and Can: two better, two okay, two worse.

They take the places of the six people of robomimic's multi-human data. An operator is a list of
habits, of skill (speed, aim, pauses, detours, fumbled grasps) and of style (the side from which
the hand comes, one axis at a time, how high things are carried). A scripted operator turns the
habits and the task into waypoints of the hand and moves the arm along them, from observations
alone. `EXPERTS` offers them to `lwdctl collect`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from lwdctl.core.records import EnvSpec, FloatArray
from lwdctl.core.seeding import generator
from lwdctl.core.simulator_facts import ROBOSUITE_DEFAULT_MAX_STEPS
from lwdctl.envs.robosuite import RobosuiteSimulator, task_names
from lwdctl.envs.simulator import Observation
from lwdctl.envs.table import check_tasks

Array = npt.NDArray[np.float64]
Range = tuple[float, float]

OPEN, CLOSED = -1.0, 1.0
DESCENT_SPEED = 0.6
RETRY_CARE = 0.35
# What a full action moves the target by in one step: meters, radians.
REACH, TURN = 0.05, 0.5
MAX_TURN = 0.4
# Farther from the hand than this, the object has slipped out of it.
LOST_DISTANCE = 0.07
# Autocorrelation of the noise from step to step.
TREMOR_MEMORY = 0.8


@dataclass(frozen=True)
class Operator:
    """The habits of one operator.

    Lengths are meters, times control steps (20 a second), speeds fractions of the
    controller's limit, rates probabilities. A pair is a range that an episode draws from.

    Attributes:
        name: As robomimic's masks name operators.
        speed: Of the free hand.
        carry_speed: Of the hand that holds something.
        gain: Gain on the remaining distance.
        tremor: Standard deviation of the noise on motions, correlated in time.
        hover: Height over the object from which the hand goes down.
        miss: Standard deviation of the aim across the table at the first grasp.
        grasp: Height of the grasp over the object's middle.
        close_steps: Wait for the fingers.
        turns: Fraction of the cube's angle that the hand turns to; 0 leaves the hand straight.
        bow: Sideways offset at the middle of the path, negative on the other side.
        stepwise: Moves along one axis at a time, as with a keyboard.
        levels: Steps of the speed in each direction, 0 for a smooth hand.
        pause_rate: Pauses begun per step.
        pause_steps: How long one lasts.
        detour_rate: Approaches that first lead to another place.
        detour: Standard deviation of that place.
        doubt_rate: Approaches with the fingers closed too early and opened again.
        fumble_rate: First grasps closed above the object, and done again.
        overshoot: How far the carrying hand goes past its target.
        carry: How high things are lifted.
        linger_steps: Steps that are still recorded once the task is solved.
    """

    name: str
    speed: float
    carry_speed: float
    gain: float
    tremor: float
    hover: Range
    miss: float
    grasp: Range
    close_steps: tuple[int, int]
    turns: float
    bow: float
    stepwise: bool
    levels: int
    pause_rate: float
    pause_steps: tuple[int, int]
    detour_rate: float
    detour: float
    doubt_rate: float
    fumble_rate: float
    overshoot: float
    carry: Range
    linger_steps: tuple[int, int]

    @property
    def level(self) -> str:
        """`"better"`, `"okay"` or `"worse"`."""
        return self.name.partition("_")[0]


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            "better_operator_1", speed=0.95, carry_speed=0.95, gain=1.6, tremor=0.03,
            hover=(0.06, 0.09), miss=0.002, grasp=(-0.004, 0.004), close_steps=(5, 8), turns=1.0,
            bow=0.0, stepwise=False, levels=0, pause_rate=0.0, pause_steps=(1, 2),
            detour_rate=0.0, detour=0.0, doubt_rate=0.0, fumble_rate=0.0, overshoot=0.0,
            carry=(0.08, 0.12), linger_steps=(4, 8),
        ),
        Operator(
            "better_operator_2", speed=0.8, carry_speed=0.75, gain=1.4, tremor=0.05,
            hover=(0.04, 0.07), miss=0.003, grasp=(-0.006, 0.003), close_steps=(6, 9), turns=1.0,
            bow=0.05, stepwise=False, levels=0, pause_rate=0.004, pause_steps=(2, 4),
            detour_rate=0.0, detour=0.0, doubt_rate=0.0, fumble_rate=0.0, overshoot=0.0,
            carry=(0.07, 0.1), linger_steps=(4, 8),
        ),
        Operator(
            "okay_operator_1", speed=0.6, carry_speed=0.6, gain=1.2, tremor=0.09,
            hover=(0.08, 0.12), miss=0.005, grasp=(-0.004, 0.008), close_steps=(7, 12), turns=0.7,
            bow=-0.06, stepwise=False, levels=0, pause_rate=0.01, pause_steps=(3, 8),
            detour_rate=0.25, detour=0.05, doubt_rate=0.05, fumble_rate=0.05, overshoot=0.01,
            carry=(0.09, 0.15), linger_steps=(5, 12),
        ),
        Operator(
            "okay_operator_2", speed=0.7, carry_speed=0.7, gain=1.1, tremor=0.07,
            hover=(0.05, 0.1), miss=0.006, grasp=(-0.008, 0.006), close_steps=(6, 12), turns=1.0,
            bow=0.0, stepwise=True, levels=8, pause_rate=0.008, pause_steps=(3, 7),
            detour_rate=0.2, detour=0.04, doubt_rate=0.05, fumble_rate=0.08, overshoot=0.015,
            carry=(0.08, 0.14), linger_steps=(5, 12),
        ),
        Operator(
            "worse_operator_1", speed=0.4, carry_speed=0.4, gain=1.0, tremor=0.14,
            hover=(0.1, 0.16), miss=0.01, grasp=(-0.006, 0.012), close_steps=(8, 18), turns=0.3,
            bow=0.1, stepwise=False, levels=0, pause_rate=0.02, pause_steps=(5, 15),
            detour_rate=0.6, detour=0.08, doubt_rate=0.15, fumble_rate=0.2, overshoot=0.02,
            carry=(0.1, 0.2), linger_steps=(6, 20),
        ),
        Operator(
            "worse_operator_2", speed=0.85, carry_speed=0.8, gain=1.4, tremor=0.25,
            hover=(0.03, 0.14), miss=0.012, grasp=(-0.01, 0.012), close_steps=(5, 16), turns=0.0,
            bow=-0.08, stepwise=True, levels=4, pause_rate=0.025, pause_steps=(4, 12),
            detour_rate=0.7, detour=0.1, doubt_rate=0.2, fumble_rate=0.3, overshoot=0.03,
            carry=(0.08, 0.2), linger_steps=(6, 20),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What is observed: positions in meters, the hand's orientation, the object's angle about z."""

    hand: Array
    turn: Rotation
    thing: Array
    angle: float


@dataclass(frozen=True)
class Waypoint:
    """One target of the hand.

    Attributes:
        target: Where the hand should be; None is where it was before.
        grip: `OPEN` or `CLOSED`.
        tolerance: Meters at which it counts as reached.
        speed: Fraction of the controller's limit.
        least: Smallest number of steps.
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
class Task:
    """What operators know of one task; lengths in meters.

    Attributes:
        position: Where `object` holds the object's position.
        quaternion: Where it holds its orientation, or None where the angle does not matter.
        floor: Height that `Operator.carry` counts from.
        hover: Added to `Operator.hover`.
        grasp: Added to `Operator.grasp`.
        fumble: How far above the object a fumbled grasp closes.
        goal: Where the object is set down (x, y), or None where it is only lifted.
        pace: Factor on speeds, for a long path.
    """

    position: slice
    quaternion: slice | None
    floor: float
    hover: float = 0.0
    grasp: float = 0.0
    fumble: float = 0.05
    goal: tuple[float, float] | None = None
    pace: float = 1.0

    def observe(self, observation: Observation) -> Scene:
        """Return the scene that an observation shows."""
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


# The part of the can's bin (x 0.1 to 0.295, y 0.28 to 0.525 in robosuite's PickPlace) that the arm
# reaches without stretching.
CAN_GOAL = (0.16, 0.36)
TASKS = {
    "Lift": Task(slice(0, 3), slice(3, 7), floor=0.82),
    "PickPlaceCan": Task(
        slice(7, 10), None, floor=1.02, hover=0.05, grasp=0.015, fumble=0.1, goal=CAN_GOAL,
        pace=1.6,
    ),
}  # fmt: skip


def _at(place: Array) -> Callable[[Scene], Array]:
    return lambda _: place


def _beside(aim: Array, height: float) -> Callable[[Scene], Array]:
    """Return a target relative to the object, wherever it is by then."""
    offset = np.array([*aim, height])
    return lambda scene: scene.thing + offset


def _across(scene: Scene) -> Array:
    """Return the unit vector (2,) at a right angle to the straight path over the table."""
    way = (scene.thing - scene.hand)[:2]
    across: Array = np.array([-way[1], way[0]]) / (np.linalg.norm(way) + 1e-6)
    return across


def _square_angle(turn: Rotation) -> float:
    """Return a cube's angle about z, which repeats with every quarter turn."""
    matrix = turn.as_matrix()
    angle = np.arctan2(matrix[1, 0], matrix[0, 0])
    return float((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)


class ScriptedOperator:
    """One episode of one operator; an `Expert`.

    Args:
        operator: Its habits.
        task: `"Lift"` or `"PickPlaceCan"`.
        rng: Every draw of the episode.
    """

    def __init__(self, operator: Operator, task: str, rng: np.random.Generator) -> None:
        self._task = TASKS[task]
        self._habits = _at_pace(operator, self._task.pace)
        self._rng = rng
        self._speed = self._habits.speed * rng.uniform(0.85, 1.1)
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
        scene = self._task.observe(observation)
        self._follow(scene)
        waypoint = self._plan[0]
        goal = self._origin if waypoint.target is None else waypoint.target(scene)
        action = np.zeros(7)
        action[:3] = self._motion(goal - scene.hand, waypoint)
        action[3:6] = self._turn(scene)
        action[:6] = self._paused(action[:6])
        action[6] = waypoint.grip
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def finished(self, success: bool) -> bool:
        """End when the task has stayed solved for as long as this operator lingers."""
        self._solved = self._solved + 1 if success else 0
        return self._solved > self._linger

    def _follow(self, scene: Scene) -> None:
        """Continue with the next waypoint, or with a new attempt."""
        if not self._plan:
            self._try(scene, retry=False)
        waypoint = self._plan[0]
        self._steps += 1
        if waypoint.carries and np.linalg.norm(scene.thing - scene.hand) > LOST_DISTANCE:
            self._try(scene, retry=True)
            return
        goal = self._origin if waypoint.target is None else waypoint.target(scene)
        near = (
            np.linalg.norm(goal - scene.hand) < waypoint.tolerance and self._steps > waypoint.least
        )
        late = self._steps > waypoint.most
        if (near or late) and len(self._plan) > 1:
            self._begin(scene, self._plan[1:])
        elif late:
            self._try(scene, retry=True)

    def _try(self, scene: Scene, *, retry: bool) -> None:
        """Plan a grasp and what follows it: the first attempt, or a more careful one."""
        habits, rng = self._habits, self._rng
        fraction = max(habits.turns, 0.8) if retry else habits.turns
        straight = rng.normal(0, 0.15) * (1.5 - fraction)
        self._angle = straight if self._task.quaternion is None else scene.angle * fraction
        aim = rng.normal(0, habits.miss * (RETRY_CARE if retry else 1), 2)
        height = rng.uniform(*habits.hover) + self._task.hover
        depth = (rng.uniform(-0.004, 0.004) if retry else rng.uniform(*habits.grasp)) + (
            self._task.grasp
        )
        if not retry and rng.random() < habits.fumble_rate:
            depth += self._task.fumble
        over, down = _beside(aim, height), _beside(aim, depth)
        slack, speed = habits.tremor, self._speed
        wait = int(rng.integers(*habits.close_steps))
        waypoints = [
            *([] if retry else self._approach(scene, height)),
            Waypoint(over, OPEN, 0.012 + 0.05 * slack, speed),
            *([] if retry else self._hesitate(over)),
            Waypoint(down, OPEN, 0.007 + 0.03 * slack, min(speed, DESCENT_SPEED), most=60),
            Waypoint(None, CLOSED, 1.0, 0.3, least=wait, most=wait),
            *(
                self._lift(scene)
                if self._task.goal is None
                else self._carry(scene, self._task.goal)
            ),
        ]
        self._begin(scene, waypoints)

    def _approach(self, scene: Scene, height: float) -> list[Waypoint]:
        """Plan the operator's own path to the object: by a detour, sideways, or straight."""
        habits, rng, waypoints = self._habits, self._rng, []
        if rng.random() < habits.detour_rate:
            aside = rng.normal(0, habits.detour, 2)
            place = scene.thing + np.array([*aside, height + rng.uniform(0, 0.05)])
            waypoints.append(Waypoint(_at(place), OPEN, 0.03, self._speed, most=60))
        if habits.bow:
            place = (scene.thing + scene.hand) / 2
            place[:2] += _across(scene) * habits.bow * rng.uniform(0.4, 1.2)
            place[2] = max(scene.hand[2] - 0.02, scene.thing[2] + height)
            waypoints.append(Waypoint(_at(place), OPEN, 0.035, self._speed, most=50))
        return waypoints

    def _hesitate(self, over: Callable[[Scene], Array]) -> list[Waypoint]:
        """Sometimes close the fingers too early and open them again."""
        if self._rng.random() >= self._habits.doubt_rate:
            return []
        return [Waypoint(over, grip, 0.05, self._speed, least=5, most=8) for grip in (CLOSED, OPEN)]

    def _lift(self, scene: Scene) -> list[Waypoint]:
        habits, rng = self._habits, self._rng
        height = self._task.floor + rng.uniform(*habits.carry)
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
        height = self._task.floor + rng.uniform(*habits.carry)
        start = scene.thing[:2] + rng.normal(0, 0.01, 2)
        waypoints = [self._held(np.array([*start, height]), 0.04, most=70)]
        if habits.bow:
            middle = (start + place) / 2 + np.array([habits.bow * rng.uniform(0.3, 1.0), 0])
            waypoints.append(self._held(np.array([*middle, height]), 0.06, most=60))
        if habits.overshoot:
            past = place + np.array([0, 2 * habits.overshoot])
            waypoints.append(self._held(np.array([*past, height]), 0.03, most=90))
        drop = rng.uniform(0.93, 1.0)
        low, away = np.array([*place, drop]), np.array([*place, drop + 0.12])
        wait = int(rng.integers(3, 8))
        return [
            *waypoints,
            self._held(np.array([*place, height]), 0.03, most=120),
            self._held(low, 0.03, most=30),
            Waypoint(_at(low), OPEN, 1.0, 0.3, least=wait, most=wait),
            Waypoint(_at(away), OPEN, 0.02, habits.carry_speed, least=8, most=40),
        ]

    def _held(self, place: Array, tolerance: float, least: int = 0, most: int = 90) -> Waypoint:
        speed = self._habits.carry_speed
        return Waypoint(_at(place), CLOSED, tolerance, speed, least, most, carries=True)

    def _begin(self, scene: Scene, plan: list[Waypoint]) -> None:
        self._plan, self._steps, self._origin = plan, 0, scene.hand.copy()

    def _motion(self, offset: Array, waypoint: Waypoint) -> Array:
        habits = self._habits
        if habits.stepwise and np.linalg.norm(offset) > 0.03:
            weights = np.full(3, 0.15)
            weights[np.argmax(np.abs(offset))] = 1.0
            offset = offset * weights
        motion = habits.gain * offset / REACH
        motion = motion * min(1.0, waypoint.speed / (np.abs(motion).max() + 1e-9))
        drawn = self._rng.normal(0, habits.tremor, 6)
        self._tremor = TREMOR_MEMORY * self._tremor + np.sqrt(1 - TREMOR_MEMORY**2) * drawn
        motion = motion + self._tremor[:3] * (1.0 if waypoint.tolerance > 0.02 else 0.5)
        if habits.levels:
            motion = np.round(motion * habits.levels) / habits.levels
        return np.asarray(motion, dtype=np.float64)

    def _turn(self, scene: Scene) -> Array:
        """Turn toward a hand that points down, at the angle of this grasp."""
        down = Rotation.from_matrix(np.diag([1.0, -1.0, -1.0]))
        wanted = Rotation.from_rotvec([0.0, 0.0, self._angle]) * down
        error = (wanted * scene.turn.inv()).as_rotvec()
        turn = np.clip(0.6 * error / TURN, -MAX_TURN, MAX_TURN) + 0.15 * self._tremor[3:]
        return np.asarray(turn, dtype=np.float64)

    def _paused(self, motion: Array) -> Array:
        """Return the motion, or almost none during a pause."""
        habits, rng = self._habits, self._rng
        if self._pause > 0:
            self._pause -= 1
            return rng.normal(0, 0.1 * habits.tremor, 6)
        if rng.random() < habits.pause_rate:
            self._pause = int(rng.integers(*habits.pause_steps))
        return motion


def _at_pace(operator: Operator, pace: float) -> Operator:
    """Return the same operator on a long path, where every operator is faster."""
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


SHORT_NAMES = {"lift": "Lift", "can": "PickPlaceCan"}
# robomimic's limit for data of several operators.
_, MAX_STEPS = ROBOSUITE_DEFAULT_MAX_STEPS
ROBOMIMIC_TYPE = 1
# The controller of robomimic's own data, written as robosuite 1.5 has it.
ARM = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150, "damping_ratio": 1, "impedance_mode": "fixed", "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "input_type": "delta", "input_ref_frame": "base",
    "interpolation": None, "ramp_ratio": 0.2, "gripper": {"type": "GRIP"},
}  # fmt: skip
ENV_KWARGS = {
    "robots": ["Panda"],
    "controller_configs": {"type": "BASIC", "body_parts": {"right": ARM}},
    "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False,
    "camera_depths": False, "use_object_obs": True, "ignore_done": True,
    "reward_shaping": False, "control_freq": 20,
}  # fmt: skip


class RobosuiteExperts:
    """Six operators per task; robomimic's files hold one task."""

    operators = tuple(OPERATORS)
    episodes = 50
    task = "lift"
    packages = ("robosuite", "mujoco")
    several_tasks = False

    def tasks(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return robosuite's names for `lift` and `can`.

        Raises:
            ConfigError: An unknown name.
        """
        known = {**{name.lower(): name for name in task_names()}, **SHORT_NAMES}
        words = [name for name in names if name.lower() not in known]
        check_tasks(words, tuple(SHORT_NAMES), "environment 'robosuite'")
        return tuple(dict.fromkeys(known[name.lower()] for name in names))

    def file_name(self, tasks: Sequence[str]) -> str:
        """Return the task's short name."""
        (task,) = tasks
        return next(short for short, name in SHORT_NAMES.items() if name == task)

    def environment(self, tasks: Sequence[str], max_steps: int) -> EnvSpec:
        """Describe the environment; `ingest` reads all of it but the limit from the file.

        Args:
            tasks: The one task.
            max_steps: Steps after which collecting gives an episode up; 0 means 500. `ingest`
                takes the limit that results on robomimic's data are reported with.
        """
        (task,) = tasks
        args = {
            "env_name": task,
            "env_version": version("robosuite"),
            "type": ROBOMIMIC_TYPE,
            "env_kwargs": ENV_KWARGS,
        }
        return EnvSpec("robosuite", (task,), {"env_args": args}, max_steps or MAX_STEPS)

    def env_args(self, env: EnvSpec) -> dict[str, Any]:
        """Return robomimic's `env_args`."""
        args: dict[str, Any] = dict(env.settings["env_args"])
        return args

    def expert(self, task: str, operator: str, seed: int) -> ScriptedOperator:
        """Return one operator, whose draws are fixed by the episode's seed."""
        return ScriptedOperator(
            OPERATORS[operator], task, generator("operator", task, operator, seed)
        )

    def state(self, simulator: RobosuiteSimulator) -> npt.NDArray[np.float64]:
        """Return time, positions and velocities now, as robomimic's `states` hold them."""
        return simulator.state()

    def scene(self, simulator: RobosuiteSimulator) -> str:
        """Return the scene as robomimic's `model_file` holds it."""
        return simulator.scene()


EXPERTS = RobosuiteExperts()
