"""Measured numbers: an estimate with its confidence interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval.

    Attributes:
        value: The point estimate; NaN where nothing was measured.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end.
        n: Number of observations behind it (episodes, initial states, trajectories).
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """Return the value and its interval, `0.62 [0.48, 0.74]`."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"
