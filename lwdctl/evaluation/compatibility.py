"""Whether an environment is the one that the data was recorded in."""

from __future__ import annotations

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError
from lwdctl.envs.table import make_simulator


def check_compatible(store: SnippetStore, task: str) -> None:
    """Refuse an environment whose observations or actions are not those of the data.

    Args:
        store: The data, which says what it was recorded with.
        task: A task to build the environment for.

    Raises:
        ConfigError: The message names the observation or the action property.
    """
    env = store.spec.env
    simulator = make_simulator(env, task)
    try:
        offered = {item.name: item.size for item in simulator.observations}
        for item in store.spec.observations:
            if item.network and offered.get(item.name) != item.size:
                raise ConfigError(
                    f"the data has an observation '{item.name}' of {item.size} numbers,"
                    f" {env.adapter} gives {offered.get(item.name, 'none')}"
                )
        ours, theirs = store.spec.action, simulator.action
        if (ours.size, ours.semantics) != (theirs.size, theirs.semantics):
            raise ConfigError(
                f"the data's actions are {ours.size} {ours.semantics} numbers,"
                f" {env.adapter} takes {theirs.size} {theirs.semantics} ones"
            )
    finally:
        simulator.close()
