"""What `--env ADAPTER/NAME` says about data: the facts of the environments that are known."""

from __future__ import annotations

import re
from dataclasses import replace

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import UNKNOWN_UNITS, ActionSpec, EnvSpec, Finding, SourceSpec
from lwdctl.core.simulator_facts import (
    GYM_ENVIRONMENTS,
    METAWORLD_ACTION,
    METAWORLD_MAX_STEPS,
    PUSHT_ACTION,
    PUSHT_MAX_STEPS,
    PUSHT_TASK,
    ROBOSUITE_CONTROL_RATE,
    ROBOSUITE_LEAST_ACTION,
    GymEnvironment,
    robosuite_action,
)

_BASES = {env.base: env for env in GYM_ENVIRONMENTS}
# D4RL names the hand's tasks by their last word.
_BASES.update({env.base.removeprefix("adroithand"): env for env in GYM_ENVIRONMENTS})


def requested_env(config: IngestConfig) -> tuple[str, str]:
    """Return adapter and environment name that `--env ADAPTER/NAME` gives, "" where it does not."""
    adapter, _, name = (config.env or "").partition("/")
    return adapter, name


def known_env(text: str) -> GymEnvironment | None:
    """Return the known environment that a name, an id or a file name contains, or None."""
    for word in re.split(r"[^a-z0-9]+", text.lower()):
        if word in _BASES:
            return _BASES[word]
    return None


def is_version_of(name: str, env: GymEnvironment) -> bool:
    """Return whether a name is the id of a known environment, of any version."""
    return bool(re.fullmatch(rf"{env.base}-v\d+", name, re.IGNORECASE))


def gym_action(env: GymEnvironment | None, size: int) -> ActionSpec:
    """Describe the actions; every known environment takes [-1, 1].

    Of an unknown environment neither limits nor meaning are known.
    """
    if env is None:
        return ActionSpec(size, "absolute", UNKNOWN_UNITS, (), (), limits="")
    low, high = (-1.0,) * size, (1.0,) * size
    return ActionSpec(size, env.semantics, "normalized", low, high, env.control_rate)


def describe_requested(
    config: IngestConfig, size: int, where: str
) -> tuple[ActionSpec, EnvSpec, list[Finding]]:
    """Describe actions and environment by what the user requests.

    Args:
        config: Its `env`, `actions` and `max_steps`.
        size: Components of an action.
        where: The file, for messages.

    Returns:
        The action, as the environment takes it, or without limits where that is not known; the
        environment; and a finding where nothing says whether actions are targets or motions.

    Raises:
        DataError: The environment takes actions of another size.
    """
    action, env = _requested(config, size, where)
    if config.max_steps:
        env = replace(env, max_steps=config.max_steps)
    if action is not None:
        return action, env, []
    if config.actions == "absolute":
        raise DataError(
            f"{where}: --actions absolute: the file does not say what its actions are, so that they"
            " cannot be converted",
            "--actions recorded-absolute if they are targets already",
        )
    unknown = gym_action(None, size)
    if config.actions != "recorded":
        return replace(unknown, semantics=config.actions.removeprefix("recorded-")), env, []
    finding = Finding(
        "semantics", "warning",
        "the file does not say whether actions are targets or motions: they are stored as targets",
        where, "--actions delta if they are motions, --actions recorded-absolute if not",
    )  # fmt: skip
    return unknown, env, [finding]


def with_requested(spec: SourceSpec, config: IngestConfig, where: str) -> SourceSpec:
    """Fill in what a file does not say from the environment that `--env` names, if it is known.

    These are the step limit, and meaning and limits of actions in unknown units. What robosuite's
    actions mean depends on the controllers, which only a file can name.

    Args:
        spec: What the file says.
        config: Its `env`.
        where: The file, for messages.

    Raises:
        DataError: The environment takes actions of another size.
    """
    action, env = _requested(config, spec.action.size, where)
    if action is None or env.adapter == "robosuite" or spec.action.units != UNKNOWN_UNITS:
        action = spec.action
    elif spec.action.limits:
        own = spec.action
        action = replace(action, low=own.low, high=own.high, limits=own.limits)
    max_steps = spec.env.max_steps or env.max_steps
    return replace(spec, action=action, env=replace(spec.env, max_steps=max_steps))


def _requested(config: IngestConfig, size: int, where: str) -> tuple[ActionSpec | None, EnvSpec]:
    """Return the action that the requested environment takes, None if it is not a known one.

    Raises:
        DataError: It takes actions of another size.
    """
    action, env = _known(config, size)
    takes = action.size if action is not None else size
    least = ROBOSUITE_LEAST_ACTION if env.adapter == "robosuite" else 0
    if takes != size or size < least:
        shown = f"at least {least}" if least else takes
        raise DataError(
            f"{where}: actions have {size} components, '{config.env}' takes {shown}",
            "name the environment that the data was recorded in: --env on the command line, env= in"
            " Python and recipes",
        )
    return action, env


def _known(config: IngestConfig, size: int) -> tuple[ActionSpec | None, EnvSpec]:
    """Return the action that an environment takes, None for one that is not known here."""
    adapter, name = requested_env(config)
    tasks = (name,) if name else ()
    if adapter == "pusht":
        action = replace(PUSHT_ACTION, reference="")  # the observations have other names
        return action, EnvSpec(adapter, tasks or (PUSHT_TASK,), {}, PUSHT_MAX_STEPS)
    if adapter == "metaworld":
        return METAWORLD_ACTION, EnvSpec(adapter, tasks, {}, METAWORLD_MAX_STEPS)
    if adapter == "robosuite":
        return robosuite_action({}, size, ROBOSUITE_CONTROL_RATE), EnvSpec(adapter, tasks)
    env = known_env(name) if name else None
    if env is not None and adapter == env.adapter:
        body = env.id.rpartition("-")[0]
        task = f"{body}{name[len(body) :]}" if is_version_of(name, env) else env.id
        return gym_action(env, env.action_size), EnvSpec(
            adapter, (task,), {"id": task}, env.max_steps
        )
    return None, EnvSpec(adapter, tasks)
