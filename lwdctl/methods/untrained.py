"""Policies that lwdctl does not train: the lower bounds, hand-written ones, plug-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.described import read_description
from lwdctl.core.errors import ConfigError
from lwdctl.core.records import SourceSpec
from lwdctl.methods.method import Acting, ActingCost, Method, TrainedPolicy
from lwdctl.policies.policy import BatchPolicy
from lwdctl.policies.random import RandomPolicy
from lwdctl.policies.single import SingleRobotPolicies
from lwdctl.policies.still import StillPolicy, still_action


class UntrainedPolicy(TrainedPolicy):
    """A policy without a model, for the environment of some data.

    Args:
        source: The data, which name environment and actions.
        make: Builds the policy for a number of environments.
    """

    condition: tuple[str, ...] = ()
    snippet_length: None = None

    def __init__(self, source: SourceSpec, make: Callable[[int], BatchPolicy]) -> None:
        self.source, self._make = source, make
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
        """Return no cost: it is not known."""
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
        make: Builds the policy for the environment of some data: anything with `reset` and `act`.
    """

    def __init__(self, make: Callable[[SourceSpec], Any]) -> None:
        self._make = make

    def open(self, artifacts: Mapping[str, Artifact], device: torch.device) -> UntrainedPolicy:
        """Build one policy per environment."""
        del device
        source = read_description(artifacts["snippets"].path)
        return UntrainedPolicy(
            source, lambda num_envs: SingleRobotPolicies(self._build(source), num_envs)
        )

    def _build(self, source: SourceSpec) -> Any:
        try:
            return self._make(source)
        except Exception as error:
            name = getattr(self._make, "__qualname__", repr(self._make))
            raise ConfigError(
                f"the plug-in {name} built no policy: {type(error).__name__}: {error}",
                "it is called with a SourceSpec and returns an object with reset and act",
            ) from error


RANDOM, STILL = RandomActions(), StandingStill()
