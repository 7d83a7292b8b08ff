"""Draw training batches from a snippet store: ours against indexing zarr per snippet."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import zarr

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.bench.timing import Comparison, compare
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule

EPISODES = 200
STEPS = 500
LENGTH = 64
BATCH = 64


def batches(cache: str, rounds: int) -> Comparison:
    """Draw one batch of 64 snippets of 64 steps.

    Args:
        cache: `"ram"` or `"none"` (streamed from disk).
        rounds: Batches drawn by each side.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = _made(Path(folder) / "made.zarr")
        ours = SnippetBatches(
            store, ("state",), WindowRule(LENGTH), split="all", seed=0, cache=cache
        )
        path = str(Path(folder) / "made.zarr")
        state = zarr.open_array(path, path="observation/state", mode="r")
        action = zarr.open_array(path, path="action", mode="r")
        rng = np.random.default_rng(0)
        numbers = iter(range(1_000_000))

        def naive() -> None:
            for start in rng.integers(EPISODES * STEPS - LENGTH, size=BATCH):
                _ = state[start : start + LENGTH], action[start : start + LENGTH]

        return compare(
            f"draw {BATCH} snippets of {LENGTH} steps ({cache})",
            (f"block shuffle, cache {cache}", lambda: ours.batch(next(numbers), BATCH)),
            ("zarr, one slice per snippet", naive),
            rounds,
        )


def _made(path: Path) -> SnippetStore:
    spec = SourceSpec(
        observations=(ObservationSpec("state", 39),),
        action=ActionSpec(4, "delta", "normalized", (-1.0,) * 4, (1.0,) * 4),
        env=EnvSpec("", ("made",)),
        labels=("",),
        source_format="made",
    )
    rng = np.random.default_rng(0)
    writer = SnippetWriter(path, spec)
    for number in range(EPISODES):
        rows = rng.normal(size=(STEPS, 43)).astype(np.float32)
        observations = {"state": rows[:, :39]}
        writer.append(
            Episode(f"demo_{number}", observations, rows[:, 39:], task="made", split="train")
        )
    writer.close()
    return SnippetStore.open(path)
