"""The snippet store: steps stored once, any snippet cut from them by its rows.

`SnippetWriter` streams episodes into a store, `SnippetStore` reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import zarr

from lwdctl.artifacts.description import FORMAT, FORMAT_VERSION, SNIPPETS_PAYLOAD
from lwdctl.artifacts.files import write_durably
from lwdctl.artifacts.manifest import plain
from lwdctl.artifacts.snippet_arrays import (
    EPISODE_COLUMNS,
    arrays_of,
    check_counts,
    check_finite,
    check_key,
    check_paths,
    check_shape,
    component_slices,
    episode_statistics,
    index_of,
    stored_seed,
    task_index,
    values_of,
)
from lwdctl.artifacts.stored_files import read_stored
from lwdctl.artifacts.zarr_chunks import ChunkWriter
from lwdctl.artifacts.zarr_columns import (
    EPISODE_CHUNK,
    Column,
    array_of,
    check_memory,
    create_group,
    open_group,
    read_rows,
    seal_group,
)
from lwdctl.core.errors import ArtifactError, DataError
from lwdctl.core.moments import STATISTICS, Moments
from lwdctl.core.records import RELATIVE, ActionSpec, Episode, FloatArray, SourceSpec
from lwdctl.core.untrusted import parse_json, typed

_MODELS = "models"
COPIES = 4
"""Times that the arrays of an episode are held at most where it is read, converted and written."""
SPLITS = {"": 0, "train": 0, "validation": 1}
_TEXTS = tuple[str, ...]


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
        weight: (episode,) float64, how often training visits its snippets, relative to the others.
        source: Where each stood in its source.
    """

    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    task: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    split: npt.NDArray[np.int8]
    success: npt.NDArray[np.int8]
    seed: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]
    source: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.start)

    def of_split(self, split: str = "all") -> npt.NDArray[np.int64]:
        """Return the indices of the episodes of `"train"`, `"validation"` or `"all"`."""
        if split == "all":
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(self.split == SPLITS[split]).astype(np.int64)


