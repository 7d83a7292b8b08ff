"""A test of what recorded actions mean: do they follow positions, or motions?

An absolute target is close to the position that is reached: `action[t]` follows `obs[t + 1]`. A
motion is close to the step that is made: `action[t]` follows `obs[t + 1] - obs[t]`. Controllers lag
and scale, so correlations decide, and for positions also the plain distance where both have the
same unit. Torques are not tested: they follow velocities, and so look like either.

`OutsideLimits` counts recorded actions beyond the limits, and says by how much.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError
from lwdctl.core.plain_text import listed
from lwdctl.core.records import FloatArray
from lwdctl.data.quality.episode_statistics import Steps

FEWEST_TESTED = 10
"""With fewer steps a correlation says little."""
BY_CHANCE_POSITION = 3.0
BY_CHANCE_MOTION = 4.0
"""Correlations up to so many standard errors, 1 / sqrt(steps), may be chance: they are the largest
of many, and a motion's by magnitude."""
CLEAR_POSITION = 0.97
"""Motions follow an orientation or a velocity with up to 0.95; targets in other units than the
observation (normalized to [-1, 1]) follow the position with 0.99."""
CLEAR_MOTION = 0.7
"""robosuite's and Metaworld's motions: 0.7 to 0.95, as their controllers lag."""
LEAD = 0.2
"""By how much a correlation must exceed the other one."""
LEAD_IN_UNITS = 0.1
"""The same where the action is also near the position in its own unit."""
SAME_UNITS = 0.5
"""Largest root mean square distance to the reached position, in its standard deviations, of an
action in the observation's own unit: 0.1 for PushT's targets; motions and torques have 0.6 to 150.
"""
SMALLEST = 1e-9
"""Deviation of an observation that counts as none."""
ROUNDING = 1e-7
"""Relative deviation of single precision numbers that are the same."""
CLEAR_COMPONENTS = 3
"""So many components decide (an end effector's position), or half of those tested."""


@dataclass(frozen=True)
class ComponentTest:
    """What one component of an action follows.

    Attributes:
        component: Its index.
        follows: `"position"`, `"motion"` or "" for neither.
        position: Largest correlation with a component of the following observation.
        position_of: That component (`"robot0_eef_pos[0]"`).
        motion: Correlation of largest magnitude with a step of an observation.
        motion_of: The component that makes this step.
        distance: Smallest root mean square distance to a following observation, in standard
            deviations of the observation.
    """

    component: int
    follows: str
    position: float
    position_of: str
    motion: float
    motion_of: str
    distance: float


@dataclass(frozen=True)
class ActionTest:
    """The test's answer.

    Attributes:
        verdict: `"absolute"`, `"delta"`, or "" where it is not clear.
        steps: Number of steps it rests on.
        components: The components that were tested, without grippers and constant ones.
    """

    verdict: str
    steps: int
    components: tuple[ComponentTest, ...]

    def following(self, what: str) -> list[ComponentTest]:
        """Return the components that follow `"position"` or `"motion"`."""
        return [item for item in self.components if item.follows == what]

    @property
    def in_same_units(self) -> bool:
        """Whether most components that follow positions also have their unit."""
        found = self.following("position")
        return 2 * sum(item.distance <= SAME_UNITS for item in found) >= max(len(found), 1)

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def what_actions_follow(
    steps: Steps, names: Sequence[str], untested: Collection[int], copies: Collection[int]
) -> ActionTest:
    """Return what actions follow: the next observation, the step to it, or neither.

    Args:
        steps: A sample of steps.
        names: Name of each component of the observations.
        untested: Action components to leave out: grippers and constant ones.
        copies: Observation components that repeat the action; nothing follows from them.
    """
    chosen = [i for i in range(steps.actions.shape[1]) if i not in untested]
    kept = [j for j in range(steps.after.shape[1]) if j not in copies]
    if len(steps.actions) < FEWEST_TESTED or not chosen or not kept:
        return ActionTest("", len(steps.actions), ())
    actions, after = steps.actions[:, chosen].astype(float), steps.after[:, kept].astype(float)
    step = after - steps.before[:, kept]
    position, motion = _correlations(actions, after), _correlations(actions, step)
    distance = _distances(actions, after).min(axis=1)
    components = []
    for row, component in enumerate(chosen):
        at, by = int(position[row].argmax()), int(np.abs(motion[row]).argmax())
        found = float(position[row, at]), float(motion[row, by]), float(distance[row])
        follows = _follows(*found, error=len(actions) ** -0.5)
        components.append(
            ComponentTest(
                component, follows, found[0], names[kept[at]], found[1], names[kept[by]],
                found[2],
            )
        )  # fmt: skip
    return ActionTest(_verdict(components), len(actions), tuple(components))


def _follows(position: float, motion: float, distance: float, error: float) -> str:
    motion = abs(motion)
    near = distance <= SAME_UNITS and position >= BY_CHANCE_POSITION * error
    if near and motion <= position - LEAD_IN_UNITS:
        return "position"
    if position >= CLEAR_POSITION and motion <= position - LEAD:
        return "position"
    clear = max(CLEAR_MOTION, BY_CHANCE_MOTION * error)
    return "motion" if motion >= clear and motion >= position + LEAD else ""


