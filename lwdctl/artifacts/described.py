"""Snippet stores that were pulled without their data: a description that models can act with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lwdctl.artifacts.description import SNIPPETS_PAYLOAD, read_description
from lwdctl.artifacts.origin import check_pulled_whole, lacks_files
from lwdctl.artifacts.snippets import EpisodeTable, SnippetStore
from lwdctl.core.errors import ArtifactError
from lwdctl.core.records import SourceSpec


class StoreDescription(SnippetStore):
    """A store of which only the description is here: it has no episodes, and reading is refused.

    Args:
        path: The zarr directory.
        spec: What the data were.
    """

    def __init__(self, path: Path, spec: SourceSpec) -> None:
        self._store, self.path, self.spec, self.steps = path, path, spec, 0
        integers, narrow = np.empty(0, np.int64), np.empty(0, np.int32)
        flags = np.empty(0, np.int8)
        self.episodes = EpisodeTable(
            integers, integers, narrow, narrow, flags, flags, integers, np.empty(0), ()
        )

    @property
    def has_rewards(self) -> bool:
        """Whether rewards can be read: they cannot."""
        return False

    def _array(self, name: str) -> Any:
        check_pulled_whole(self._store)
        raise ArtifactError(f"{self._store / name} was not read", "open the store again")

    def _column(self, name: str) -> Any:
        return self._array(f"episode/{name}")


def open_or_describe(artifact: Path) -> SnippetStore:
    """Open the snippet store of an artifact, or its description where the data were not pulled.

    Raises:
        ArtifactError: It is missing, damaged, or no snippet store.
    """
    if lacks_files(artifact, SNIPPETS_PAYLOAD) is None:
        return SnippetStore.open(artifact)
    return StoreDescription(artifact / SNIPPETS_PAYLOAD, read_description(artifact))
