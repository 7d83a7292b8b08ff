"""The contract of scripted experts, and the table of simulators that have them.

A new row names a module of this package that holds one `ExpertSet`, beside the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lwdctl.core.records import EnvSpec, FloatArray
from lwdctl.core.registry import Registry, Row
from lwdctl.envs.simulator import Observation

EXPERTS = Registry(
    "simulator with scripted experts",
    {
        "metaworld": Row("lwdctl.envs.metaworld_expert:EXPERTS", "Metaworld's scripted policies"),
        "robosuite": Row(
            "lwdctl.envs.robosuite_expert:EXPERTS",
            "six operators of different skill for Lift and Can",
            extra="robosuite",
        ),
    },
)


class Expert(Protocol):
    """One episode's hand; made anew for every episode."""

    def act(self, observation: Observation) -> FloatArray:
        """Return the next action (action,) within the environment's limits."""

    def finished(self, success: bool) -> bool:
        """Return whether the recording ends here; `success`: whether the task is solved now."""


class ExpertSet(Protocol):
    """Every expert of one simulator, to derive from.

    Attributes:
        operators: Names of the operators, or `("",)` where a task has one nameless expert.
        episodes: Demonstrations per task and operator when nobody says how many.
        task: The task when nobody names one.
        packages: What the demonstrations depend on, for the record of versions.
        several_tasks: Whether demonstrations of different tasks fit into one file.
    """

    operators: tuple[str, ...] = ("",)
    episodes: int
    task: str
    packages: tuple[str, ...]
    several_tasks: bool = True

    def tasks(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the simulator's task names for what a user calls them.

        Raises:
            ConfigError: An unknown name; the hint names the closest ones.
        """

    def file_name(self, tasks: Sequence[str]) -> str:
        """Name what is collected on `tasks`."""

    def environment(self, tasks: Sequence[str], max_steps: int) -> EnvSpec:
        """Describe the environment with the versions installed; 0 steps is the usual limit."""

    def env_args(self, env: EnvSpec) -> dict[str, Any]:
        """Return robomimic's `env_args`, from which ingest rebuilds `env`."""

    def expert(self, task: str, operator: str, seed: int) -> Expert:
        """Return the expert of one episode, fixed by these three."""

    def state(self, simulator: Any) -> npt.NDArray[np.float64] | None:
        """Return the simulator's whole state now, or None where none can be restored."""
        del simulator
        return None

    def scene(self, simulator: Any) -> str:
        """Return the model text (MJCF) that the episode runs in, or ""."""
        del simulator
        return ""
