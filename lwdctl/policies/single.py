"""Policies that act for one robot, run in a batch of environments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError, NotFiniteError
from lwdctl.core.records import FloatArray
from lwdctl.policies.policy import EpisodePlan, Policy, PolicyCost


class SingleRobotPolicies:
    """One copy of a policy per environment.

    Args:
        policy: Anything with `reset` and `act`; see `policies.policy.Policy`. Of the arguments of
            `reset` (seed, task, label) it is given those that it takes.
        num_envs: Number of environments.
        action_size: Components of an action; 0 takes that of the first one.
        known: Name of an argument of `reset` to the values that the policy takes; any other value
            is left out.

    Raises:
        ConfigError: The object has no `reset` or no `act`.
    """

    def __init__(
        self,
        policy: Policy,
        num_envs: int,
        action_size: int = 0,
        known: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if isinstance(policy, type):
            raise ConfigError(
                f"{policy.__name__} is a class, not a policy",
                f"pass an instance: {policy.__name__}()",
            )
        for name in ("reset", "act"):
            if not callable(getattr(policy, name, None)):
                raise ConfigError(
                    f"{type(policy).__name__} is no policy: it has no method '{name}'",
                    "a policy has reset(seed, task, label) and act(observation); lwdctl.load_policy"
                    " opens a trained model",
                )
        self._size, self._known = action_size, known or {}
        self._policies = [policy, *(_copy(policy) for _ in range(num_envs - 1))]
        self._taken = _arguments_taken(policy.reset)
        self._running = [False] * num_envs

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per environment; None leaves the environment idle."""
        self._running = [plan is not None for plan in episodes]
        for policy, plan in zip(self._policies, episodes, strict=False):
            if plan is not None:
                given = {name: getattr(plan, name) for name in self._taken}
                known = {
                    name: value
                    for name, value in given.items()
                    if value in self._known.get(name, [value])
                }
                policy.reset(**known)

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (env, action) in environment units; zeros for inactive environments.

        Raises:
            ConfigError: A policy returned no vector, or one of another size than before.
        """
        found = []
        for index in np.flatnonzero(active):
            seen = {name: rows[index] for name, rows in observations.items()}
            found.append(self._action(self._policies[index], seen))
        actions = np.zeros((len(active), self._size), dtype=np.float32)
        actions[active] = np.stack(found) if found else 0.0
        return actions

    def acts_in_parts(self, running: npt.NDArray[np.bool_]) -> bool:
        """Return True: every environment acts by itself."""
        del running
        return True

    def cost(self) -> PolicyCost:
        """Return the re-plans of policies that count them in an attribute `replans`, else none."""
        counts = [getattr(policy, "replans", 0) for policy in self._policies]
        replans = np.where(self._running, [_count(item) for item in counts], 0).astype(np.int64)
        return PolicyCost(replans, {}, replans)

    def _action(self, policy: Policy, seen: Mapping[str, FloatArray]) -> FloatArray:
        """Return one policy's action (action,), after checking it; NaN where it refuses one."""
        try:
            returned: Any = policy.act(seen)
        except NotFiniteError:
            if not self._size:
                raise
            returned = np.full(self._size, np.nan)
        if returned is None:
            wrong = "None"
        else:
            if hasattr(returned, "detach"):  # a tensor, perhaps with gradients or on a GPU
                returned = returned.detach().cpu().float()
            action = np.asarray(returned, dtype=np.float32)
            self._size = self._size or action.size
            if action.shape == (self._size,):
                return action
            wrong = f"an action of shape {action.shape}"
        raise ConfigError(
            f"{type(policy).__name__}.act returned {wrong}, expected an array of shape"
            f" ({self._size or 'action'},)",
            "act(observation) acts for one robot and returns one number per component of an action",
        )


def _count(value: Any) -> int:
    """Return a number as a whole one, and 0 for what is none."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def _copy(policy: Policy) -> Any:
    copied = getattr(policy, "copy", None)
    try:
        return copied() if callable(copied) else copy.deepcopy(policy)
    except Exception as error:
        raise ConfigError(
            f"{type(policy).__name__} cannot be copied for several environments: {error}",
            "give it a method copy(), or evaluate it with num_envs=1",
        ) from error


def _arguments_taken(reset: Any) -> tuple[str, ...]:
    parameters = inspect.signature(reset).parameters.values()
    every = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters)
    names = {item.name for item in parameters}
    return tuple(name for name in ("seed", "task", "label") if every or name in names)
