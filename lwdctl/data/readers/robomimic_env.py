"""What a robomimic file says about its environment and its actions (`env_args`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, Finding
from lwdctl.core.registry import is_import_path
from lwdctl.core.simulator_facts import (
    METAWORLD_CONTROL_RATE,
    METAWORLD_MAX_STEPS,
    ROBOSUITE_DEFAULT_MAX_STEPS,
    ROBOSUITE_MAX_STEPS,
    ROBOSUITE_TASKS,
    has_absolute_targets,
    robosuite_action,
    robosuite_control_rate,
)
from lwdctl.data.files.hdf5 import json_of, location, text_attribute

ROBOSUITE_TYPE = 1
"""robomimic's number for robosuite in `env_args["type"]`."""
DESCRIBED = ("robosuite", "metaworld")
"""Environments of which it is known what their actions are."""
ACTIONS = "actions"
LARGEST_NUMBER = 10**8
"""Largest control rate and number of steps that are believed."""
DEFAULT_CONTROLLER = {"type": "OSC_POSE", "interpolation": None, "ramp_ratio": 0.2}
"""robosuite's own, with what its controllers cannot be built without."""
DECLARE_HINT = (
    "--actions delta if they are motions, --actions recorded-absolute if they are targets"
)


@dataclass(frozen=True)
class Description:
    """`env_args` as a file has them, and what was odd about them."""

    env_args: dict[str, Any]
    findings: tuple[Finding, ...] = ()


def read_env_args(data: h5py.Group, config: IngestConfig) -> Description:
    """Return `env_args`, or {} when the file has none.

    robosuite's own recordings have `env` and `env_info` instead. With `--env` the user says which
    environment it is, and what cannot be read is a finding.

    Raises:
        DataError: Not a JSON object.
    """
    attributes, where = data.attrs, f"{location(data)}.attrs[env_args]"
    if "env_args" not in attributes:
        return _of_robosuite_recording(data)
    value = attributes["env_args"]
    findings: tuple[Finding, ...] = ()
    if isinstance(value, np.ndarray) and value.ndim:
        findings = (
            Finding("metadata", "warning", "is stored as an array instead of a text", where),
        )
        value = _text_of_array(value)
    values, problem = json_of(value)
    problem = problem or _problem_of(values)
    if not problem:
        return Description(values, findings)
    if not config.env:
        raise DataError(
            f"{where}: {problem}",
            "name the environment with --env ADAPTER/NAME, then the attribute is not used",
        )
    return Description({}, (Finding("left-out", "warning", f"{problem}; it is not used", where),))


def _problem_of(values: Any) -> str:
    """Return why values cannot be `env_args`, or ""."""
    if not isinstance(values, dict) or not isinstance(values.get("env_kwargs", {}), dict):
        return "is not a JSON object"
    if not isinstance(values.get("env_name") or "", str):
        return "has an env_name that is not a text"
    for name in ("control_freq", "max_steps"):
        number = values.get("env_kwargs", {}).get(name, 0)
        if not isinstance(number, int | float) or not 0 <= number <= LARGEST_NUMBER:
            return f"has a {name} that is not a number from 0 to {LARGEST_NUMBER:,}"
    return ""


def _text_of_array(value: np.ndarray[Any, Any]) -> Any:
    """Return the text of an array that holds one text, or the bytes of one."""
    if value.dtype == np.uint8:
        return value.tobytes().rstrip(b"\0")
    return value.flat[0] if value.size == 1 else str(value.tolist())


def _of_robosuite_recording(data: h5py.Group) -> Description:
    """Return the description that `collect_human_demonstrations` of robosuite writes, or {}."""
    name, info = (text_attribute(data, key) for key in ("env", "env_info"))
    if not name or not info:
        return Description({})
    kwargs, _ = json_of(info)
    if not isinstance(kwargs, dict):
        where = f"{location(data)}.attrs[env_info]"
        return Description({}, (Finding("left-out", "warning", "is not a JSON object", where),))
    version = text_attribute(data, "repository_version")
    kwargs.pop("env_name", None)
    return Description(
        {"env_name": name, "type": ROBOSUITE_TYPE, "env_version": version, "env_kwargs": kwargs}
    )


def adapter_of(env_args: Mapping[str, Any]) -> str:
    """Return the environment table's row: robosuite for robomimic's type 1, or a name as written.

    Code to import (`package.module:Class`) is named by the user with `--env`, never by a file.
    """
    written = env_args.get("type")
    if isinstance(written, str):
        return "" if is_import_path(written) else written
    return "robosuite" if written == ROBOSUITE_TYPE else ""


def max_steps_of(
    adapter: str, task: str, env_args: Mapping[str, Any], *, several_operators: bool
) -> int:
    """Return the episode limit with which results on this data are reported, or 0 if unknown."""
    if adapter == "robosuite":
        if task not in ROBOSUITE_TASKS:
            return 0
        return ROBOSUITE_MAX_STEPS.get(task, ROBOSUITE_DEFAULT_MAX_STEPS)[several_operators]
    if adapter != "metaworld":
        return 0
    return int(env_args.get("env_kwargs", {}).get("max_steps", METAWORLD_MAX_STEPS))


@dataclass(frozen=True)
class RecordedActions:
    """What the recorded actions of a file are.

    Attributes:
        spec: Their description.
        env_args: The environment that takes them: controller settings say targets where the
            recorded numbers are targets.
        findings: What was declared, told from a name, or is not known.
    """

    spec: ActionSpec
    env_args: dict[str, Any]
    findings: tuple[Finding, ...] = ()


