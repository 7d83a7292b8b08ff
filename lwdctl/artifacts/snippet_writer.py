"""Writing a snippet store: episodes one after the other, in constant memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.columns import EPISODE_CHUNK, Column, create_group, seal_group
from lwdctl.artifacts.durable import write_durably
from lwdctl.core.errors import DataError
from lwdctl.core.records import Episode, SourceSpec

SNIPPETS_PAYLOAD = "snippets.zarr"
FORMAT = "lwdctl-snippets"
FORMAT_VERSION = 1
MODELS = "models"
RELATIVE = "action_relative"
STATISTICS = ("mean", "m2", "minimum", "maximum")
SPLITS = {"": 0, "train": 0, "validation": 1}
_STATE_CHUNK = 65536
_EPISODE_COLUMNS = {
    "start": np.int64,
    "length": np.int64,
    "task": np.int32,
    "label": np.int32,
    "split": np.int8,
    "success": np.int8,
    "seed": np.int64,
    "model": np.int32,
    "has_final_observation": np.int8,
    "initial_state_end": np.int64,
}


class SnippetWriter:
    """Streams episodes into a new store; memory does not grow with their number.

    Args:
        path: The zarr directory to create, or None for a store in memory. Simulator models go to
            `models/` beside it.
        spec: What every episode must agree with.

    Attributes:
        path: As given.
        group: The zarr group; complete after `close`.
        model_texts: Simulator models of a store in memory, by SHA-256.

    Raises:
        ArtifactError: `path` exists.
    """

    def __init__(self, path: Path | None, spec: SourceSpec) -> None:
        self.path = path
        self.model_texts: dict[str, str] = {}
        self._spec = spec
        self.group = create_group(path)
        self._sizes = {item.name: item.size for item in spec.observations}
        self._steps = {
            name: Column(self.group, f"observation/{name}", (size,), np.float32)
            for name, size in self._sizes.items()
        }
        self._action = Column(self.group, "action", (spec.action.size,), np.float32)
        self._reward: Column | None = None
        self._episode = {
            name: Column(self.group, f"episode/{name}", (), dtype, EPISODE_CHUNK)
            for name, dtype in _EPISODE_COLUMNS.items()
        }
        self._states = Column(
            self.group, "episode/initial_state", (), np.float64, chunk=_STATE_CHUNK
        )
        self._finals = {
            name: self._episode_column(f"final_observation/{name}", size, np.float32)
            for name, size in self._sizes.items()
        }
        self._statistics = {
            name: {part: self._episode_column(f"statistics/{name}/{part}", size, np.float64)
                   for part in STATISTICS}
            for name, size in self._statistic_sizes().items()
        }  # fmt: skip
        self._sources: list[str] = []
        self._models: dict[str, int] = {}
        self._validation = 0

    def append(self, episode: Episode) -> None:
        """Append one episode.

        Raises:
            DataError: It disagrees with the specification or with earlier episodes, has no
                steps, or holds NaN or infinity.
        """
        arrays = self._checked(episode)
        finals = self._checked_final(episode)
        row = self._row(episode)
        if episode.rewards is not None and self._reward is None:
            self._reward = Column(self.group, "reward", (), np.float32)
        for name, column in self._steps.items():
            column.append(arrays[name])
        self._action.append(arrays["action"])
        if self._reward is not None:
            self._reward.append(np.asarray(episode.rewards))
        for name, columns in self._statistics.items():
            for part, value in _statistics(arrays[name]).items():
                columns[part].append(value[None])
        for name, column in self._finals.items():
            column.append(finals[name][None])
        if episode.initial_state is not None:
            self._states.append(np.asarray(episode.initial_state, np.float64).ravel())
        row["initial_state_end"] = self._states.rows
        for name, column in self._episode.items():
            column.append([row[name]])
        self._sources.append(episode.source)
        self._validation += row["split"]

    def close(self) -> dict[str, Any]:
        """Write what is left and mark the store as complete.

        Returns:
            Numbers for the artifact's summary.

        Raises:
            DataError: No episode was appended.
        """
        if not self._sources:
            raise DataError("there are no episodes to store")
        sources = Column(self.group, "episode/source", (), np.uint8, chunk=_STATE_CHUNK)
        sources.append(np.frombuffer(json.dumps(self._sources).encode(), np.uint8))
        for column in (sources, *self._columns()):
            column.close()
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "spec": self._spec.to_mapping(),
            "models": list(self._models),
        }
        seal_group(self.group, attributes)
        return {
            "episodes": len(self._sources),
            "validation_episodes": self._validation,
            "steps": self._action.rows,
        }

    def _columns(self) -> list[Column]:
        columns = [*self._steps.values(), self._action, *self._episode.values(), self._states]
        columns += [*self._finals.values(), *([self._reward] if self._reward else [])]
        return columns + [item for parts in self._statistics.values() for item in parts.values()]

    def _episode_column(self, name: str, size: int, dtype: npt.DTypeLike) -> Column:
        return Column(self.group, name, (size,), dtype, EPISODE_CHUNK)

    def _statistic_sizes(self) -> dict[str, int]:
        size = self._spec.action.size
        relative = {RELATIVE: size} if self._spec.action.reference else {}
        return {**self._sizes, "action": size, **relative}

    def _checked(self, episode: Episode) -> dict[str, npt.NDArray[np.float32]]:
        """Return observations, action and relative action, refusing what does not fit."""
        source, length = episode.source, episode.length
        if not length:
            raise DataError(f"{source}: the episode has no steps")
        arrays = {name: _array(episode.observations, name, source) for name in self._sizes}
        arrays["action"] = np.asarray(episode.actions, np.float32)
        for name, size in {**self._sizes, "action": self._spec.action.size}.items():
            _check_array(arrays[name], (length, size), f"{source}: {name}")
        if self._sources and (episode.rewards is not None) != (self._reward is not None):
            raise DataError(f"{source}: some episodes have rewards and others have none")
        if episode.rewards is not None:
            _check_array(np.asarray(episode.rewards), (length,), f"{source}: rewards")
        reference = self._spec.action.reference
        if reference:
            arrays[RELATIVE] = arrays["action"] - arrays[reference]
        return arrays

    def _row(self, episode: Episode) -> dict[str, int]:
        if episode.split not in SPLITS:
            raise DataError(f"{episode.source}: unknown split '{episode.split}'")
        return {
            "start": self._action.rows,
            "length": episode.length,
            "task": _task(episode, self._spec.env.tasks),
            "label": _index(episode.label, self._spec.labels, f"{episode.source}: label"),
            "split": SPLITS[episode.split],
            "success": -1 if episode.success is None else int(episode.success),
            "seed": _seed(episode.seed),
            "model": self._model(episode.model),
            "has_final_observation": int(episode.final_observation is not None),
        }

    def _model(self, text: str) -> int:
        """Store a simulator model once; return its index, -1 for none."""
        if not text:
            return -1
        content = text.encode()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._models:
            if self.path is None:
                self.model_texts[digest] = text
            else:
                folder = self.path.parent / MODELS
                folder.mkdir(exist_ok=True)
                write_durably(folder / f"{digest}.xml", content)
        return self._models.setdefault(digest, len(self._models))

    def _checked_final(self, episode: Episode) -> dict[str, npt.NDArray[np.float32]]:
        """Return the final observation, zeros where the source has none."""
        if episode.final_observation is None:
            return {name: np.zeros(size, np.float32) for name, size in self._sizes.items()}
        finals = {
            name: _array(episode.final_observation, name, episode.source) for name in self._sizes
        }
        for name, size in self._sizes.items():
            _check_array(finals[name], (size,), f"{episode.source}: final {name}")
        return finals


def _array(
    values: Mapping[str, npt.NDArray[np.float32]], name: str, source: str
) -> npt.NDArray[np.float32]:
    if name not in values:
        raise DataError(f"{source}: the observation '{name}' is missing")
    return np.asarray(values[name], np.float32)


def _check_array(array: npt.NDArray[Any], shape: tuple[int, ...], what: str) -> None:
    if array.shape != shape:
        raise DataError(f"{what} has shape {array.shape}, not {shape}")
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise DataError(f"{what} has NaN or infinity in row {row}")


def _index(name: str, known: tuple[str, ...], what: str) -> int:
    """Return the index of a name, -1 for an empty one."""
    if name in known:
        return known.index(name)
    if name:
        raise DataError(f"{what} '{name}' is not among {', '.join(known) or 'any declared'}")
    return -1


def _task(episode: Episode, known: tuple[str, ...]) -> int:
    """Return the index of the task; the only one where none is named."""
    found = _index(episode.task, known, f"{episode.source}: task")
    return 0 if found < 0 and len(known) == 1 else found


def _seed(seed: int | None) -> int:
    """Return the seed as the table holds it; one beyond 63 bits is not kept."""
    return seed if seed is not None and 0 <= seed < 2**63 else -1


def _statistics(values: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float64]]:
    exact = values.astype(np.float64)
    mean = exact.mean(axis=0)
    return {
        "mean": mean,
        "m2": ((exact - mean) ** 2).sum(axis=0),
        "minimum": exact.min(axis=0),
        "maximum": exact.max(axis=0),
    }
