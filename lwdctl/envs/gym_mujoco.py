"""Gymnasium's MuJoCo locomotion, and which feet touch the floor.

D4RL's data belong to version 4: later versions changed rewards, and for Walker2d the model.
Minari's own data belong to version 5. None of the tasks has a success: policies differ in their
return and gait.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import ActionSpec, EnvSpec, FloatArray, ObservationSpec
from lwdctl.core.simulator_facts import ANT_CONTACT_FORCES, LOCOMOTION_MAX_STEPS, OBSERVATION
from lwdctl.envs.mujoco_simulator import (
    SCORE,
    GymnasiumMujoco,
    build_environment,
    normalized_score,
)
from lwdctl.envs.simulator import BehaviorMeasure, Metric, Observation
from lwdctl.envs.table import check_tasks

BODIES = ("HalfCheetah", "Walker2d", "Ant", "Hopper")
VERSIONS = ("v4", "v5")
# Bodies that move in the x-z plane only.
PLANAR = frozenset(BODIES) - {"Ant"}
FLOOR = "floor"
# The shapes that stand on the floor, by the names of Gymnasium's models.
FEET = {
    "Ant": ("left_ankle_geom", "right_ankle_geom", "third_ankle_geom", "fourth_ankle_geom"),
    "HalfCheetah": ("bfoot", "ffoot"),
    "Hopper": ("foot_geom",),
    "Walker2d": ("foot_geom", "foot_left_geom"),
}
# Positions at the front of the state that observations leave out: x, and for Ant y as well.
UNOBSERVED = {"Ant": 2, "HalfCheetah": 1, "Hopper": 1, "Walker2d": 1}


def task_names() -> tuple[str, ...]:
    """Return the Gymnasium ids."""
    return tuple(f"{body}-{version}" for version in VERSIONS for body in BODIES)


class GymMujocoSimulator(GymnasiumMujoco):
    """One body that is rewarded for running forward.

    Actions are the motors' torques, -1 to 1 of what each can give. The score is D4RL's normalized
    return. Walker2d, Ant and Hopper end when they fall, as their versions say; the metrics then
    cover the steps before. `Step.success` is always False.

    Args:
        env: `settings["use_contact_forces"]` adds the 84 contact forces of Ant-v4 to the
            observation and their cost to the reward; with `settings["zero_contact_forces"]` they
            are zeros, as in D4RL's files, and cost nothing. `max_steps` of 0 means 1000.
        task: A Gymnasium id (`"HalfCheetah-v4"`).

    Raises:
        ConfigError: An unknown task.
    """

    # The score by name; each body has its own references and feet.
    metrics: tuple[Metric, ...] = (Metric(SCORE, "reward", "sum"),)

    def __init__(self, env: EnvSpec, task: str) -> None:
        check_tasks([task], task_names(), "environment 'mujoco'")
        self.max_steps = env.max_steps or LOCOMOTION_MAX_STEPS
        forces = task == "Ant-v4" and bool(env.settings.get("use_contact_forces"))
        zeros = forces and bool(env.settings.get("zero_contact_forces"))
        arguments = {"use_contact_forces": True} if forces and not zeros else {}
        super().__init__(task, arguments, body="torso", camera="track")
        self._body = task.partition("-")[0]
        self._planar = self._body in PLANAR
        self._feet = FootContacts(task, self._env.model)
        self._padding = np.zeros(ANT_CONTACT_FORCES if zeros else 0)
        size = self._env.observation_space.shape[0] + self._padding.size
        self.observations = (ObservationSpec(OBSERVATION, size),)
        size, rate = self._env.model.nu, float(self._env.metadata["render_fps"])
        limits = (-1.0,) * size, (1.0,) * size
        self.action = ActionSpec(size, "torque", "normalized", *limits, rate)
        contacts = (Metric(name, name, "mean") for name in self._feet.names)
        self.metrics = (normalized_score(self._body.lower()), *contacts)
        self._state = self._env.state_vector()

    @staticmethod
    def behavior_measure(task: str) -> BehaviorMeasure:
        """Return the fractions of steps during which each foot touches the floor."""
        contacts = FootContacts(task, build_environment(task).model)

        def fractions(observations: npt.NDArray[Any]) -> Mapping[str, float]:
            values = np.mean([contacts.at(row) for row in observations], axis=0).tolist()
            return dict(zip(contacts.names, values, strict=True))

        return BehaviorMeasure(fractions, contacts.names, fractions=True)

    def reset(self, seed: int) -> Observation:
        """Start the episode that `seed` fixes entirely, as the environment's own `reset` does."""
        observation, _ = self._env.reset(seed=seed)
        self._state = self._env.state_vector()
        return self._observe(observation)

    def restore(self, state: npt.NDArray[np.float64], model: str = "") -> Observation:
        """Start from recorded positions and velocities, concatenated.

        Raises:
            SimulatorError: Not a state of this body.
        """
        del model
        positions, velocities = self._env.model.nq, self._env.model.nv
        self._set_state(state, positions + velocities)
        self._clear()
        self._env.set_state(self._state[:positions], self._state[positions:])
        return self._observe(self._env._get_obs())  # noqa: SLF001 - there is no public way

    def state_at(self, observation: Observation) -> npt.NDArray[np.float64]:
        """Return the state that an observation shows, with the body at the origin.

        The position on the floor is not observed and has no effect. Walker2d and Hopper clip
        observed speeds at 10.
        """
        unobserved = np.zeros(UNOBSERVED[self._body])
        size = self._env.model.nq + self._env.model.nv - unobserved.size
        seen = np.asarray(observation[OBSERVATION][:size], dtype=np.float64)
        return np.concatenate([unobserved, seen])

    def _observe(self, observation: npt.NDArray[np.float64]) -> Observation:
        row = np.concatenate([observation, self._padding])
        return {OBSERVATION: row.astype(np.float32)}

    def _numbers(self, observation: FloatArray) -> Mapping[str, float]:
        contacts = self._feet.at(observation).astype(float).tolist()
        return dict(zip(self._feet.names, contacts, strict=True))


