"""robosuite's Lift and Can, as robomimic's data know them.

An episode starts as robomimic's `reset_to` starts it: a reset without noise, which gives the
controller its goal and the arm's rest posture, then the recorded state. A plain robosuite reset
takes the noisy posture as the rest posture, and replayed actions drift. The flattened MuJoCo
state is therefore the whole initial state.

A perturbation displaces the end effector between two steps. The hand moves along a straight line
and turns about one axis, in pieces of at most 2.5 mm; each piece is solved for the arm's joints by
damped least squares. What the hand holds moves with it. The displacement ends early at an obstacle
and at the end of the arm's reach, so that no bodies interpenetrate, which MuJoCo would resolve with
huge forces.

robomimic's `env_args` were written for robosuite 1.2 to 1.5 and become arguments of 1.5. Up to 1.4
an arm's controller stands at the top level and has `control_delta`; from 1.5 on it is part of a
composite controller and has `input_type`.
"""
# robosuite offers no public way to force observations, to check for success, or to joint indices.
# ruff: noqa: SLF001

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree as ET

import mujoco
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.records import ActionSpec, EnvSpec, FloatArray, ObservationSpec
from lwdctl.core.robosuite_import import LOW_DIMENSIONAL, check_scene, import_robosuite
from lwdctl.core.rotations import rotation_of
from lwdctl.core.seeding import derive_seed
from lwdctl.core.simulator_facts import (
    ROBOSUITE_DEFAULT_MAX_STEPS,
    ROBOSUITE_NETWORK_KEYS,
    is_before_robosuite_1_5,
    robosuite_action,
    robosuite_control_rate,
    robosuite_pose_action,
)
from lwdctl.envs.mujoco_simulator import MujocoSimulator
from lwdctl.envs.simulator import Metric, Observation, Step, StillAction
from lwdctl.envs.table import check_tasks

robosuite = import_robosuite()

MAX_STEPS, _ = ROBOSUITE_DEFAULT_MAX_STEPS
# The parts of `object` in the order of robosuite 1.5, which snippet stores use.
OBJECT_PARTS = {
    "Lift": ("cube_pos", "cube_quat", "gripper_to_cube_pos"),
    "PickPlaceCan": ("Can_to_robot0_eef_pos", "Can_to_robot0_eef_quat", "Can_pos", "Can_quat"),
}
OTHER_KEYS = (
    "robot0_eef_quat_site",
    "robot0_gripper_qvel",
    "robot0_joint_pos",
    "robot0_joint_pos_cos",
    "robot0_joint_pos_sin",
    "robot0_joint_vel",
)
CAMERA = "agentview"
ASSETS = "models/assets"
# From robosuite 1.5 on the names of a gripper's parts carry the arm's.
MARK_OF_15 = "gripper0_right_grip_site"


def task_names() -> tuple[str, ...]:
    """Return the tasks by robosuite's names."""
    return tuple(OBJECT_PARTS)


