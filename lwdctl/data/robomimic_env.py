"""Environment and actions as robomimic's `env_args` describe them (versions 1.2 to 1.5)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import h5py

from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec
from lwdctl.core.registry import is_import_path
from lwdctl.core.simulator_facts import (
    METAWORLD_CONTROL_RATE,
    METAWORLD_MAX_STEPS,
    ROBOSUITE_CONTROL_RATE,
    ROBOSUITE_DEFAULT_MAX_STEPS,
    ROBOSUITE_MAX_STEPS,
    robosuite_action,
)
from lwdctl.data.hdf5 import location, text_of


def read_env_args(data: h5py.Group) -> dict[str, Any]:
    """Return `env_args` as written, or {} when the file has none.

    Raises:
        DataError: Not a JSON object.
    """
    if "env_args" not in data.attrs:
        return {}
    where = f"{location(data)}.attrs[env_args]"
    try:
        values = json.loads(text_of(data.attrs["env_args"]))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is not JSON ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("env_kwargs", {}), dict):
        raise DataError(f"{where}: is not a JSON object")
    return values


def adapter_of(env_args: Mapping[str, Any]) -> str:
    """Return the environment table's row: robosuite for robomimic's type 1, or a name as written.

    Code to import (`package.module:Class`) is named by the user with `--env`, never by a file.
    """
    written = env_args.get("type")
    if isinstance(written, str):
        return "" if is_import_path(written) else written
    return "robosuite" if written == 1 else ""


def max_steps_of(
    adapter: str, task: str, env_args: Mapping[str, Any], *, several_operators: bool
) -> int:
    """Return the episode limit with which results on this data are reported, or 0 if unknown."""
    if adapter == "robosuite":
        return ROBOSUITE_MAX_STEPS.get(task, ROBOSUITE_DEFAULT_MAX_STEPS)[several_operators]
    if adapter != "metaworld":
        return 0
    return int(env_args.get("env_kwargs", {}).get("max_steps", METAWORLD_MAX_STEPS))


def control_rate(env_args: Mapping[str, Any]) -> float:
    """Return the actions per second of a robosuite environment."""
    return float(env_args.get("env_kwargs", {}).get("control_freq", ROBOSUITE_CONTROL_RATE))


def action_spec(adapter: str, env_args: Mapping[str, Any], size: int, where: str) -> ActionSpec:
    """Describe the recorded actions.

    Raises:
        DataError: Controller settings that are not the objects robosuite writes.
    """
    if adapter == "robosuite":
        return robosuite_action(arm_settings(env_args, where) or {}, size, control_rate(env_args))
    low, high = (-1.0,) * size, (1.0,) * size
    if adapter == "metaworld":
        return ActionSpec(size, "delta", "normalized", low, high, METAWORLD_CONTROL_RATE)
    return ActionSpec(size, "absolute", "unknown", low, high)


def arm_settings(env_args: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """Return the settings of the (first) arm's controller, or None where there are none.

    Up to robosuite 1.4 the controller is at the top level (for two arms, in a list); from 1.5 it
    is under `body_parts`, in robosuite's own files one level deeper.

    Raises:
        DataError: They are not the objects robosuite writes.
    """
    configs = env_args.get("env_kwargs", {}).get("controller_configs")
    if configs is None:
        return None
    if isinstance(configs, list) and configs:
        configs = configs[0]
    if isinstance(configs, dict) and "body_parts" in configs:
        parts = configs["body_parts"]
        parts = parts.get("arms", parts) if isinstance(parts, dict) else None
        configs = parts.get("right", parts.get("left")) if isinstance(parts, dict) else None
    if not isinstance(configs, dict):
        raise DataError(f"{where}: controller_configs is not what robosuite writes")
    return configs
