"""Seeds derived from names, so that no random draw depends on the order of others.

Training, sampling and rollouts are seeded from (purpose, seed, index...) through `derive_seed`;
held-out losses, the jitter of plots and benchmarks use a fixed seed.
"""

from __future__ import annotations

import hashlib

import numpy as np

EVALUATION_SEED_START = 100_000
"""First evaluation seed. Collection seeds stay below it, so the two never overlap."""

TUNING_SEED_START = 200_000
"""First evaluation seed for choosing settings; final tables use seeds from 300,000 on."""


def derive_seed(*keys: int | str) -> int:
    """Hash the keys into a seed in [0, 2**63).

    The same keys give the same seed on every machine and Python version, and any
    change of a key gives an independent one.
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_of_32_bits(*keys: int | str) -> int:
    """Return a derived seed as scikit-learn takes it."""
    return derive_seed(*keys) % 2**32


def generator(*keys: int | str) -> np.random.Generator:
    """Return a NumPy generator for the given purpose and indices."""
    return np.random.default_rng(derive_seed(*keys))