class RobosuiteSimulator(MujocoSimulator):
    """One robosuite task with the robot and controller that the data were recorded with.

    Lift is solved with the cube 4 cm above the table, Can with the can in its bin and the hand
    away. The reward is robosuite's.

    Args:
        env: `settings["env_args"]` are robomimic's, of robosuite 1.2 to 1.5; without them a
            Panda with robosuite's own controller. `settings["actions"]` of `"absolute"` takes
            poses (10) as `ingest --actions absolute` stores them. `max_steps` of 0 means 400.
        task: `"Lift"` or `"PickPlaceCan"`.

    Raises:
        ConfigError: An unknown task, or `env_args` that robosuite 1.5 does not know.
        SimulatorError: robosuite cannot build it.
    """

    metrics = (Metric("final_success", "success", "last"),)

    def __init__(self, env: EnvSpec, task: str) -> None:
        check_tasks([task], task_names(), "environment 'robosuite'")
        self.max_steps = env.max_steps or MAX_STEPS
        arguments = make_arguments(env.settings.get("env_args", {}))
        self._poses = env.settings.get("actions") == "absolute"
        if self._poses:
            arguments = pose_arguments(arguments)
        super().__init__(task, _build(task, arguments), CAMERA)
        self._scene_option = mujoco.MjvOption()
        self._scene_option.geomgroup[0] = 0  # collision shapes
        self._own_model: str = self._env.model.get_xml()
        self._loaded: str | None = self._own_model
        self._randomize(0)
        self._own_record = self._readable(_saved(self._env))
        # numba compiles on the first step, which takes a while where nothing is cached yet.
        seen, *_ = self._env.step(np.zeros(self._env.action_dim))
        self.observations = _observation_specs(task, seen)
        self.action = (
            robosuite_pose_action(robosuite_control_rate(arguments))
            if self._poses
            else action_spec(arguments, self._env.action_dim)
        )
        self._state = self.state()

    @staticmethod
    def still_action(env: EnvSpec) -> StillAction:
        """Return what aims the hand at the position that an observation shows.

        Six zeros for the orientation keep the controller's present target.

        Raises:
            ConfigError: Actions are absolute targets, but no poses.
        """
        if env.settings.get("actions") != "absolute":
            raise ConfigError(
                "what holds the arm still is not known for the absolute targets of this data's"
                " controller",
                "lwdctl ingest robomimic FILE --actions absolute makes poses of OSC_POSE targets",
            )

        def compute(observation: Observation) -> FloatArray:
            rest = np.zeros(7, dtype=np.float32)
            return np.concatenate([observation["robot0_eef_pos"], rest])

        return compute

    def reset(self, seed: int) -> Observation:
        """Start the episode that `seed` fixes entirely."""
        self._load(self._own_model)
        self._randomize(derive_seed("robosuite reset", self.task, seed))
        return self._start(self.state())

    def restore(self, state: npt.NDArray[np.float64], model: str = "") -> Observation:
        """Start from a recorded state: time, positions, velocities.

        Args:
            state: As robomimic stores it in `states[0]`.
            model: The scene it was recorded in (MJCF), or "". Scenes of robosuite before 1.5
                name their parts differently; the adapter's own scene replaces them, in which a
                cube may differ by up to 2 mm in size. Where the recorded scene is the
                adapter's own, rounded to six digits as MuJoCo saves it, the exact one is taken.

        Raises:
            SimulatorError: Not a state of this scene, or a scene that cannot be read.
            ConfigError: A scene that names files which are not robosuite's.
        """
        scene = self._readable(model) if MARK_OF_15 in model else self._own_record
        self._load(self._own_model if scene == self._own_record else scene)
        self._set_state(state, 1 + self._env.sim.model.nq + self._env.sim.model.nv)
        return self._start(self._state)

    def state(self) -> npt.NDArray[np.float64]:
        """Return the flattened MuJoCo state now, as robomimic's `states` hold one per step."""
        state: npt.NDArray[np.float64] = self._env.sim.get_state().flatten()
        return state

    def scene(self) -> str:
        """Return the task's own scene as MuJoCo saves it, for robomimic's `model_file`."""
        return self._own_record

    def step(self, action: FloatArray) -> Step:
        """Apply one action (action,): the arm's motion or target, and the gripper's direction.

        A pose whose six numbers are no rotation keeps the present target orientation.

        Raises:
            UnstablePhysicsError: MuJoCo found a diverged state.
        """
        clipped = np.clip(np.asarray(action, dtype=np.float64), self.action.low, self.action.high)
        if self._poses:
            robot = self._env.robots[0]
            clipped = pose_command(clipped, robot.part_controllers[robot.arms[0]].goal_ori)
        try:
            seen, reward, _, _ = self._env.step(clipped)
        except (np.linalg.LinAlgError, ValueError) as error:
            # Controllers may fail on a diverged state before it is checked.
            self._check_stable(error)
            raise
        self._check_stable()
        success = bool(self._env._check_success())
        metrics = {"success": float(success)}
        return Step(self._observe(seen), float(reward), success, False, metrics)

    def perturb(self, magnitude: float, rng: np.random.Generator) -> None:
        """Displace the end effector by `magnitude` meters, and turn it by 5 degrees a centimeter.

        What the hand holds moves with it; the displacement ends early at an obstacle or out of
        reach.
        """
        displace_hand(self._env, magnitude, rng)

    def _physics(self) -> tuple[Any, Any]:
        return self._env.sim.model._model, self._env.sim.data._data

    def _randomize(self, seed: int) -> None:
        """Reset with noise that is drawn from `seed` alone."""
        with _global_draws(seed):
            self._env.reset()

    def _start(self, state: npt.NDArray[np.float64]) -> Observation:
        """Give the controller its rest posture, then set the state."""
        self._state = state
        self._env.deterministic_reset = True
        try:
            self._env.reset()
        finally:
            self._env.deterministic_reset = False
        sim = self._env.sim
        sim.reset()
        sim.set_state_from_flattened(state)
        sim.forward()
        # Relative poses are computed from the previous update.
        self._env._get_observations(force_update=True)
        return self._observe(self._env._get_observations(force_update=True))

    def _load(self, model: str) -> None:
        if model == self._loaded:
            return
        self._close_renderer()
        self._loaded = None
        if model != self._own_model:
            _check_scene(model)
        try:
            self._env.reset_from_xml_string(model)
        except (KeyError, ValueError) as error:
            raise SimulatorError(f"the recorded scene cannot be built: {error}") from error
        finally:
            self._env.deterministic_reset = False
        self._loaded = model
        # Places what is only rendered, such as the targets of Can.
        self._randomize(0)

    def _readable(self, model: str) -> str:
        """Return a scene with the paths of this machine's meshes in it."""
        try:
            text: str = self._env.edit_model_xml(model)
        except (AttributeError, ET.ParseError) as error:
            raise SimulatorError(f"the recorded scene cannot be read: {error}") from error
        return text

    def _observe(self, seen: Mapping[str, Any]) -> Observation:
        return {
            item.name: _value(self.task, seen, item.name).astype(np.float32)
            for item in self.observations
        }