def _verdict(components: Sequence[ComponentTest]) -> str:
    counts = {
        what: sum(item.follows == what for item in components) for what in ("position", "motion")
    }
    enough = min(CLEAR_COMPONENTS, (len(components) + 1) // 2)
    if counts["position"] >= enough and counts["position"] > 2 * counts["motion"]:
        return "absolute"
    if counts["motion"] >= enough and counts["motion"] > 2 * counts["position"]:
        return "delta"
    return ""


def _correlations(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return (left component, right component); 0 where one is constant."""
    sides = []
    for values in (left, right):
        centered = values - values.mean(axis=0)
        norm = np.linalg.norm(centered, axis=0)
        varies = norm > ROUNDING * np.abs(values).max(axis=0) * len(values) ** 0.5
        sides.append(np.divide(centered, norm, out=np.zeros_like(centered), where=varies))
    found: npt.NDArray[Any] = sides[0].T @ sides[1]
    return found


def _distances(actions: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the root mean square distance (action component, observation component)."""
    square = (actions**2).mean(axis=0)[:, None] + (after**2).mean(axis=0)
    square -= 2 * actions.T @ after / len(actions)
    root = np.sqrt(np.maximum(square, 0))
    found: npt.NDArray[Any] = root / np.maximum(after.std(axis=0), SMALLEST)
    return found


LIMIT_TOLERANCE = 2e-3
"""Fraction of the limits' width by which values may leave them: half precision, or normalizing
back and forth, rounds by up to a thousandth; no robot notices."""
SHOWN = 10
"""Components that a message names."""
LONGEST = 120
"""Characters of an episode's name in a message; with several files it begins with a path."""
SMALLEST_SHOWN = 1e-4
"""Fraction of values below which a message gives no digits."""
_SOURCES = {"environment": "the environment", "file": "the file", "option": "--action-limits"}


def parse_limits(text: str) -> tuple[float, float]:
    """Return the two numbers of `LOW,HIGH`.

    Raises:
        ConfigError: It is no such pair.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            f"--action-limits {text}: is neither 'data' nor two numbers LOW,HIGH",
            "--action-limits=-1,1",
        )
    return low, high


class OutsideLimits:
    """Counts action values outside the limits.

    Args:
        low: (action,) smallest value that is allowed; () where there are no limits.
        high: (action,) largest value that is allowed.
        source: Where the limits come from, as `ActionSpec.limits` has it.

    Attributes:
        known: Whether there are limits.
        low: (action,) smallest value that is allowed.
        high: (action,) largest value that is allowed.
        count: Number of values outside.
        episodes: Names of the episodes that have such values.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float], source: str) -> None:
        self.known, self._source = bool(len(low)), source
        self.episodes: list[str] = []
        self.low, self.high = np.array(low, np.float32), np.array(high, np.float32)
        self.count = self._total = 0
        with np.errstate(invalid="ignore"):
            self._slack = np.nan_to_num(LIMIT_TOLERANCE * (self.high - self.low), posinf=0)
        self._components: npt.NDArray[np.int64] = np.zeros(len(low), np.int64)
        self._excess: npt.NDArray[np.float32] = np.zeros(len(low), np.float32)

    def add(self, source: str, actions: FloatArray) -> bool:
        """Add actions (time, action) of an episode; return whether one is outside at all."""
        if not self.known:
            return False
        self._total += actions.size
        excess = np.maximum((actions - self.high).max(axis=0), (self.low - actions).max(axis=0))
        if (excess > self._slack).any():
            beyond = np.maximum(actions - self.high, self.low - actions) > self._slack
            self._components += np.count_nonzero(beyond, axis=0)
            self.count = int(self._components.sum())
            self._excess = np.maximum(self._excess, excess)
            self.episodes.append(source)
        return bool((excess > 0).any())

    def describe(self) -> str:
        """Return the fraction, the largest excess and the episodes as a sentence."""
        worst = int(self._excess.argmax())
        which = np.flatnonzero(self._components).tolist()
        noun = "component" if len(which) == 1 else "components"
        components = ", ".join(map(str, which[:SHOWN]))
        fraction = self.count / self._total
        less = "" if fraction >= SMALLEST_SHOWN else "less than "
        giver = _SOURCES.get(self._source, self._source)
        return (
            f"{less}{max(fraction, SMALLEST_SHOWN):.2%} of the action values"
            f" ({noun} {components}) are outside the limits of {giver}; the largest excess is"
            f" {self._excess[worst]:.4g}, of component {worst} beyond"
            f" [{self.low[worst]:g}, {self.high[worst]:g}]; episodes with such values:"
            f" {listed(self.episodes, longest=LONGEST)}"
        )

    def values(self) -> dict[str, Any]:
        """Return the numbers, JSON-ready."""
        return {
            "fraction": self.count / self._total,
            "count": self.count,
            "components": self._components.tolist(),
            "largest_excess": float(self._excess.max()),
            "episodes": len(self.episodes),
            "first": self.episodes[:SHOWN],
        }
