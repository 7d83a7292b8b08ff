"""Which episodes of a snippet store an export writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError


def chosen_episodes(store: SnippetStore, task: str, label: str) -> npt.NDArray[np.int64]:
    """Return the indices of the episodes with a task and a behavior label; "" stands for all.

    Raises:
        ConfigError: The store has no such task or label, or no episode with both.
    """
    chosen = np.ones(len(store.episodes), dtype=bool)
    if task:
        chosen &= store.episodes.task == _index("task", task, store.spec.env.tasks)
    if label:
        chosen &= store.episodes.label == _index("label", label, store.spec.labels)
    if not chosen.any():
        raise ConfigError("no episode has this task and label")
    return np.flatnonzero(chosen).astype(np.int64)


def _index(noun: str, name: str, known: Sequence[str]) -> int:
    if name not in known:
        raise ConfigError(
            f"the store has no {noun} '{name}'", f"known: {', '.join(known) or 'none'}"
        )
    return list(known).index(name)
