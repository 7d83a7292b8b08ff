"""Which feet touch the floor, computed from observations alone.

Data files hold no contacts, and after a step MuJoCo's own list is that of the moment before it
ended. Placing the body as an observation says and asking for collisions gives the same answer
for recorded data and for rollouts. The observation leaves out where on the floor the body stands,
which does not matter there.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError
from lwdctl.envs.gymnasium_scene import build_environment

Contacts = npt.NDArray[np.bool_]

FLOOR = "floor"
# The shapes that stand on the floor, by the names of Gymnasium's models.
FEET = {
    "Ant": ("left_ankle_geom", "right_ankle_geom", "third_ankle_geom", "fourth_ankle_geom"),
    "HalfCheetah": ("bfoot", "ffoot"),
    "Hopper": ("foot_geom",),
    "Walker2d": ("foot_geom", "foot_left_geom"),
}
# Positions at the front of the state that observations leave out: x, and for Ant y as well.
UNSEEN = {"Ant": 2, "HalfCheetah": 1, "Hopper": 1, "Walker2d": 1}


def feet_names(env_id: str) -> tuple[str, ...]:
    """Return the feet of an environment in the order of `foot_contacts`' columns.

    Raises:
        ConfigError: The environment's feet are not known.
    """
    return tuple(name.removesuffix("_geom") for name in FEET[_body_of(env_id)])


def foot_contacts(env_id: str, observations: npt.NDArray[Any]) -> Contacts:
    """Tell which feet touch the floor.

    A foot touches where MuJoCo would let forces act, so within the shapes' margin: 1 cm for Ant,
    1 mm for Hopper, 0 for the others.

    Args:
        env_id: Gymnasium id (`"Walker2d-v4"`).
        observations: (time, obs).

    Returns:
        (time, feet), in the order of `feet_names`.

    Raises:
        ConfigError: The environment's feet are not known.
        ValueError: Observations of another size.
    """
    body = _body_of(env_id)
    env = build_environment(env_id)
    try:
        contacts = FootContacts(body, env.model)
        rows = [contacts.at(row) for row in observations]
    finally:
        env.close()
    return np.array(rows, dtype=np.bool_).reshape(len(rows), len(FEET[body]))


class FootContacts:
    """Foot contacts of one model.

    Args:
        body: A key of `FEET`.
        model: Its MuJoCo model, which is only read.
    """

    def __init__(self, body: str, model: Any) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        self._floor = model.geom(FLOOR).id
        self._feet = np.array([model.geom(name).id for name in FEET[body]])
        self._unseen = UNSEEN[body]

    def at(self, observation: npt.NDArray[Any]) -> Contacts:
        """Return the contacts (feet,) at one observation (obs,).

        Raises:
            ValueError: An observation with too few components.
        """
        self._data.qpos[self._unseen :] = observation[: self._model.nq - self._unseen]
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_collision(self._model, self._data)
        first, second = self._data.contact.geom1, self._data.contact.geom2
        touching = np.concatenate([second[first == self._floor], first[second == self._floor]])
        found: Contacts = np.isin(self._feet, touching)
        return found


def _body_of(env_id: str) -> str:
    body = env_id.partition("-")[0]
    if body not in FEET:
        raise ConfigError(f"the feet of '{env_id}' are not known", "known: " + ", ".join(FEET))
    return body