class SnippetWriter:
    """Streams episodes into a new store; memory does not grow with their number.

    As a context manager it writes nothing more after an error.

    Args:
        path: The zarr directory to create, or None for a store in memory. Simulator models go to
            `models/` beside it.
        spec: What every episode must agree with.

    Attributes:
        path: As given.
        group: The zarr group; complete after `close`.
        env: The environment of `spec`.
        model_texts: Simulator models of a store in memory, by SHA-256.

    Raises:
        ArtifactError: `path` exists.
        DataError: An observation has a name that no array of a store can have.
    """

    def __init__(self, path: Path | None, spec: SourceSpec) -> None:
        self.path = path
        self.model_texts: dict[str, str] = {}
        self._spec, self.env = spec, spec.env
        for item in spec.observations:
            check_key(item.name)
        self._declared = arrays_of(spec)
        check_paths(self._declared)
        self.group = create_group(path)
        self._chunks = ChunkWriter(self.group)
        self._columns: dict[str, Column] = {}
        self._sizes = {item.name: item.size for item in spec.observations}
        self._slices = component_slices(self._sizes, spec.action)
        self._pending: list[_EpisodeRow] = []
        for name, column in self._declared.items():
            if not column.optional:
                self._add(name)
        self._action = self._columns["action"]
        self._states = self._columns["episode/initial_state"]
        self._action_range = np.full(spec.action.size, np.inf), np.full(spec.action.size, -np.inf)
        self._sources: list[str] = []
        self._weights: list[float] = []
        self._models: dict[str, int] = {}
        self._validation = 0

    def __enter__(self) -> SnippetWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for what is being written; drop what is not, if the writer is not closed."""
        self._chunks.__exit__(*error)

    def append(self, episode: Episode, statistics: npt.NDArray[np.float64] | None = None) -> None:
        """Append one episode.

        Args:
            episode: The episode.
            statistics: What `statistics_of` returns of its observations in the order of the
                specification and its actions, side by side, where that is known.

        Raises:
            DataError: It disagrees with the specification or with earlier episodes, has no
                steps, holds NaN or infinity, or has a weight that is no finite number from 0 on.
        """
        arrays = self._checked(episode)
        with np.errstate(invalid="ignore"):  # infinity is named below
            statistics = episode_statistics(arrays, self._slices, statistics)
        if not np.isfinite(statistics[0]).all():
            for name, values in arrays.items():
                check_finite(values, f"{episode.source}: {name}")
        final = self._checked_final(episode)
        row = self._row(episode)
        if episode.rewards is not None and not self._sources:
            self._add("reward")
        for name in self._sizes:
            self._columns[f"observation/{name}"].append(arrays[name])
        self._action.append(arrays["action"])
        if episode.rewards is not None:
            self._columns["reward"].append(np.asarray(episode.rewards))
        if episode.initial_state is not None:
            self._states.append(np.asarray(episode.initial_state, np.float64).ravel())
        row["initial_state_end"] = self._states.rows
        self._pending.append(_EpisodeRow(row, final, statistics))
        low, high = statistics[2:, self._slices["action"]]
        smallest, largest = self._action_range
        self._action_range = np.minimum(smallest, low), np.maximum(largest, high)
        if len(self._pending) == EPISODE_CHUNK:
            self._write_pending()
        self._sources.append(episode.source)
        self._weights.append(episode.weight)
        self._validation += row["split"]

    def close(self, action: ActionSpec | None = None) -> dict[str, Any]:
        """Write what is left and mark the store as complete.

        Args:
            action: Description of the actions, where it was not known before. Without limits it
                gets those of the data.

        Returns:
            Numbers for the artifact's summary.

        Raises:
            DataError: No episode was appended.
        """
        if not self._sources:
            raise DataError("there are no episodes to store")
        action = action or self._spec.action
        if not action.low:
            action = action.limited_by(*self._action_range)
        spec = replace(self._spec, action=action)
        self._write_pending()
        text = json.dumps(plain(self._sources)).encode()
        self._columns["episode/source"].append(np.frombuffer(text, np.uint8))
        if len(set(self._weights)) > 1:  # equal ones are the same as none
            self._add("episode/weight").append(self._weights)
        for column in self._columns.values():
            column.close()
        self._chunks.close()
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "spec": spec.to_mapping(),
            "models": list(self._models),
        }
        seal_group(self.group, attributes)
        return {
            "episodes": len(self._sources),
            "validation_episodes": self._validation,
            "steps": self._action.rows,
        }

    def _add(self, name: str) -> Column:
        declared = self._declared[name]
        column = Column(
            self.group, name, declared.shape, declared.dtype, declared.chunk, self._chunks
        )
        self._columns[name] = column
        return column

    def _write_pending(self) -> None:
        """Write what is stored once per episode: a few large pieces instead of many small ones."""
        for name in EPISODE_COLUMNS:
            self._columns[f"episode/{name}"].append([item.numbers[name] for item in self._pending])
        finals = np.stack([item.final for item in self._pending])
        for name in self._sizes:
            self._columns[f"final_observation/{name}"].append(finals[:, self._slices[name]])
        statistics = np.stack([item.statistics for item in self._pending])
        for name, place in self._slices.items():
            for number, part in enumerate(STATISTICS):
                self._columns[f"statistics/{name}/{part}"].append(statistics[:, number, place])
        self._pending.clear()

    def _checked(self, episode: Episode) -> dict[str, npt.NDArray[np.float32]]:
        """Return observations, action and relative action, refusing shapes that do not fit."""
        source, length = episode.source, episode.length
        if not length:
            raise DataError(f"{source}: the episode has no steps")
        arrays = {name: values_of(episode.observations, name, source) for name in self._sizes}
        arrays["action"] = np.asarray(episode.actions, np.float32)
        for name, size in {**self._sizes, "action": self._spec.action.size}.items():
            check_shape(arrays[name], (length, size), f"{source}: {name}")
        if self._sources and (episode.rewards is not None) != ("reward" in self._columns):
            raise DataError(f"{source}: some episodes have rewards and others have none")
        if episode.rewards is not None:
            rewards = np.asarray(episode.rewards)
            check_shape(rewards, (length,), f"{source}: rewards")
            check_finite(rewards, f"{source}: rewards")
        reference = self._spec.action.reference
        if reference:
            arrays[RELATIVE] = arrays["action"] - arrays[reference]
        return arrays

    def _row(self, episode: Episode) -> dict[str, int]:
        if episode.split not in SPLITS:
            raise DataError(f"{episode.source}: unknown split '{episode.split}'")
        if not 0 <= episode.weight < math.inf:
            raise DataError(
                f"{episode.source}: weight {episode.weight:g} is no finite number from 0 on"
            )
        return {
            "start": self._action.rows,
            "length": episode.length,
            "task": task_index(episode, self._spec.env.tasks),
            "label": index_of(episode.label, self._spec.labels, f"{episode.source}: label"),
            "split": SPLITS[episode.split],
            "success": -1 if episode.success is None else int(episode.success),
            "seed": stored_seed(episode.seed),
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
                folder = self.path.parent / _MODELS
                folder.mkdir(exist_ok=True)
                write_durably(folder / f"{digest}.xml", content)
        return self._models.setdefault(digest, len(self._models))

    def _checked_final(self, episode: Episode) -> npt.NDArray[np.float32]:
        """Return the final observation (sum of sizes,), zeros where the source has none."""
        final, source = episode.final_observation, episode.source
        if final is None:
            return np.zeros(sum(self._sizes.values()), np.float32)
        parts = {name: values_of(final, name, source) for name in self._sizes}
        for name, size in self._sizes.items():
            check_shape(parts[name], (size,), f"{source}: final {name}")
        joined = np.concatenate(list(parts.values()))
        if not np.isfinite(joined).all():
            for name, values in parts.items():
                check_finite(values, f"{source}: final {name}")
        return joined


class _EpisodeRow(NamedTuple):
    """What a store holds once per episode: `EPISODE_COLUMNS`, (obs,), and (statistic, dim)."""

    numbers: dict[str, int]
    final: npt.NDArray[np.float32]
    statistics: npt.NDArray[np.float64]


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
        self._columns: dict[str, npt.NDArray[Any]] = {}
        where = str(path or "the store")
        self.spec = SourceSpec.from_mapping(cast(Any, group.attrs.get("spec")), f"{where}: spec")
        self._models = typed(_TEXTS, group.attrs.get("models"), f"{where}: models")
        self._declared = arrays_of(self.spec)
        self._rows: dict[str, int | None] = {"step": None, "episode": None, "other": None}
        self.steps = self._rows["step"] = self._array("action").shape[0]
        self._rows["episode"] = self._array("episode/start").shape[0]
        check_counts(
            where, self._array("episode/start").shape[0], self._array("episode/source").shape[0]
        )
        self.episodes = self._table()

    @classmethod
    def open(cls, path: Path) -> SnippetStore:
        """Open the store at `path`, a zarr directory or an artifact directory.

        Raises:
            ArtifactError: It is missing, damaged, unfinished, or no snippet store.
        """
        inner = path / SNIPPETS_PAYLOAD
        path = inner if inner.is_dir() else path
        group = open_group(path, FORMAT, FORMAT_VERSION)
        store = cls(path, group)
        _check_table(store)
        return store

    @classmethod
    def written_by(cls, writer: SnippetWriter) -> SnippetStore:
        """Return the store that a closed writer has written, on disk or in memory."""
        store = cls(writer.path, writer.group, writer.model_texts)
        store.spec = replace(store.spec, env=replace(store.spec.env, stored=writer.env.stored))
        return store

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
        """Read several keys side by side: (time, sum of sizes), float32.

        Raises:
            ArtifactError: As `read`, or both copies that this takes do not fit into memory.
        """
        sizes = {item.name: item.size for item in self.spec.observations}
        row_bytes = 4 * sum(sizes.get(key, self.spec.action.size) for key in keys)
        where = self.path or "the store"
        check_memory(2 * (stop - start) * row_bytes, f"{where}: {stop - start:,} steps")
        return np.concatenate([self.read(key, start, stop) for key in keys], axis=1)

    def moments(self, keys: tuple[str, ...], split: str = "all") -> Moments:
        """Return the moments of several keys side by side; no step is read.

        Args:
            keys: Observation names, `"action"`, or `"action_relative"` (the action minus its
                reference observation, where it has one).
            split: `"train"`, `"validation"` or `"all"`.

        Raises:
            ArtifactError: No such key, or no episode in the split.
        """
        chosen = self.episodes.of_split(split)
        if not len(chosen):
            raise ArtifactError(f"{self.path} has no episodes in the split '{split}'")
        counts = self.episodes.length[chosen]
        return Moments.concatenate([self._moments(key, chosen, counts) for key in keys])

    def check_episode(self, index: int) -> None:
        """Check that all arrays of an episode fit into memory together, before any is read.

        Raises:
            ArtifactError: They, and the copies that are made of them, would take more than half of
                the free memory.
        """
        length, spec = int(self.episodes.length[index]), self.spec
        sizes = [item.size for item in spec.observations]
        row_bytes = 4 * (sum(sizes) + spec.action.size + 1)
        where = self.path or "the store"
        check_memory(COPIES * length * row_bytes, f"{where}: an episode of {length:,} steps")

    def episode(self, index: int) -> Episode:
        """Load one episode with all of its arrays.

        Raises:
            ArtifactError: A damaged chunk, or an episode that does not fit into memory.
        """
        self.check_episode(index)
        table, spec = self.episodes, self.spec
        start, stop = int(table.start[index]), int(table.start[index] + table.length[index])
        task, label = int(table.task[index]), int(table.label[index])
        success, seed = int(table.success[index]), int(table.seed[index])
        return Episode(
            source=table.source[index],
            observations={
                item.name: self.read(item.name, start, stop) for item in spec.observations
            },
            actions=self.read("action", start, stop),
            rewards=self.read("reward", start, stop)[:, 0] if self.has_rewards else None,
            final_observation=self.final_observation(index),
            initial_state=self.initial_state(index),
            model=self.model(index),
            task=spec.env.tasks[task] if task >= 0 else "",
            label=spec.label_name(label),
            split="validation" if table.split[index] else "train",
            success=None if success < 0 else bool(success),
            seed=None if seed < 0 else seed,
            weight=float(table.weight[index]),
        )

    def initial_state(self, index: int) -> npt.NDArray[np.float64] | None:
        """Return the simulator state at the first step of an episode, or None."""
        ends = self._column("initial_state_end")
        start = int(ends[index - 1]) if index else 0
        if start == int(ends[index]):
            return None
        return read_rows(self._array("episode/initial_state"), start, int(ends[index]))

    def model(self, index: int) -> str:
        """Return the simulator model text of an episode, or ""."""
        row = int(self._column("model")[index])
        if row < 0:
            return ""
        digest = self._models[row] if row < len(self._models) else ""
        if self.path is None:
            return self._model_texts[digest]
        name = f"{_MODELS}/{digest}.xml"
        content = read_stored(self.path.parent, name)
        if hashlib.sha256(content).hexdigest() != digest:
            raise ArtifactError(
                f"{self.path.parent / name} is damaged: its SHA-256 is not its name",
                "make the artifact again",
            )
        return content.decode()

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

    def check_arrays(self) -> None:
        """Check the shapes and types of all arrays; else this is done when one is first read.

        Raises:
            ArtifactError: One is missing or does not fit the description of the data.
        """
        for name, column in self._declared.items():
            if not column.optional or name in self._group:
                self._array(name)

    def _table(self) -> EpisodeTable:
        columns = {
            name: self._column(name)
            for name in ("start", "length", "task", "label", "split", "success", "seed")
        }
        weighted = "episode/weight" in self._group
        equal = np.ones(len(columns["start"]))
        columns["weight"] = self._column("weight") if weighted else equal
        where = f"{self.path or 'the store'}: episode/source"
        text = read_rows(self._array("episode/source")).tobytes()
        return EpisodeTable(**columns, source=typed(_TEXTS, parse_json(text, where), where))

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            if name not in self._declared:
                raise ArtifactError(f"{self.path or 'the store'} has no array '{name}'")
            declared = self._declared[name]
            shape = self._rows[declared.row], *declared.shape
            self._arrays[name] = array_of(self._group, name, shape, declared.dtype)
        return self._arrays[name]

    def _column(self, name: str) -> npt.NDArray[Any]:
        if name not in self._columns:
            self._columns[name] = read_rows(self._array(f"episode/{name}"))
        return self._columns[name]


def _check_table(store: SnippetStore) -> None:
    """Check that episodes lie in the store and refer to known names.

    Raises:
        ArtifactError: One does not.
    """
    table, spec = store.episodes, store.spec
    beyond = table.length > store.steps - table.start
    outside = (table.start < 0) | (table.length < 1) | beyond
    names = ("task", table.task, spec.env.tasks), ("label", table.label, spec.labels)
    for wrong, what in (
        (not len(table), "it has no episodes"),
        (len(table.source) != len(table), "episode/source does not name every episode"),
        (int(table.length.sum()) > store.steps, "its episodes overlap"),
        (outside.any(), f"episodes lie outside of the {store.steps} steps"),
        *(
            (((index < -1) | (index >= len(known))).any(), f"episode/{name}: an unknown {name}")
            for name, index, known in names
        ),
    ):
        if wrong:
            raise ArtifactError(f"{store.path} is damaged: {what}", "make the artifact again")
