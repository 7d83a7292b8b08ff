"""The contract between policies and the rollout engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError, DataError, first_line
from lwdctl.core.records import FloatArray, ObservationSpec
from lwdctl.core.suggest import did_you_mean


@dataclass(frozen=True)
class EpisodePlan:
    """One evaluation episode, fixed before anything runs.

    Attributes:
        index: Position in the evaluation's list; also fixes the environment (`index % num_envs`).
        seed: Environment seed; all randomness of the episode derives from it.
        task: Task name.
        label: Behavior label to condition on, or "".
        initial_state: Recorded simulator state to restore instead of `reset(seed)`, or None.
        model: Simulator model text that the state belongs to, or "".
        demonstration: Index of the recorded episode it restores, or -1.
        action_prefix: Actions (time, action) taken once the state is restored, before the episode
            begins: they lead to a later moment of a recorded one. None for none.
    """

    index: int
    seed: int
    task: str
    label: str = ""
    initial_state: npt.NDArray[np.float64] | None = None
    model: str = ""
    demonstration: int = -1
    action_prefix: FloatArray | None = None


@dataclass
class PolicyCost:
    """What a policy spent since the last `reset`.

    Attributes:
        num_replans: (env,) calls of the generator (latents or chunks sampled).
        seconds: Wall time by part: "denoiser", "decoding", "policy".
        num_plans: (env,) plans followed (generated networks, chunks), sampled or not; empty for
            policies that do not plan ahead.
    """

    num_replans: npt.NDArray[np.int64]
    seconds: dict[str, float] = field(default_factory=dict)
    num_plans: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def condition_indices(
    part: str, plans: Sequence[EpisodePlan | None], names: Sequence[str]
) -> list[int]:
    """Return the index of each episode's task or label; 0 for idle environments.

    Args:
        part: `"task"` or `"label"`.
        plans: Episodes, None for idle environments.
        names: What the policy was trained on, in the order of the indices.

    Raises:
        ConfigError: An episode has none that the policy was trained on.
    """
    given = [getattr(plan, part) if plan else None for plan in plans]
    if not {name for name in given if name is not None} <= set(names):
        raise ConfigError(
            f"the policy is conditioned on the {part}, but an episode has no {part} that it was"
            " trained on",
            f"name one with --{part}: {', '.join(names)}",
        )
    return [0 if name is None else names.index(name) for name in given]


def known_name(part: str, name: str, names: Sequence[str], *, needed: bool) -> str:
    """Return the task or label of an episode, after checking it.

    Args:
        part: `"task"` or `"label"`.
        name: What the caller gave; "" stands for the only one where one is needed.
        names: What the policy was trained on.
        needed: Whether what the policy does depends on it.

    Raises:
        ConfigError: An unknown name, or none where the policy must choose among several.
    """
    if name and name not in names:
        raise ConfigError(f"the policy knows no {part} '{name}'", did_you_mean(name, names))
    if not name and needed and len(names) > 1:
        raise ConfigError(
            f"the policy must know the {part}: its data have several",
            f"name one: {', '.join(names)}",
        )
    return name or (names[0] if names and (needed or part == "task") else "")


def checked_observations(
    observations: Mapping[str, FloatArray] | FloatArray,
    specs: Sequence[ObservationSpec],
    batch: tuple[int, ...] = (),
) -> dict[str, FloatArray]:
    """Return what a policy observes by key, after checking it.

    Args:
        observations: Key to (*batch, obs), where further keys are ignored; or (*batch, obs), where
            the policy observes one key.
        specs: What the policy observes, in order.
        batch: () for one robot, (env,) for several environments.

    Raises:
        DataError: An observation is missing, holds no numbers, has another shape, or is not finite;
            or there is no mapping for several keys.
    """
    if not isinstance(observations, Mapping):
        if len(specs) > 1:
            keys = ", ".join(f"{item.name} ({item.size})" for item in specs)
            arrays = ", ".join(f"{item.name!r}: ..." for item in specs)
            raise DataError(
                f"the observation is no mapping, but the policy observes several keys: {keys}",
                f"give one array for each: {{{arrays}}}",
            )
        observations = {item.name: observations for item in specs}
    found = {}
    for name, size in ((item.name, item.size) for item in specs):
        if name not in observations:
            given = ", ".join(sorted(observations)) or "none"
            raise DataError(f"the observation '{name}' is missing", f"given: {given}")
        try:
            found[name] = np.asarray(observations[name], dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the observation '{name}' is no array of numbers ({first_line(error)})",
                f"give its {size} numbers as an array",
            ) from error
        if found[name].shape != (*batch, size):
            raise _wrong_shape(name, found[name], (*batch, size), len(batch))
        if not np.isfinite(found[name]).all():
            raise DataError(f"the observation '{name}' holds NaN or infinity")
    return found


def _wrong_shape(name: str, given: FloatArray, needed: tuple[int, ...], axes: int) -> DataError:
    """Return the error of an observation; of equal numbers of environments it shows none."""
    shown = axes if given.shape[:axes] == needed[:axes] else 0
    if given.ndim == axes + 1 and shown == axes:
        hint = f"give the {needed[-1]} components that the training data have, in their order"
    elif axes and needed[0] > 1:
        hint = f"give act_batch one row for each of the {needed[0]} environments of reset_batch"
    else:
        hint = "give one robot's observation at one step: no batch axis and no time axis"
    return DataError(
        f"the observation '{name}' has the shape {given.shape[shown:]}, the policy needs"
        f" {needed[shown:]}",
        hint,
    )


class Policy(Protocol):
    """What acts for one robot: anything with these two methods can be evaluated."""

    def reset(self, seed: int = 0, task: str = "", label: str = "") -> None:
        """Start an episode; arguments that a policy does not need it may leave out.

        Args:
            seed: Fixes all randomness of the episode.
            task: Task name, "" for the only one.
            label: Behavior label to condition on, or "".
        """

    def act(self, observation: Mapping[str, FloatArray]) -> FloatArray:
        """Return the action (action,) in environment units.

        Args:
            observation: Key to (obs,), environment units.
        """


class BatchPolicy(Protocol):
    """What the rollout engine steps: one policy for a batch of environments.

    A policy holds state for a fixed number of environments. Its randomness comes from the episode's
    seed and the number of re-plans alone, so results do not depend on workers or neighbors. It may
    offer `acts_in_parts`; see the function of that name.
    """

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per environment; None leaves it idle."""

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (env, action) in environment units.

        Args:
            observations: Key to (env, obs); rows of idle environments hold anything finite.
            active: (env,) which environments act: all whose episodes still run, or, where
                `acts_in_parts` allows it, some of them. Other rows of the result are ignored.
        """

    def cost(self) -> PolicyCost:
        """Return what was spent since the last `reset`."""


def acts_in_parts(policy: BatchPolicy, running: npt.NDArray[np.bool_]) -> bool:
    """Return whether a policy may be asked for its next actions by several calls of `act`.

    Each call then names other environments as active. A policy without a method
    `acts_in_parts(running)` acts for all environments at once.

    Args:
        policy: The policy.
        running: (env,) whether the episode still runs.
    """
    offered = getattr(policy, "acts_in_parts", None)
    return offered is not None and bool(offered(running))
