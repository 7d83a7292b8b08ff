"""What Gymnasium's MuJoCo environments share: building, stepping, forces, rendering, the score."""

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
from lwdctl.envs.simulator import Metric, UnstablePhysicsError

# Data belong to one version of an environment, and Gymnasium warns about all but the newest.
OUT_OF_DATE = r".*The environment \S+ is out of date\."

_UNSTABLE = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)

SCORE = "normalized_score"

# Mean returns of a random policy and of the expert, from `d4rl/infos.py` of Fu et al., D4RL:
# datasets for deep data-driven reinforcement learning (2020); the same for its v0, v1 and v2.
REFERENCE_RETURNS = {
    "ant": (-325.6, 3879.7),
    "halfcheetah": (-280.178953, 12135.0),
    "hammer": (-274.856578, 12794.134825156867),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
}


def normalized_score(task: str) -> Metric:
    """Return D4RL's normalized score: 100 (return - random) / (expert - random).

    0 is a random policy, 100 the reference expert; it sums the steps' `"reward"`.

    Args:
        task: A key of `REFERENCE_RETURNS`.
    """
    random, expert = REFERENCE_RETURNS[task]
    scale = 100.0 / (expert - random)
    return Metric(SCORE, "reward", "sum", scale=scale, offset=-scale * random)


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
    """One environment with a body that perturbing forces act on.

    Args:
        env_id: Gymnasium id.
        arguments: Passed on to the environment's constructor.
        body: The body that forces act on.
        camera: The camera that images are rendered with.

    Attributes:
        env: The environment, without wrappers.
    """

    def __init__(self, env_id: str, arguments: Mapping[str, Any], body: str, camera: str) -> None:
        self.env = build_environment(env_id, arguments)
        self._name, self._camera = env_id, camera
        self._body = self.env.model.body(body).id
        self._renderer: Any = None

    def clear(self) -> None:
        """Reset forces, warnings and the solver's memory of earlier steps."""
        mujoco.mj_resetData(self.env.model, self.env.data)

    def step(
        self, action: FloatArray
    ) -> tuple[npt.NDArray[np.float64], float, bool, Mapping[str, Any]]:
        """Apply one action in [-1, 1], clipped; a force ends with it.

        Returns:
            Observation (obs,), reward, whether the episode has ended, and `info`.

        Raises:
            UnstablePhysicsError: MuJoCo reset a diverged state.
        """
        clipped = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        observation, reward, terminated, _, info = self.env.step(clipped)
        self.env.data.xfrc_applied[self._body] = 0.0
        if any(self.env.data.warning[kind].number for kind in _UNSTABLE):
            raise UnstablePhysicsError(f"the physics of '{self._name}' became unstable")
        return observation, float(reward), bool(terminated), info

    def apply_force(self, force: npt.NDArray[np.float64]) -> None:
        """Let a force (3,), in newtons along the world's axes, act during the next step."""
        self.env.data.xfrc_applied[self._body, :3] = force

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
