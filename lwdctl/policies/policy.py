"""The contract between policies and the rollout engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lwdctl.core.records import FloatArray


@dataclass(frozen=True)
class EpisodePlan:
    """One evaluation episode, fixed before anything runs.

    Attributes:
        index: Position in the evaluation's list; also fixes the slot (`index % width`).
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
        num_replans: (slot,) denoiser samplings per slot (0 for policies without one).
        seconds: Wall time by part: "denoiser", "decoding", "policy".
        num_plans: (slot,) how often the policy has chosen anew what to follow (a generated network,
            a sequence of actions); empty for policies that do not plan ahead.
    """

    num_replans: npt.NDArray[np.int64]
    seconds: dict[str, float] = field(default_factory=dict)
    num_plans: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


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

    A policy holds state for a fixed number of slots. Randomness comes from the episode's
    seed and the query's index alone, so results do not depend on workers or neighbors.
    """

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per slot; None leaves the slot idle."""

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (slot, action) in environment units.

        Args:
            observations: Key to (slot, obs); rows of idle slots hold anything finite.
            active: (slot,) whether the slot's episode still runs. Rows of inactive slots
                in the answer are ignored.
        """

    def cost(self) -> PolicyCost:
        """Return what was spent since the last `reset`."""
