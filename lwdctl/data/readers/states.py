"""Simulator states recorded beside observations, and whether they belong to each other.

D4RL's and Minari's data keep the state under `infos`, one row per observation; in many files it
is a row short or belongs to another step. Where the environment is known, the joint positions
that an observation begins with tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.records import Finding, FloatArray
from lwdctl.core.simulator_facts import GymEnvironment
from lwdctl.data.checks import NUMBER_KINDS, NonFiniteError
from lwdctl.data.readers.flags import Rows

INITIAL_STATE = "initial_state"
"""Key of the states in which episodes begin, one per episode."""
POSITIONS = "qpos"
STATE_KEYS = (POSITIONS, "qvel")
_FIXED = ("board_pos", "door_body_pos", "desired_orien", "target_pos", "goal")
"""Parts of a state that stay the same within an episode."""
_TOLERANCE = 1e-3
_MOST = 0.75


def recorded_state(value: object) -> npt.NDArray[np.float64] | None:
    """Return the recorded state in which an episode begins, or its seed, as numbers (state,).

    What is no finite number is no state: None.
    """
    state = np.asarray(value)
    if state.dtype.kind not in NUMBER_KINDS or not np.isfinite(state).all():
        return None
    return state.astype(np.float64).reshape(-1)


@dataclass(frozen=True)
class States:
    """The states of the steps of a file, or of one episode.

    Attributes:
        read: Returns the values (time, size) of an array at its rows `start:stop`.
        sizes: Components of every array, in the order in which they make up a state.
        rows: Number of rows of every array.
        env: The environment, where it is a known one.
        shift: Row of a state minus the row of its observation.
        verified: Whether the joint positions of most observations agree with their states.
    """

    read: Callable[[str, int, int], npt.NDArray[Any]]
    sizes: Mapping[str, int]
    rows: int
    env: GymEnvironment | None
    shift: int = 0
    verified: bool = False

    @property
    def layout(self) -> dict[str, list[list[Any]]]:
        """The setting of the environment that names the parts of a state, {} without a state."""
        layout = [[name, size] for name, size in self.sizes.items()]
        return {"initial_state": layout} if layout else {}

    def at(self, row: int, stop: int) -> npt.NDArray[np.float64] | None:
        """Return the state (state,) of the observation at a row, or None where there is none.

        Args:
            row: First row of an episode.
            stop: One past its last row.
        """
        place = row + self.shift
        if not self.sizes or not 0 <= place < self.rows:
            return None
        last = min(place + (3 if stop - row >= 3 else 1), self.rows)
        parts = []
        for name in self.sizes:
            values = self.read(name, place, last)
            parts.append(values[int(name in _FIXED and is_of_the_episode_before(values))])
        return np.concatenate(parts).astype(np.float64)

    def initial(
        self, bounds: Rows, observation: FloatArray, where: str
    ) -> npt.NDArray[np.float64] | None:
        """Return the state (state,) in which an episode began, or None where none is recorded.

        Args:
            bounds: The episode.
            observation: Its first observation (obs,).
            where: File and key.

        Raises:
            NonFiniteError: The state holds NaN or infinity.
        """
        state = self.at(*bounds)
        if state is None or not self.belongs(state, observation):
            return None
        if not np.isfinite(state).all():
            row = bounds.start + self.shift
            raise NonFiniteError(f"{where}, row {row}: the state has NaN or infinity")
        return state

    def belongs(self, state: npt.NDArray[np.float64], observation: FloatArray) -> bool:
        """Return whether a state is the one in which an observation (obs,) was made.

        True as well where that cannot be told.
        """
        if self.env is None or not self.verified:
            return True
        return bool(_agree(self.env, observation[None], state[None])[0])

    def aligned(
        self, blocks: Sequence[tuple[int, FloatArray]], where: str
    ) -> tuple[States, list[Finding]]:
        """Find which row of the states belongs to an observation.

        Args:
            blocks: Some observations (time, obs), each with its first row.
            where: File and key.

        Returns:
            The states with `shift` and `verified` set, and what was found.
        """
        if self.env is None or POSITIONS not in self.sizes:
            return self, []
        fractions = {shift: self._agreement(blocks, shift) for shift in (self.shift, 0, -1, 1)}
        best = next((s for s, part in fractions.items() if part >= _MOST), None)
        if best is None:
            message = (
                "the recorded states are not those of the observations: joint positions differ"
            )
            values = {"agreement": max(fractions.values())}
            found = Finding("initial-state", "warning", message, where, values=values)
            return self, [found]
        verified = replace(self, shift=best, verified=True)
        if best == self.shift:
            return verified, []
        beside = "before" if best < 0 else "after"
        message = f"the state of an observation is in the row {beside} it; it is read from there"
        found = Finding("initial-state", "warning", message, where, values={"shift": best})
        return verified, [found]

    def check_starts(
        self, bounds: Sequence[Rows], observations: Mapping[int, FloatArray], where: str
    ) -> list[Finding]:
        """Report episodes whose initial state is that of another observation.

        Args:
            bounds: Some episodes.
            observations: Their first observation (1, obs), by its row.
            where: File and key.
        """
        if not self.verified:
            return []
        wrong = []
        for start, stop in bounds:
            state = self.at(start, stop)
            if state is not None and not self.belongs(state, observations[start][0]):
                wrong.append(start)
        if not wrong:
            return []
        message = (
            f"the states in the first row of {len(wrong)} of {len(bounds)} episodes belong to"
            f" another observation (first in row {wrong[0]}); these episodes have no initial state"
        )
        return [
            Finding("initial-state", "warning", message, where, values={"episodes": len(wrong)})
        ]

    def _agreement(self, blocks: Sequence[tuple[int, FloatArray]], shift: int) -> float:
        """Return for which fraction of observations the state `shift` rows on agrees."""
        assert self.env is not None
        agreeing: list[npt.NDArray[np.bool_]] = []
        for first, observations in blocks:
            start = max(first + shift, 0)
            stop = min(first + shift + len(observations), self.rows)
            if start >= stop:
                continue
            positions = self.read(POSITIONS, start, stop)
            rows = slice(start - shift - first, stop - shift - first)
            agreeing.append(_agree(self.env, observations[rows], positions))
        return float(np.concatenate(agreeing).mean()) if agreeing else 0.0


def _agree(
    env: GymEnvironment, observations: FloatArray, positions: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Return (time,) whether the observations hold these joint positions."""
    first, last = env.observed_positions
    seen, recorded = observations[:, : last - first], positions[:, first:last]
    if seen.shape != recorded.shape:
        return np.zeros(len(observations), dtype=bool)
    with np.errstate(invalid="ignore"):
        near: npt.NDArray[np.bool_] = np.abs(seen - recorded) <= _TOLERANCE * (1 + np.abs(seen))
    return np.asarray(near.all(axis=1))


