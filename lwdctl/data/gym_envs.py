"""What D4RL and Minari data share: the Gymnasium environments that they were recorded in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, EnvSpec, FloatArray
from lwdctl.core.simulator_facts import ANT_CONTACT_FORCES, GYM_ENVIRONMENTS, GymEnvironment
from lwdctl.data.hdf5 import array_at, read_array, read_rows
from lwdctl.data.reader import requested_env

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


def level_of(text: str) -> str:
    """Return the behavior level that a file or data set name contains, or ""."""
    words = f"-{re.sub(r'[^a-z0-9]+', '-', text.lower())}-"
    return next((level for level in _LEVELS if f"-{level}-" in words), "")


def describe_env(
    config: IngestConfig,
    recorded: str,
    size: int,
    where: str,
    *,
    sample: Callable[[], FloatArray],
    file_name: str = "",
) -> tuple[GymEnvironment | None, EnvSpec]:
    """Describe the environment of data whose observations have `size` components.

    D4RL's data were recorded with a MuJoCo that left Ant's contact forces at zero; networks trained
    on that must not see real forces. The setting `zero_contact_forces` marks such data.

    Args:
        config: Its `env` takes precedence over the recorded one.
        recorded: Text with the Gymnasium id that the source names, or "".
        size: Components of an observation.
        where: File and key, for messages.
        sample: Reads some observations (time, obs); called where contact forces are recorded.
        file_name: Names the environment where nothing else does.

    Returns:
        The environment, None where it is not a known one, and its specification.

    Raises:
        DataError: The known environment has observations of another size.
    """
    adapter, requested = requested_env(config)
    match = _ID.search(recorded)
    name = match[0] if match else ""
    env = known_env(requested or name or file_name)
    task = requested or name or (env.id if env else "")
    tasks: tuple[str, ...] = (task,) if task else ()
    settings: dict[str, Any] = {"id": task} if task else {}
    if env is None:
        return None, EnvSpec(adapter, tasks, settings)
    if name in ("", env.id):  # another version may have other sizes
        if size not in env.observation_sizes:
            sizes = " or ".join(str(known) for known in env.observation_sizes)
            raise DataError(
                f"{where}, row 0: has {size} components, {env.id} has {sizes}",
                "name the environment with --env ADAPTER/NAME",
            )
        settings.update(env.observation_sizes[size])
    if settings.get("use_contact_forces") and not sample()[:, -ANT_CONTACT_FORCES:].any():
        settings["zero_contact_forces"] = True
    return env, EnvSpec(adapter or env.adapter, tasks, settings, env.max_steps)


def state_arrays(
    group: h5py.Group, env: GymEnvironment | None, **shape: Any
) -> tuple[list[h5py.Dataset], dict[str, Any]]:
    """Return the arrays under `infos` that restore a simulator state, none if one is missing.

    Args:
        group: A D4RL file or an episode of a Minari file.
        env: The environment, where it is a known one.
        **shape: What `array_at` shall check.

    Returns:
        The arrays, and the setting `initial_state`: names and sizes of a state vector's parts.
    """
    names = [*STATE_KEYS, *(env.state_keys if env else ())]
    if any(f"infos/{name}" not in group for name in names):
        return [], {}
    arrays = [array_at(group, f"infos/{name}", **shape) for name in names]
    sizes = [[name, array.shape[1]] for name, array in zip(names, arrays, strict=True)]
    return arrays, {"initial_state": sizes}


def read_state(arrays: Sequence[h5py.Dataset], row: int) -> npt.NDArray[np.float64] | None:
    """Return the simulator state (state,) at a row, or None where none is recorded.

    Raises:
        NonFiniteError: It holds NaN or infinity.
    """
    if not arrays:
        return None
    for array in arrays:
        read_rows(array, row, row + 1)  # checks that the values are finite
    parts = [read_array(array, row, row + 1).reshape(-1) for array in arrays]
    return np.concatenate(parts).astype(np.float64)


def gym_action(env: GymEnvironment | None, size: int) -> ActionSpec:
    """Describe the actions; every known environment takes [-1, 1]."""
    low, high = (-1.0,) * size, (1.0,) * size
    if env is None:
        return ActionSpec(size, "absolute", "unknown", low, high)
    return ActionSpec(size, env.semantics, "normalized", low, high, env.control_rate)
