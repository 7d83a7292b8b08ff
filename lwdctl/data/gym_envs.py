"""What D4RL and Minari data share: the Gymnasium environments that they were recorded in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, EnvSpec, FloatArray
from lwdctl.core.simulator_facts import ANT_CONTACT_FORCES, GYM_ENVIRONMENTS, GymEnvironment
from lwdctl.data.hdf5 import array_at, read_array, read_rows

# Rows from which it is decided whether a file's contact forces are all zero.
SAMPLE = 1000
STATE_KEYS = ("qpos", "qvel")

_ID = re.compile(r"([A-Za-z0-9]+)-v(\d+)")
_LEVELS = (
    "medium-replay", "medium-expert", "full-replay", "simple", "medium", "expert", "random",
    "human", "cloned",
)  # fmt: skip

_BASES = {env.base: env for env in GYM_ENVIRONMENTS}
# D4RL names the hand's tasks by their last word.
_BASES.update({env.base.removeprefix("adroithand"): env for env in GYM_ENVIRONMENTS})


def known_env(text: str) -> GymEnvironment | None:
    """Return the known environment that a name, an id or a file name contains, or None."""
    for word in re.split(r"[^a-z0-9]+", text.lower()):
        if word in _BASES:
            return _BASES[word]
    return None


def gym_id(text: str) -> str:
    """Return the first Gymnasium id in a text (`"gymnasium HalfCheetah-v4"`), or ""."""
    match = _ID.search(text)
    return match[0] if match else ""


def level_of(text: str) -> str:
    """Return the behavior level that a file or data set name contains, or ""."""
    words = f"-{re.sub(r'[^a-z0-9]+', '-', text.lower())}-"
    return next((level for level in _LEVELS if f"-{level}-" in words), "")


def env_spec(
    env: GymEnvironment | None, requested: tuple[str, str], name: str, size: int, where: str
) -> EnvSpec:
    """Describe the environment of data whose observations have `size` components.

    Args:
        env: The known environment, or None.
        requested: Adapter and environment name of `--env`, or "" each.
        name: Environment id that the source names, or "".
        size: Components of an observation.
        where: File and key, for messages.

    Raises:
        DataError: The known environment has observations of another size.
    """
    adapter, requested_name = requested
    task = requested_name or name or (env.id if env else "")
    tasks, settings = ((task,), {"id": task}) if task else ((), {})
    if env is None:
        return EnvSpec(adapter, tasks, settings)
    if name in ("", env.id):  # another version may have other sizes
        if size not in env.observation_sizes:
            sizes = " or ".join(str(known) for known in env.observation_sizes)
            raise DataError(
                f"{where}, row 0: has {size} components, {env.id} has {sizes}",
                "name the environment with --env ADAPTER/NAME",
            )
        settings.update(env.observation_sizes[size])
    return EnvSpec(adapter or env.adapter, tasks, settings, env.max_steps)


def mark_zero_forces(spec: EnvSpec, observations: FloatArray) -> EnvSpec:
    """Add the setting `zero_contact_forces` if Ant's recorded contact forces are all zero.

    D4RL's data were recorded with a MuJoCo that left them at zero; networks trained on that must
    not see real forces.

    Args:
        spec: What `env_spec` returned for observations with contact forces.
        observations: Some recorded rows (time, obs).
    """
    if observations[:, -ANT_CONTACT_FORCES:].any():
        return spec
    return replace(spec, settings={**spec.settings, "zero_contact_forces": True})


def state_arrays(
    group: h5py.Group, env: GymEnvironment | None, **shape: Any
) -> dict[str, h5py.Dataset]:
    """Return the arrays under `infos` that restore a simulator state, or {} if one is missing.

    Args:
        group: A D4RL file or an episode of a Minari file.
        env: The environment, where it is a known one.
        **shape: What `array_at` shall check.
    """
    names = [*STATE_KEYS, *(env.state_keys if env else ())]
    if any(f"infos/{name}" not in group for name in names):
        return {}
    return {name: array_at(group, f"infos/{name}", **shape) for name in names}


def state_layout(arrays: Mapping[str, h5py.Dataset]) -> dict[str, Any]:
    """Return the setting `initial_state`: names and sizes of the parts of a state vector."""
    if not arrays:
        return {}
    return {"initial_state": [[name, array.shape[1]] for name, array in arrays.items()]}


def read_state(arrays: Mapping[str, h5py.Dataset], row: int) -> npt.NDArray[np.float64] | None:
    """Return the simulator state (state,) at a row, or None where none is recorded.

    Raises:
        NonFiniteError: It holds NaN or infinity.
    """
    if not arrays:
        return None
    parts = []
    for array in arrays.values():
        read_rows(array, row, row + 1)  # checks that the values are finite
        parts.append(read_array(array, row, row + 1).reshape(-1))
    return np.concatenate(parts).astype(np.float64)


def gym_action(env: GymEnvironment | None, size: int) -> ActionSpec:
    """Describe the actions; every known environment takes [-1, 1]."""
    low, high = (-1.0,) * size, (1.0,) * size
    if env is None:
        return ActionSpec(size, "absolute", "unknown", low, high)
    return ActionSpec(size, env.semantics, "normalized", low, high, env.control_rate)
