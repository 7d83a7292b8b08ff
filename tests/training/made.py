"""Demonstrations of random walks, which tests of training share."""

from __future__ import annotations

import numpy as np

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec


def random_walks(
    episodes: int, steps: int, state: int, tasks: tuple[str, ...] = ("reach",)
) -> SnippetStore:
    """Return a store whose episode 5 belongs to the validation split."""
    rng = np.random.default_rng(0)
    spec = SourceSpec(
        observations=(ObservationSpec("state", state),),
        action=ActionSpec(2, "absolute", "normalized", (-1.0,) * 2, (1.0,) * 2),
        env=EnvSpec("", tasks),
        labels=("",),
        source_format="made",
    )
    walks = [
        Episode(
            f"demo_{number}",
            {"state": rng.normal(size=(steps, state)).astype(np.float32).cumsum(0)},
            rng.normal(size=(steps, 2)).clip(-1, 1).astype(np.float32),
            task=tasks[number % len(tasks)],
            split="validation" if number == 5 else "train",
        )
        for number in range(episodes)
    ]
    return SnippetStore.in_memory(walks, spec)
