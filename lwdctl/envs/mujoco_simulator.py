"""What the adapters of MuJoCo environments share: the state, stability, rendering, the score."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.records import FloatArray
from lwdctl.core.simulator_facts import OBSERVATION, REFERENCE_RETURNS
from lwdctl.envs.mujoco_rendering import open_renderer
from lwdctl.envs.simulator import Metric, Observation, Step, UnstablePhysicsError

# Data belong to one version of an environment, and Gymnasium warns about all but the newest.
OUT_OF_DATE = r".*The environment \S+ is out of date\."

_UNSTABLE = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)

SCORE = "normalized_score"


def normalized_score(task: str) -> Metric:
    """Return D4RL's normalized score of a key of `REFERENCE_RETURNS`.

    100 (return - random) / (expert - random): 0 is a random policy, 100 the reference expert.
    """
    random, expert = REFERENCE_RETURNS[task]
    scale = 100.0 / (expert - random)
    return Metric(SCORE, "reward", "sum", scale=scale, offset=-scale * random)


def build_environment(env_id: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Build a registered environment (`"HalfCheetah-v4"`) and take it out of its wrappers.

    Raises:
        ConfigError: The id names a module, which Gymnasium would import.
    """
    if ":" in env_id:
        raise ConfigError(f"'{plain_text(env_id, 200)}' is no environment of Gymnasium's own")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", OUT_OF_DATE, DeprecationWarning)
        return gymnasium.make(env_id, disable_env_checker=True, **(arguments or {})).unwrapped


class MujocoSimulator:
    """State, stability and rendering of an adapter whose environment `_env` runs on MuJoCo.

    Args:
        task: Name of the task.
        env: The environment, without wrappers.
        camera: The camera that images are rendered with.
    """

    def __init__(self, task: str, env: Any, camera: Any) -> None:
        self.task, self._env, self._camera = task, env, camera
        self._state = np.zeros(0)
        self._renderer: Any = None
        self._scene_option: mujoco.MjvOption | None = None

    def initial_state(self) -> npt.NDArray[np.float64]:
        """Return the state that this episode started from."""
        return self._state.copy()

    def render(self) -> npt.NDArray[np.uint8]:
        """Return the camera's image (height, width, 3).

        Raises:
            SimulatorError: No OpenGL backend works on this machine.
        """
        model, data = self._physics()
        if self._renderer is None:
            self._renderer = open_renderer(model)
        self._renderer.update_scene(data, self._camera, self._scene_option)
        image: npt.NDArray[np.uint8] = self._renderer.render()
        return image

    def close(self) -> None:
        """Free the renderer and the environment."""
        self._close_renderer()
        self._env.close()

    def _physics(self) -> tuple[Any, Any]:
        """Return MuJoCo's model and data."""
        return self._env.model, self._env.data

    def _set_state(self, state: npt.NDArray[np.float64], size: int) -> None:
        if state.shape != (size,):
            raise SimulatorError(
                f"a state of '{self.task}' has shape ({size},), not {state.shape}",
                "was it recorded on another task?",
            )
        self._state = np.array(state, dtype=np.float64)

    def _check_stable(self, cause: Exception | None = None) -> None:
        data = self._physics()[1]
        if any(data.warning[kind].number for kind in _UNSTABLE):
            raise UnstablePhysicsError(f"the physics of '{self.task}' became unstable") from cause

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class GymnasiumMujoco(MujocoSimulator, ABC):
    """A Gymnasium environment with one array of observations and forces as perturbations.

    Args:
        task: Gymnasium id.
        arguments: Passed on to the environment's constructor.
        body: The body that forces act on.
        camera: The camera that images are rendered with.
    """

    def __init__(self, task: str, arguments: Mapping[str, Any], body: str, camera: str) -> None:
        super().__init__(task, build_environment(task, arguments), camera)
        self._force_body = self._env.model.body(body).id
        self._planar = False

    def step(self, action: FloatArray) -> Step:
        """Apply one action (action,) in [-1, 1], clipped; a force ends with it.

        Raises:
            UnstablePhysicsError: MuJoCo reset a diverged state.
        """
        clipped = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        raw, reward, terminated, _, info = self._env.step(clipped)
        self._env.data.xfrc_applied[self._force_body] = 0.0
        self._check_stable()
        seen, reward = self._observe(raw), float(reward)
        metrics = {"reward": reward, **self._numbers(seen[OBSERVATION])}
        return Step(seen, reward, bool(info.get("success", False)), bool(terminated), metrics)

    def perturb(self, magnitude: float, rng: np.random.Generator) -> None:
        """Push the body with `magnitude` newtons in a random direction during the next step.

        A body that moves in the x-z plane is pushed in it. A step lasts 50 ms for HalfCheetah and
        Ant, 8 ms for Walker2d and Hopper, 10 ms for the Adroit hand.
        """
        if magnitude == 0:
            return
        direction = rng.normal(size=3)
        if self._planar:
            direction[1] = 0.0
        force = magnitude * direction / np.linalg.norm(direction)
        self._env.data.xfrc_applied[self._force_body, :3] = force

    def _clear(self) -> None:
        """Reset forces, warnings and the solver's memory of earlier steps."""
        mujoco.mj_resetData(self._env.model, self._env.data)

    def _observe(self, observation: npt.NDArray[np.float64]) -> Observation:
        return {OBSERVATION: observation.astype(np.float32)}

    @abstractmethod
    def _numbers(self, observation: FloatArray) -> Mapping[str, float]:
        """Return the numbers that the metrics reduce beside the reward."""
