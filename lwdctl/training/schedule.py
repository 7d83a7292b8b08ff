"""How many updates a run makes, and the learning rate at each."""

from __future__ import annotations

import math
from dataclasses import dataclass

LAST_SHARE = 0.01
"""Share of the peak learning rate that is left at the end of the cosine."""


@dataclass(frozen=True)
class Budget:
    """What a training run may spend.

    Attributes:
        updates: Optimizer updates.
        time_limit: Minutes of training, 0 for none.
    """

    updates: int
    time_limit: float = 0.0

    def planned(self, done: int, seconds: float) -> int:
        """Estimate how many updates fit, from the pace so far.

        Decided once per run and stored in its checkpoints, so that a resumed run follows
        the same schedule. A twentieth of the limit is kept back for what follows training.
        """
        if not self.time_limit or not done:
            return self.updates
        fit = int(0.95 * self.time_limit * 60.0 * done / max(seconds, 1e-9))
        return min(self.updates, max(done + 1, fit))


def rate_share(update: int, total: int, warmup: int) -> float:
    """Return the share of the peak learning rate at an update.

    Linear warm-up, then a half cosine from 1 to `LAST_SHARE` at the last update.
    """
    if update < warmup:
        return (update + 1) / warmup
    through = min(1.0, (update - warmup) / max(1, total - warmup))
    return LAST_SHARE + (1.0 - LAST_SHARE) * 0.5 * (1.0 + math.cos(math.pi * through))