def _check_scene(model: str) -> None:
    """Check that a recorded scene takes meshes and textures from robosuite alone.

    Raises:
        ConfigError: It names another file.
    """
    try:
        check_scene(model, Path(str(robosuite.__file__)).parent / ASSETS)
    except ValueError as error:
        raise ConfigError(
            f"the scene that the demonstrations recorded (MJCF) is not loaded: {error}",
            "without recorded initial states it is not needed: lwdctl eval --latent sampled",
        ) from error


def _build(task: str, arguments: Mapping[str, Any]) -> Any:
    known: set[str] = set()
    for base in robosuite.environments.base.REGISTERED_ENVS[task].__mro__:
        known |= set(inspect.signature(base.__init__).parameters)
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ConfigError(f"env_args: robosuite {robosuite.__version__} has no '{unknown[0]}'")
    try:
        # The cube's size is drawn here: the same one in every process.
        with _global_draws(derive_seed("robosuite scene", task)):
            return robosuite.make(task, **arguments)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise SimulatorError(f"robosuite cannot build '{task}' from env_args: {error}") from error


def _saved(env: Any) -> str:
    """Return the scene as MuJoCo saves it and robomimic's files hold it, after a first reset.

    MuJoCo knows the text of the model compiled last only: nothing may be built in between.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scene.xml"
        mujoco.mj_saveLastXML(str(path), env.sim.model._model)
        return path.read_text()


def _value(task: str, seen: Mapping[str, Any], name: str) -> npt.NDArray[np.float64]:
    parts = OBJECT_PARTS[task] if name == "object" else (name,)
    return np.concatenate([np.atleast_1d(seen[part]) for part in parts])


def _observation_specs(task: str, seen: Mapping[str, Any]) -> tuple[ObservationSpec, ...]:
    visible = ROBOSUITE_NETWORK_KEYS
    keys = (*visible, *(key for key in OTHER_KEYS if key in seen))
    return tuple(
        ObservationSpec(key, len(_value(task, seen, key)), network=key in visible) for key in keys
    )


@contextmanager
def _global_draws(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which robosuite 1.5.1 draws from, and put it back."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


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


# Settings of the environment class that were renamed, and those that no longer exist and never
# affected the physics.
RENAMED = {"mount_types": "base_types"}
DROPPED = frozenset({"gripper_visualizations", "use_indicator_object"})
CONTROLLER_RENAMED = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}
# A soft reset keeps the compiled model: milliseconds instead of a second.
FIXED = {**LOW_DIMENSIONAL, "hard_reset": False}


def make_arguments(env_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments for `robosuite.make`, without the task's name.

    Args:
        env_args: As robomimic wrote them; {} gives a Panda with robosuite's own controller.

    Raises:
        ConfigError: Controller settings that cannot be understood.
    """
    kwargs = {
        RENAMED.get(key, key): value
        for key, value in env_args.get("env_kwargs", {}).items()
        if key not in DROPPED
    }
    kwargs.setdefault("robots", ["Panda"])
    if isinstance(kwargs["robots"], str):
        kwargs["robots"] = [kwargs["robots"]]
    if len(kwargs["robots"]) != 1:
        raise ConfigError(f"env_args: robots are {kwargs['robots']}, and one was expected")
    config = _one(kwargs.get("controller_configs"))
    if config is not None:
        kwargs["controller_configs"] = composite_controller(config)
    if _is_old(env_args, config):
        # robosuite 1.5 skips parts of the physics' second pass by default.
        kwargs.setdefault("lite_physics", False)
    return {**kwargs, **FIXED}


