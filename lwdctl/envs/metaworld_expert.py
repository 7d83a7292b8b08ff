"""Metaworld's scripted experts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from metaworld.env_dict import MT10_V3
from metaworld.policies import ENV_POLICY_MAP

from lwdctl.core.records import EnvSpec, FloatArray
from lwdctl.core.simulator_facts import METAWORLD_MAX_STEPS, OBSERVATION
from lwdctl.envs.experts import ExpertSet
from lwdctl.envs.metaworld import SUFFIX, task_names
from lwdctl.envs.simulator import Observation
from lwdctl.envs.table import check_tasks

TASK_SETS = {
    "mt10": tuple(name.removesuffix(SUFFIX) for name in MT10_V3),
    # The ten tasks of the paper's experiment on inference cost.
    "lwd10": (
        "window-open", "door-open", "drawer-open", "dial-turn", "faucet-close",
        "button-press", "door-unlock", "handle-press", "plate-slide", "reach",
    ),
}  # fmt: skip


class MetaworldExpert:
    """The scripted policy of one task; make a new one for every episode."""

    def __init__(self, task: str) -> None:
        self._policy: Any = ENV_POLICY_MAP[task.removesuffix(SUFFIX) + SUFFIX]()

    def act(self, observation: Observation) -> FloatArray:
        """Return the expert's action (action,), clipped to [-1, 1]."""
        with warnings.catch_warnings():
            # The experts ask for more than the environment grants; clipping is meant.
            warnings.filterwarnings("ignore", message="Constant")
            action = self._policy.get_action(observation[OBSERVATION].astype(np.float64))
        clipped: FloatArray = np.clip(action, -1.0, 1.0).astype(np.float32)
        return clipped

    def finished(self, success: bool) -> bool:
        """Never end early: Metaworld's demonstrations are whole episodes."""
        del success
        return False


class MetaworldExperts(ExpertSet):
    """One expert per task; a file may hold any number of tasks.

    Initial states are restored from their random vectors, and a task's name says its scene.
    """

    episodes = 25
    task = "reach"
    packages = ("metaworld", "mujoco")

    def tasks(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return task names without suffix, task sets written out.

        Raises:
            ConfigError: Neither a task nor a set.
        """
        words = [name.removesuffix(SUFFIX) for name in names]
        check_tasks(
            [word for word in words if word.lower() not in TASK_SETS],
            (*task_names(), *TASK_SETS),
            "environment 'metaworld'",
        )
        wanted = [task for word in words for task in TASK_SETS.get(word.lower(), (word,))]
        return tuple(dict.fromkeys(wanted))

    def file_name(self, tasks: Sequence[str]) -> str:
        """Return the name of the task or task set, else the simulator's."""
        named = {members: name for name, members in TASK_SETS.items()}
        return tasks[0] if len(tasks) == 1 else named.get(tuple(tasks), "metaworld")

    def environment(self, tasks: Sequence[str], max_steps: int) -> EnvSpec:
        """Describe the environment with the versions that are installed."""
        settings = {package: version(package) for package in self.packages}
        return EnvSpec("metaworld", tuple(tasks), settings, max_steps or METAWORLD_MAX_STEPS)

    def env_args(self, env: EnvSpec) -> dict[str, Any]:
        """Return robomimic's `env_args`; the type is a word, robomimic has no number for it."""
        return {
            "env_name": f"{env.adapter}/{env.tasks[0]}" if len(env.tasks) == 1 else env.adapter,
            "env_version": env.settings["metaworld"],
            "type": env.adapter,
            "env_kwargs": {
                "tasks": list(env.tasks), "max_steps": env.max_steps, **env.settings
            },
        }  # fmt: skip

    def expert(self, task: str, operator: str, seed: int) -> MetaworldExpert:
        """Return the task's expert, which draws nothing."""
        del operator, seed
        return MetaworldExpert(task)


EXPERTS = MetaworldExperts()
