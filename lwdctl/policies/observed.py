"""What every network policy needs: the last observations of its slots, and the device's clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lwdctl.core.records import FloatArray


class Observed:
    """The current observations and those before them; an episode's first one repeats.

    Args:
        keys: Observation keys, in the order of the network's components.
        history: How many observations a state holds.
        device: Where they go.
    """

    def __init__(self, keys: Sequence[str], history: int, device: torch.device) -> None:
        self._keys, self._device = keys, device
        self._recent: deque[Tensor] = deque(maxlen=history)

    def clear(self) -> None:
        """Begin new episodes."""
        self._recent.clear()

    def add(self, observations: Mapping[str, FloatArray]) -> Tensor:
        """Take in what is seen now and return it, (slot, obs), environment units."""
        parts = [observations[key] for key in self._keys]
        current = torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float32))
        current = current.to(self._device)
        while len(self._recent) < (self._recent.maxlen or 1) - 1:
            self._recent.append(current)
        self._recent.append(current)
        return current

    @property
    def state(self) -> Tensor:
        """All of the history, (slot, history * obs), oldest first."""
        return torch.cat(list(self._recent), dim=1)


def now(device: torch.device) -> float:
    """Read the wall clock after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