def find_states(
    shape_of: Callable[[str], tuple[int, ...] | None],
    read: Callable[[str, int, int], npt.NDArray[Any]],
    rows: int,
    env: GymEnvironment | None,
) -> tuple[States, str]:
    """Find the arrays that restore a simulator state.

    Args:
        shape_of: Returns the shape of an array of numbers under `infos`, None if there is none.
        read: Returns its rows `start:stop`.
        rows: Number of observations.
        env: The environment, where it is a known one.

    Returns:
        The states, and what is wrong with them: then there are none.
    """
    names = [*STATE_KEYS, *(env.state_keys if env else ())]
    shapes = {name: shape for name in names if (shape := shape_of(name)) is not None}
    none = States(read, {}, 0, env)
    missing = [f"infos/{name}" for name in names if name not in shapes]
    if missing:
        return none, f"{', '.join(missing)} is missing" if shapes else ""
    odd = next((name for name, shape in shapes.items() if len(shape) != 2), None)
    if odd is not None:
        return none, f"infos/{odd} has shape {shapes[odd]}"
    found = {shape[0] for shape in shapes.values()}
    if len(found) > 1 or not found <= {rows - 1, rows}:
        return none, f"infos have {sorted(found)} rows, observations {rows}"
    sizes = {name: shape[1] for name, shape in shapes.items()}
    return States(read, sizes, shift=min(found) - rows, rows=min(found), env=env), ""


def is_of_the_episode_before(values: npt.NDArray[Any]) -> bool:
    """Return whether the first row of something fixed within an episode alone differs.

    Recorders that read a goal before the reset leave that of the episode before in the first row.

    Args:
        values: Its first rows (time, size).
    """
    if len(values) < 3:
        return False
    return bool((values[1] == values[2]).all() and (values[0] != values[1]).any())
