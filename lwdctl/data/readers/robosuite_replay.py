"""Observations of robosuite's recordings, which hold only states: the states are replayed.

An observation is what robosuite shows in the recorded scene once a recorded state is set, as
robomimic's script `dataset_states_to_obs` computes it.
"""
# robosuite offers no public way to its observations without a step.
# ruff: noqa: SLF001

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError, first_line, install_extra
from lwdctl.core.records import FloatArray
from lwdctl.core.robosuite_import import LOW_DIMENSIONAL, check_scene, import_robosuite
from lwdctl.data.checks import finite_rows

# From robosuite 1.5 on the names of a gripper's parts carry the arm's.
MARK_OF_15 = "gripper0_right_"
# The controller is never asked for an action.
NEVER = ("controller_configs", "env_name")


def commands_for(path: Path, *, converted: bool) -> str:
    """Return robomimic's commands that write a file with observations beside a recording.

    Args:
        path: The recording.
        converted: Whether it has robomimic's `env_args` already.
    """
    file = shlex.quote(str(path))
    convert = f"python -m robomimic.scripts.conversion.convert_robosuite --dataset {file} && "
    return (
        f"{'' if converted else convert}python -m robomimic.scripts.dataset_states_to_obs"
        f" --dataset {file} --output_name low_dim.hdf5 --done_mode 2"
    )


class StateReplay:
    """Computes observations from the states of one file.

    Args:
        env_args: robomimic's description of the environment.
        where: File and group, for error messages.
        hint: What makes a file with observations elsewhere.

    Attributes:
        version: Version of robosuite.
        sizes: Components of every observation, by its name.

    Raises:
        DataError: robosuite is not installed, or cannot build the environment.
    """

    def __init__(self, env_args: Mapping[str, Any], where: str, hint: str) -> None:
        self._hint = hint
        try:
            robosuite = import_robosuite()
        except ImportError:
            raise DataError(
                f"{where}: holds no observations, and robosuite, which can compute them from the"
                " states, is not installed",
                f"{install_extra('robosuite')}, or where robomimic is installed: {hint}",
            ) from None
        self.version = str(robosuite.__version__)
        self._assets = Path(str(robosuite.__file__)).resolve().parent / "models" / "assets"
        name, kwargs = str(env_args.get("env_name", "")), dict(env_args.get("env_kwargs", {}))
        registered: Any = robosuite.environments.base.REGISTERED_ENVS
        classes = registered[name].__mro__ if name in registered else ()
        known = {key for item in classes for key in inspect.signature(item.__init__).parameters}
        try:
            self._env = robosuite.make(
                name,
                **{
                    key: value
                    for key, value in kwargs.items()
                    if key in known and key not in (*LOW_DIMENSIONAL, *NEVER)
                },
                **LOW_DIMENSIONAL,
            )
        except Exception as error:  # noqa: BLE001 - robosuite raises bare exceptions
            raise DataError(
                f"{where}: holds no observations, and robosuite {self.version} cannot build"
                f" '{name}' to compute them ({first_line(error)})",
                hint,
            ) from None
        self._model: str | None = None
        self.sizes = {key: len(value) for key, value in self._seen().items()}

    def observations(
        self, states: npt.NDArray[np.float64], model: str, where: str
    ) -> dict[str, FloatArray]:
        """Return every observation (time, obs) of recorded states (time, state).

        Args:
            states: As robosuite flattens them: time, positions, velocities.
            model: The recorded scene (MJCF).
            where: File and demonstration, for error messages.

        Raises:
            DataError: A scene that cannot be read or was made before robosuite 1.5, or states that
                are not this scene's.
        """
        self._load(model, where)
        sim = self._env.sim
        size = 1 + sim.model.nq + sim.model.nv
        if states.shape[1] != size:
            raise DataError(
                f"{where}/states, row 0: has {states.shape[1]} components, the scene has {size}"
            )
        rows: dict[str, list[npt.NDArray[np.float64]]] = {key: [] for key in self.sizes}
        for row, state in enumerate(states):
            sim.set_state_from_flattened(state)
            sim.forward()
            if row == 0:  # relative poses are computed from the update before
                self._seen()
            for key, value in self._seen().items():
                rows[key].append(value)
        return {
            key: finite_rows(np.stack(values), f"{where}/states: {key}")
            for key, values in rows.items()
        }

    def _load(self, model: str, where: str) -> None:
        if model == self._model:
            return
        if not model:
            raise DataError(f"{where}.attrs[model_file]: is missing: the scene of the states")
        if MARK_OF_15 not in model:
            raise DataError(
                f"{where}: its scene is older than robosuite 1.5, and {self.version} is installed",
                f"with the robosuite that recorded it: {self._hint}",
            )
        try:
            scene = self._env.edit_model_xml(model)
            check_scene(scene, self._assets)
            self._env.reset_from_xml_string(scene)
        except (AttributeError, KeyError, ValueError, ET.ParseError) as error:
            raise DataError(
                f"{where}.attrs[model_file]: cannot be built ({first_line(error)})", self._hint
            ) from None
        self._env.sim.reset()
        self._model = model

    def _seen(self) -> dict[str, npt.NDArray[np.float64]]:
        seen = self._env._get_observations(force_update=True)
        robots = tuple(robot.robot_model.naming_prefix for robot in self._env.robots)
        kept = {
            key: np.atleast_1d(np.asarray(value, np.float64))
            for key, value in seen.items()
            if key.startswith(robots) and not key.endswith("-state")
        }
        if "object-state" in seen:
            kept["object"] = np.asarray(seen["object-state"], np.float64)
        return kept

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
