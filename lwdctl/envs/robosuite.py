"""robosuite's Lift and Can, as robomimic's data know them.

An episode starts as robomimic's `reset_to` starts it: a reset without noise, which gives the
controller its goal and the arm's rest posture, then the recorded state. A plain robosuite reset
takes the noisy posture as the rest posture, and replayed actions drift. The flattened MuJoCo
state is therefore the whole initial state.
"""
# robosuite offers no public way to force observations or to check for success.
# ruff: noqa: SLF001

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree as ET

import mujoco
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.records import EnvSpec, FloatArray, ObservationSpec
from lwdctl.core.robosuite_import import import_robosuite
from lwdctl.core.scene_files import check_scene
from lwdctl.core.seeding import derive_seed
from lwdctl.core.simulator_facts import (
    ROBOSUITE_DEFAULT_MAX_STEPS,
    ROBOSUITE_NETWORK_KEYS,
    robosuite_control_rate,
    robosuite_pose_action,
)
from lwdctl.envs.mujoco_simulator import MujocoSimulator
from lwdctl.envs.robosuite_controllers import (
    action_spec,
    make_arguments,
    pose_arguments,
    pose_command,
)
from lwdctl.envs.robosuite_perturbation import displace_hand
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
