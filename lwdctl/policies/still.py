"""Standing still: the lower bound under perturbations, which may raise a score by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import FloatArray, SourceSpec
from lwdctl.envs.simulator import StillAction
from lwdctl.envs.table import load_environment
from lwdctl.policies.policy import EpisodePlan, PolicyCost


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