class FootContacts:
    """Which feet of one body touch the floor, computed from observations alone.

    Data files hold no contacts, and after a step MuJoCo's own list is that of one substep earlier.
    Placing the body as an observation says and detecting collisions gives the same answer for
    recorded data and for rollouts. The observation leaves out the position on the floor, which has
    no effect. A foot touches where MuJoCo would let forces act, so within the shapes' margin: 1 cm
    for Ant, 1 mm for Hopper, 0 for the others.

    Args:
        env_id: Gymnasium id (`"Walker2d-v4"`).
        model: Its MuJoCo model, which is only read.

    Attributes:
        names: Metric names, in the order of the contacts.

    Raises:
        ConfigError: The environment's feet are not known.
    """

    def __init__(self, env_id: str, model: Any) -> None:
        body = env_id.partition("-")[0]
        if body not in FEET:
            raise ConfigError(f"the feet of '{env_id}' are not known", "known: " + ", ".join(FEET))
        self.names = tuple(f"contact_{foot.removesuffix('_geom')}" for foot in FEET[body])
        self._model, self._data = model, mujoco.MjData(model)
        self._floor = model.geom(FLOOR).id
        self._feet = np.array([model.geom(name).id for name in FEET[body]])
        self._unobserved = UNOBSERVED[body]

    def at(self, observation: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return the contacts (feet,) at one observation (obs,).

        Raises:
            ValueError: An observation with too few components.
        """
        self._data.qpos[self._unobserved :] = observation[: self._model.nq - self._unobserved]
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_collision(self._model, self._data)
        first, second = self._data.contact.geom1, self._data.contact.geom2
        touching = np.concatenate([second[first == self._floor], first[second == self._floor]])
        found: npt.NDArray[np.bool_] = np.isin(self._feet, touching)
        return found
