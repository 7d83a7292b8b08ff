"""One MuJoCo environment of Gymnasium: built without wrappers, checked, pushed and drawn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt

from lwdctl.core.records import FloatArray
from lwdctl.envs.mujoco_rendering import open_renderer
from lwdctl.envs.simulator import UnstablePhysicsError

# Data are tied to one version of an environment, and Gymnasium advises against all but the newest.
OUT_OF_DATE = r".*The environment \S+ is out of date\."

_UNSTABLE = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


def build_environment(env_id: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Build a registered environment and take it out of its wrappers.

    Args:
        env_id: Gymnasium id (`"HalfCheetah-v4"`).
        arguments: Passed on to its constructor.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", OUT_OF_DATE, DeprecationWarning)
        return gymnasium.make(env_id, disable_env_checker=True, **(arguments or {})).unwrapped


class GymnasiumScene:
    """One environment with a body that can be pushed.

    Args:
        env_id: Gymnasium id.
        arguments: Passed on to the environment's constructor.
        pushed: The body that a push acts on.
        camera: The camera that pictures are taken with.

    Attributes:
        env: The environment, without wrappers.
    """

    def __init__(self, env_id: str, arguments: Mapping[str, Any], pushed: str, camera: str) -> None:
        self.env = build_environment(env_id, arguments)
        self._name, self._camera = env_id, camera
        self._pushed = self.env.model.body(pushed).id
        self._renderer: Any = None

    def clear(self) -> None:
        """Forget forces, warnings and what the solver remembers of earlier steps."""
        mujoco.mj_resetData(self.env.model, self.env.data)

    def step(
        self, action: FloatArray
    ) -> tuple[npt.NDArray[np.float64], float, bool, Mapping[str, Any]]:
        """Apply one action in [-1, 1], clipped; a push ends with it.

        Returns:
            Observation (obs,), reward, whether the episode has ended, and `info`.

        Raises:
            UnstablePhysicsError: MuJoCo reset a diverged state.
        """
        clipped = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        observation, reward, terminated, _, info = self.env.step(clipped)
        self.env.data.xfrc_applied[self._pushed] = 0.0
        if any(self.env.data.warning[kind].number for kind in _UNSTABLE):
            raise UnstablePhysicsError(f"the physics of '{self._name}' became unstable")
        return observation, float(reward), bool(terminated), info

    def push(self, force: npt.NDArray[np.float64]) -> None:
        """Let a force (3,), newtons in world axes, act during the next step."""
        self.env.data.xfrc_applied[self._pushed, :3] = force

    def render(self) -> npt.NDArray[np.uint8]:
        """Return the camera's image (height, width, 3).

        Raises:
            SimulatorError: No OpenGL backend works on this machine.
        """
        if self._renderer is None:
            self._renderer = open_renderer(self.env.model)
        self._renderer.update_scene(self.env.data, camera=self._camera)
        image: npt.NDArray[np.uint8] = self._renderer.render()
        return image

    def close(self) -> None:
        """Free the renderer and the environment."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.env.close()
