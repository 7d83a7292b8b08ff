"""Policies that lwdctl does not train: the lower bounds, hand-written ones, plug-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.description import read_description
from lwdctl.core.errors import ConfigError
from lwdctl.core.records import FloatArray, SourceSpec
from lwdctl.envs.simulator import StillAction
from lwdctl.envs.table import load_environment
from lwdctl.methods.method import Acting, ActingCost, Method, TrainedPolicy
from lwdctl.policies.policy import BatchPolicy, EpisodePlan, PolicyCost
from lwdctl.policies.random import RandomPolicy
from lwdctl.policies.single import SingleRobotPolicies


def still_action(source: SourceSpec) -> StillAction:
    """Return what computes the action that keeps a robot where an observation shows it.

    Motions and torques are zero, a gripper's too: robosuite's then stays as it is, Metaworld's
    applies no effort. An absolute target is the position that it commands, where the data say
    which observation shows that one; otherwise the environment knows its `still_action`.

    Raises:
        ConfigError: None of these applies; the hint says what is missing.
    """
    action, adapter = source.action, source.env.adapter
    if action.semantics in ("delta", "torque"):
        return lambda _: np.zeros(action.size, dtype=np.float32)
    if action.reference:
        return lambda observation: observation[action.reference]
    offered = getattr(load_environment(source.env), "still_action", None) if adapter else None
    if offered is None:
        raise ConfigError(
            f"what holds the robot of the environment '{adapter}' still is not known: its actions"
            f" are {action.semantics} targets ({action.units})",
            "name the observation that they command as `reference` of the environment's"
            " ActionSpec, or give its class a method still_action(env); --policy random needs"
            " neither",
        )
    found: StillAction = offered(source.env)
    return found


class StillPolicy:
    """Keeps the action that holds the robot where its episode begins.

    A target that followed the robot would let it sink under its weight (the Adroit hand by half a
    radian in an episode).

    Args:
        still: See `still_action`.
        size: Components of an action.
        num_envs: Number of environments.
    """

    def __init__(self, still: StillAction, size: int, num_envs: int) -> None:
        self._still = still
        self._actions = np.zeros((num_envs, size), dtype=np.float32)
        self._begun = np.zeros(num_envs, dtype=np.bool_)

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per environment; None leaves it idle."""
        del episodes
        self._begun[:] = False

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (env, action)."""
        for index in np.flatnonzero(active & ~self._begun):
            seen = {name: rows[index] for name, rows in observations.items()}
            self._actions[index] = self._still(seen)
        self._begun |= active
        return self._actions.copy()

    def acts_in_parts(self, running: npt.NDArray[np.bool_]) -> bool:
        """Return True: every environment acts by itself."""
        del running
        return True

    def cost(self) -> PolicyCost:
        """Return no re-plans."""
        return PolicyCost(num_replans=np.zeros(len(self._begun), dtype=np.int64))


class UntrainedPolicy(TrainedPolicy):
    """A policy without a model, for the environment of some data.

    Args:
        source: The data, which name environment and actions.
        make: Builds the policy for a number of environments.
        has_known_cost: Whether it costs nothing; False where nothing is known of it.
    """

    condition: tuple[str, ...] = ()
    snippet_length: None = None

    def __init__(
        self,
        source: SourceSpec,
        make: Callable[[int], BatchPolicy],
        *,
        has_known_cost: bool = True,
    ) -> None:
        self.source, self._make, self.has_known_cost = source, make, has_known_cost
        self.observation_keys = source.network_keys
        self.device = torch.device("cpu")

    def horizon(self, acting: Acting) -> None:
        """Return None: nothing is known of any plans."""

    def check(self, acting: Acting) -> None:
        """Accept every setting: none of them concerns such a policy."""

    def batch_policy(self, acting: Acting, num_envs: int) -> BatchPolicy:
        """Build the policy."""
        del acting
        return self._make(num_envs)

    def cost(self, acting: Acting) -> ActingCost:
        """Return no cost."""
        del acting
        return ActingCost()


class RandomActions(Method):
    """Actions drawn uniformly from the environment's limits."""

    def open(self, artifacts: Mapping[str, Artifact], device: torch.device) -> UntrainedPolicy:
        """Build the policy for the environment of the snippets."""
        del device
        source = read_description(artifacts["snippets"].path)
        return UntrainedPolicy(source, lambda num_envs: RandomPolicy(source.action, num_envs))


class StandingStill(Method):
    """Actions that hold the robot where its episode begins."""

    def open(self, artifacts: Mapping[str, Artifact], device: torch.device) -> UntrainedPolicy:
        """Build the policy for the environment of the snippets.

        Raises:
            ConfigError: Neither the data nor the environment say which actions these are.
        """
        del device
        source = read_description(artifacts["snippets"].path)
        still, size = still_action(source), source.action.size
        return UntrainedPolicy(source, lambda num_envs: StillPolicy(still, size, num_envs))


class PlugInPolicy(Method):
    """A policy of another package.

    Args:
        name: Name of its entry point.
        make: Builds the policy for the environment of some data: anything with `reset` and `act`.
    """

    def __init__(self, name: str, make: Callable[[SourceSpec], Any]) -> None:
        self._name, self._make = name, make

    def open(self, artifacts: Mapping[str, Artifact], device: torch.device) -> UntrainedPolicy:
        """Build one policy per environment."""
        del device
        source = read_description(artifacts["snippets"].path)
        return UntrainedPolicy(
            source,
            lambda num_envs: SingleRobotPolicies(self._build(source), num_envs),
            has_known_cost=False,
        )

    def _build(self, source: SourceSpec) -> Any:
        try:
            return self._make(source)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"the plug-in '{self._name}' built no policy: {type(error).__name__}: {error}",
                "it is called with a SourceSpec and returns an object with reset and act",
            ) from error


RANDOM, STILL = RandomActions(), StandingStill()