def composite_controller(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return one robot's controller in the form of robosuite 1.5.

    Raises:
        ConfigError: Neither an arm's controller nor a composite one.
    """
    if "body_parts" in config:
        parts = dict(config["body_parts"])
        # robosuite's own files put the arms one level deeper than its environments accept.
        arms = parts.pop("arms", {})
        return {**config, "body_parts": {**parts, **arms}}
    if "type" not in config:
        raise ConfigError("env_args: controller_configs has neither 'body_parts' nor 'type'")
    arm = {CONTROLLER_RENAMED.get(key, key): value for key, value in config.items()}
    delta = arm.pop("control_delta", True)
    arm.setdefault("input_type", "delta" if delta else "absolute")
    # Before 1.5 motions and targets were given in the world's frame.
    arm.setdefault("input_ref_frame", "world")
    arm.setdefault("gripper", {"type": "GRIP"})
    return {"type": "BASIC", "body_parts": {"right": arm}}


def pose_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return `arguments` with a controller that takes absolute poses.

    A controller of motions gets its targets in the world's frame; one that took targets in the
    data keeps its frame.

    Raises:
        ConfigError: No controller is given, or one of another kind.
    """
    config, arm = arguments.get("controller_configs") or {}, _arm(arguments)
    if arm.get("type") != "OSC_POSE":
        raise ConfigError(
            "env_args: absolute poses need the controller OSC_POSE,"
            f" not {arm.get('type', 'the default one')}"
        )
    if arm.get("input_type") != "absolute":
        arm = {**arm, "input_type": "absolute", "input_ref_frame": "world"}
    parts = {**config["body_parts"], "right": arm}
    return {**arguments, "controller_configs": {**config, "body_parts": parts}}


def pose_command(action: Array, target: Array) -> Array:
    """Return what robosuite's controller takes for an absolute pose.

    Args:
        action: Position (3), orientation as six numbers (`core.rotations`), gripper.
        target: Rotation matrix (3, 3) of the controller's present target, which is kept where the
            six numbers are no rotation.

    Returns:
        Position (3), rotation vector in radians (3), gripper.
    """
    turn = rotation_of(action[3:9])
    if turn is None:
        turn = Rotation.from_matrix(target)
    return np.concatenate([action[:3], turn.as_rotvec(), action[9:]])


def action_spec(arguments: Mapping[str, Any], size: int) -> ActionSpec:
    """Describe what the environment made from `arguments` accepts."""
    return robosuite_action(_arm(arguments), size, robosuite_control_rate(arguments))


def _arm(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    config = arguments.get("controller_configs") or {}
    arm: Mapping[str, Any] = config.get("body_parts", {}).get("right", {})
    return arm


def _one(configs: Any) -> Mapping[str, Any] | None:
    if isinstance(configs, list) and len(configs) == 1:
        configs = configs[0]
    if configs is not None and not isinstance(configs, Mapping):
        raise ConfigError("env_args: controller_configs cannot be understood")
    return configs


def _is_old(env_args: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
    """Return whether robosuite before 1.5 wrote this; without a version, the controller tells."""
    before = is_before_robosuite_1_5(str(env_args.get("env_version", "")))
    return config is not None and "body_parts" not in config if before is None else before
