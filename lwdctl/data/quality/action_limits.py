"""How many recorded actions are outside the limits, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError
from lwdctl.core.plain_text import listed
from lwdctl.core.records import FloatArray

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
