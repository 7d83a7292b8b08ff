"""Reading a snippet store: steps stored once, any snippet cut from them by its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from lwdctl.artifacts.columns import array_of, open_group, read_rows
from lwdctl.artifacts.moments import Moments
from lwdctl.artifacts.snippet_writer import (
    FORMAT,
    FORMAT_VERSION,
    MODELS,
    RELATIVE,
    SNIPPETS_PAYLOAD,
    SPLITS,
    STATISTICS,
    SnippetWriter,
)
from lwdctl.core.errors import ArtifactError
from lwdctl.core.records import Episode, FloatArray, SourceSpec

__all__ = ["SNIPPETS_PAYLOAD", "EpisodeTable", "SnippetStore", "SnippetWriter"]


@dataclass(frozen=True)
class EpisodeTable:
    """One row per episode.

    Attributes:
        start: (episode,) int64, store row of its first step.
        length: (episode,) int64, steps.
        task: (episode,) int32, index into `spec.env.tasks`, -1 for none.
        label: (episode,) int32, index into `spec.labels`, -1 for none.
        split: (episode,) int8, 0 train, 1 validation.
        success: (episode,) int8, 1, 0, or -1 unknown.
        seed: (episode,) int64, -1 for none or one beyond 63 bits.
        source: Where each stood in its source.
    """

    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    task: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    split: npt.NDArray[np.int8]
    success: npt.NDArray[np.int8]
    seed: npt.NDArray[np.int64]
    source: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.start)

    def of_split(self, split: str | None) -> npt.NDArray[np.int64]:
        """Return the indices of the episodes of a split (None: of all)."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(self.split == SPLITS[split]).astype(np.int64)


class SnippetStore:
    """A finished snippet store, read-only. Use `SnippetStore.open` or `in_memory`.

    Attributes:
        path: The zarr directory, or None for a store in memory.
        spec: What the data is.
        episodes: One row per episode.
        steps: Steps of all episodes together.
    """

    def __init__(
        self, path: Path | None, group: zarr.Group, model_texts: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self._group = group
        self._model_texts = model_texts or {}
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self.spec = SourceSpec.from_mapping(_attribute(group, "spec"))
        self.episodes = _read_table(group)
        self.steps = int(self._array("action").shape[0])

    @classmethod
    def open(cls, path: Path) -> SnippetStore:
        """Open the store at `path`, a zarr directory or an artifact directory.

        Raises:
            ArtifactError: It is missing, damaged, unfinished, or no snippet store.
        """
        inner = path / SNIPPETS_PAYLOAD
        path = inner if inner.is_dir() else path
        return cls(path, open_group(path, FORMAT, FORMAT_VERSION))

    @classmethod
    def written_by(cls, writer: SnippetWriter) -> SnippetStore:
        """Return the store that a closed writer has written, on disk or in memory."""
        return cls(writer.path, writer.group, writer.model_texts)

    @classmethod
    def in_memory(cls, episodes: Iterable[Episode], spec: SourceSpec) -> SnippetStore:
        """Build a store in memory from episodes, each with its split.

        Raises:
            DataError: There is no episode, or one disagrees with `spec` or with earlier ones.
        """
        writer = SnippetWriter(None, spec)
        for episode in episodes:
            writer.append(episode)
        writer.close()
        return cls.written_by(writer)

    @property
    def has_rewards(self) -> bool:
        """Whether the key `"reward"` can be read."""
        return "reward" in self._group

    def read(self, key: str, start: int, stop: int) -> FloatArray:
        """Read store rows.

        A call costs about a millisecond whatever its length: read blocks, not snippets.

        Args:
            key: An observation name, `"action"` or `"reward"`.
            start: First store row.
            stop: One past the last.

        Returns:
            (time, dim) float32; (time, 1) for the reward.

        Raises:
            ArtifactError: No such key or rows, or a damaged chunk.
        """
        path = key if key in ("action", "reward") else f"observation/{key}"
        rows = read_rows(self._array(path), start, stop)
        return rows[:, None] if rows.ndim == 1 else rows

    def features(self, keys: tuple[str, ...], start: int, stop: int) -> FloatArray:
        """Read several keys side by side: (time, sum of sizes), float32."""
        return np.concatenate([self.read(key, start, stop) for key in keys], axis=1)

    def moments(self, keys: tuple[str, ...], split: str | None = None) -> Moments:
        """Return the moments of several keys side by side; no step is read.

        Args:
            keys: Observation names, `"action"`, or `"action_relative"`.
            split: `"train"`, `"validation"`, or None for all episodes.

        Raises:
            ArtifactError: No such key, or no episode in the split.
        """
        chosen = self.episodes.of_split(split)
        if not len(chosen):
            raise ArtifactError(f"{self.path} has no episodes in the split '{split}'")
        counts = self.episodes.length[chosen]
        return Moments.concatenate([self._moments(key, chosen, counts) for key in keys])

    def relative_moments(self, split: str | None = None) -> Moments:
        """Return the moments of action minus its reference observation.

        Raises:
            ArtifactError: The action has no reference, or the split is empty.
        """
        return self.moments((RELATIVE,), split)

    def initial_state(self, index: int) -> npt.NDArray[np.float64] | None:
        """Return the simulator state at the first step of an episode, or None."""
        ends = self._state_ends
        start = int(ends[index - 1]) if index else 0
        if start == int(ends[index]):
            return None
        return read_rows(self._array("episode/initial_state"), start, int(ends[index]))

    def model(self, index: int) -> str:
        """Return the simulator model text of an episode, or ""."""
        row = int(self._column("model")[index])
        if row < 0:
            return ""
        digest = _attribute(self._group, "models")[row]
        if self.path is None:
            return self._model_texts[digest]
        path = self.path.parent / MODELS / f"{digest}.xml"
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}") from error

    def final_observation(self, index: int) -> dict[str, FloatArray] | None:
        """Return the observation after the last action: key to (obs,), or None."""
        if not self._column("has_final_observation")[index]:
            return None
        names = [item.name for item in self.spec.observations]
        return {
            name: read_rows(self._array(f"final_observation/{name}"), index, index + 1)[0]
            for name in names
        }

    def _moments(
        self, key: str, chosen: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
    ) -> Moments:
        parts = {name: read_rows(self._array(f"statistics/{key}/{name}")) for name in STATISTICS}
        return Moments.merge(counts, **{name: value[chosen] for name, value in parts.items()})

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            self._arrays[name] = array_of(self._group, name)
        return self._arrays[name]

    def _column(self, name: str) -> npt.NDArray[Any]:
        columns = self._columns
        if name not in columns:
            columns[name] = read_rows(self._array(f"episode/{name}"))
        return columns[name]

    @cached_property
    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        return {}

    @cached_property
    def _state_ends(self) -> npt.NDArray[np.int64]:
        return self._column("initial_state_end")


def _attribute(group: zarr.Group, name: str) -> Any:
    return group.attrs[name]


def _read_table(group: zarr.Group) -> EpisodeTable:
    columns = {
        name: read_rows(array_of(group, f"episode/{name}"))
        for name in ("start", "length", "task", "label", "split", "success", "seed")
    }
    text = read_rows(array_of(group, "episode/source")).tobytes()
    return EpisodeTable(**columns, source=tuple(json.loads(text)))