def describe_actions(
    adapter: str, env_args: dict[str, Any], key: str, size: int, config: IngestConfig, where: str
) -> RecordedActions:
    """Describe the recorded actions `key` of `size` components.

    `env_args` describe the array `actions`; of another array only its name and the user can tell.

    Args:
        adapter: Row of the environment table, or "".
        env_args: As the file has them.
        key: Name of the array.
        size: Its number of components.
        config: `actions` declares what the file does not say.
        where: File and attribute, for messages.

    Raises:
        DataError: Controller settings that are not the objects robosuite writes, or targets for an
            environment that takes motions only.
    """
    semantics, finding = _declared(config, key, env_args, described=adapter in DESCRIBED)
    if adapter == "metaworld" and key == ACTIONS and semantics != "absolute":
        limits = (-1.0,) * size, (1.0,) * size
        spec = ActionSpec(
            size, "delta", "normalized", *limits, METAWORLD_CONTROL_RATE, gripper=(size - 1,)
        )
        return RecordedActions(spec, env_args)
    if adapter == "metaworld" and semantics == "absolute":
        raise DataError(f"{where}: Metaworld takes motions, not targets", "leave --actions out")
    if adapter != "robosuite":
        spec = ActionSpec(size, semantics or "absolute", "unknown", (), (), limits="")
        return RecordedActions(spec, env_args, finding)
    rate = robosuite_control_rate(env_args.get("env_kwargs", {}))
    if semantics == "absolute":
        env_args = with_absolute_targets(env_args)
    try:
        arm = arm_settings(env_args, where) or {}
    except DataError as error:
        if not semantics and config.actions != "delta":
            raise DataError(error.message, DECLARE_HINT) from None
        semantics = semantics or "delta"
        spec = ActionSpec(size, semantics, "unknown", (), (), rate, limits="")
        return RecordedActions(spec, env_args, finding)
    if semantics == "delta" and has_absolute_targets(arm):
        raise DataError(
            f"{where}: the environment takes targets, but {key} are motions",
            "leave --action-key out to read the actions that the environment takes",
        )
    spec = robosuite_action(arm, size, rate)
    if spec.semantics == "absolute":  # robosuite sets no limits on targets
        spec = spec.unlimited()
    return RecordedActions(spec, env_args, finding)


def _declared(
    config: IngestConfig, key: str, env_args: Mapping[str, Any], *, described: bool
) -> tuple[str, tuple[Finding, ...]]:
    """Return the semantics that option or names give, "" for the file's own, and what to say."""
    if config.actions == "recorded-absolute":
        message = f"{key} are stored as targets, as --actions recorded-absolute declares"
        return "absolute", (Finding("semantics", "note", message),)
    if key == ACTIONS and described:
        return "", ()
    if config.actions == "delta":
        return "delta", (Finding("semantics", "note", f"{key} are stored as motions, as declared"),)
    name = str(env_args.get("env_name", "")) if key == ACTIONS else key
    told = _semantics_in(name)
    if told:
        noun = "targets" if told == "absolute" else "motions"
        message = f"{key} are stored as {noun}, which the name '{name}' says"
        return told, (Finding("semantics", "note", message, hint=DECLARE_HINT),)
    message = f"nothing says whether {key} are targets or motions; they are stored as targets"
    return "absolute", (Finding("semantics", "warning", message, hint=DECLARE_HINT),)


def _semantics_in(name: str) -> str:
    """Return what the parts of a name say: Isaac Lab's `IK-Rel`, RoboCasa's `actions_abs`."""
    parts = set(name.lower().replace("-", "_").replace("/", "_").split("_"))
    if parts & {"abs", "absolute"}:
        return "absolute"
    return "delta" if parts & {"rel", "relative", "delta"} else ""


def arm_settings(env_args: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """Return the settings of the (first) arm's controller, or None where there are none.

    Up to robosuite 1.4 the controller is at the top level (for two arms, in a list); from 1.5 it
    is under `body_parts`, in robosuite's own files one level deeper. A controller of the whole body
    takes poses of the hands, and stands for its arms.

    Raises:
        DataError: They are not the objects robosuite writes.
    """
    configs = env_args.get("env_kwargs", {}).get("controller_configs")
    if configs is None:
        return None
    if isinstance(configs, list) and configs:
        configs = configs[0]
    if isinstance(configs, dict) and "body_parts" in configs:
        whole = configs.get("composite_controller_specific_configs")
        if isinstance(whole, dict) and "ik_input_type" in whole:
            return {"type": str(configs.get("type")), "input_type": whole["ik_input_type"]}
        parts = configs["body_parts"]
        parts = parts.get("arms", parts) if isinstance(parts, dict) else None
        configs = parts.get("right", parts.get("left")) if isinstance(parts, dict) else None
    if not isinstance(configs, dict):
        raise DataError(f"{where}: controller_configs is not what robosuite writes")
    return configs


def with_absolute_targets(env_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return `env_args` whose controllers take targets in the world's frame.

    Without controller settings robosuite's default one, OSC_POSE, is named.
    """
    marked = copy.deepcopy(dict(env_args))
    kwargs = marked.setdefault("env_kwargs", {})
    if not kwargs.get("controller_configs"):
        kwargs["controller_configs"] = dict(DEFAULT_CONTROLLER)
    configs = kwargs["controller_configs"]
    for config in configs if isinstance(configs, list) else [configs]:
        for controller in _controllers(config):
            if "body_parts" in config:
                controller["input_type"], controller["input_ref_frame"] = "absolute", "world"
            else:
                controller["control_delta"] = False
                controller.pop("input_type", None)
    return marked


def _controllers(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings of every arm's controller in one robot's configuration."""
    if not isinstance(config, dict):
        return
    if "body_parts" not in config:
        yield config
        return
    parts = config["body_parts"]
    arms = parts.get("arms", parts) if isinstance(parts, dict) else {}
    yield from (arms[side] for side in ("right", "left") if isinstance(arms.get(side), dict))
