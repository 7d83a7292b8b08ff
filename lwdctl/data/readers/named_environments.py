"""What `--env ADAPTER/NAME` says about data whose file names no environment."""

from __future__ import annotations

from dataclasses import replace

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, EnvSpec, Finding
from lwdctl.core.simulator_facts import (
    METAWORLD_ACTION,
    METAWORLD_MAX_STEPS,
    PUSHT_ACTION,
    PUSHT_MAX_STEPS,
    PUSHT_TASK,
    ROBOSUITE_CONTROL_RATE,
    robosuite_action,
)
from lwdctl.data.reader import requested_env
from lwdctl.data.readers.gym_envs import gym_action, known_env


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
    action, env = _known(config, size)
    check_requested_size(config, size, where)
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
    unknown = ActionSpec(size, "absolute", "unknown", (), (), limits="")
    if config.actions != "recorded":
        return replace(unknown, semantics=config.actions.removeprefix("recorded-")), env, []
    finding = Finding(
        "semantics", "warning",
        "the file does not say whether actions are targets or motions: they are stored as targets",
        where, "--actions delta if they are motions, --actions recorded-absolute if not",
    )  # fmt: skip
    return unknown, env, [finding]


def check_requested_size(config: IngestConfig, size: int, where: str) -> None:
    """Check that the environment that `--env` names, if it is a known one, takes such actions.

    Args:
        config: Its `env`.
        size: Components of an action.
        where: The file, for messages.

    Raises:
        DataError: It takes actions of another size.
    """
    action, _ = _known(config, size)
    if action is not None and action.size != size:
        raise DataError(
            f"{where}: actions have {size} components, '{config.env}' takes {action.size}",
            "name the environment that the data was recorded in with --env",
        )


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
        return gym_action(env, env.action_size), EnvSpec(
            adapter, (env.id,), {"id": env.id}, env.max_steps
        )
    return None, EnvSpec(adapter, tasks)
