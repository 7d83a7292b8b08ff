"""Writing a snippet store as a LeRobot dataset of version 3.0; lerobot itself is not needed.

Every observation key becomes a feature `observation.KEY`. Each episode is a row group of its own.
Episodes of the validation split come last, so that the dataset's splits can name them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.files import whole_directory
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.lerobot_features import feature_names
from lwdctl.core.progress import Progress
from lwdctl.core.records import Episode, SourceSpec
from lwdctl.data.export_choice import chosen_episodes
from lwdctl.data.files.parquet_files import ParquetWriter
from lwdctl.data.readers.lerobot_meta import DEFAULT_PATHS
from lwdctl.data.readers.lerobot_rows import DONE, EPISODE, FRAME, REWARD, SUCCESS, TASK, TIME

VERSION = "v3.0"
FILES_PER_CHUNK = 1000
FILE_MEGABYTES = 100
VIDEO_MEGABYTES = 200
METADATA_ROWS = 500
"""Episodes whose metadata are held before they are written."""
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
EPISODES_FILE = "meta/episodes/chunk-000/file-000.parquet"

Statistics = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class LeRobotTarget:
    """What to export and where.

    Attributes:
        path: Directory to create.
        task: Export only episodes of this task; "" for all.
        label: Export only episodes with this behavior label; "" for all.
        fps: Steps per second; 0 for the store's control rate.
    """

    path: Path
    task: str = ""
    label: str = ""
    fps: float = 0.0


@dataclass
class LeRobotExport:
    """What was exported.

    Attributes:
        path: Directory of the dataset.
        fps: Steps per second.
        features: Store key to feature.
        episodes: Number of episodes.
        steps: Number of steps.
        tasks: Task texts.
        labels: Behavior labels, in the column `label` of the episodes' metadata.
        has_rewards: Whether it has rewards.
        has_success: Whether it has success, which must be known of every episode.
    """

    path: Path
    fps: float
    features: dict[str, str]
    episodes: int = 0
    steps: int = 0
    tasks: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    has_rewards: bool = False
    has_success: bool = False


def export_lerobot(store: SnippetStore, target: LeRobotTarget, progress: Progress) -> LeRobotExport:
    """Export a store as a dataset, which appears in its directory as a whole or not at all.

    Raises:
        ConfigError: An unknown task or label, or no control rate.
        DataError: The directory exists already.
    """
    chosen = chosen_episodes(store, target.task, target.label)
    fps = target.fps or store.spec.action.control_rate
    if not fps > 0:
        raise ConfigError(
            "the store does not know its control rate, which a LeRobot dataset needs",
            "give it in steps per second, as in --fps 20",
        )
    if target.path.exists():
        raise DataError(f"{target.path}: exists already", "name another directory")
    table = store.episodes
    chosen = chosen[np.argsort(table.split[chosen], kind="stable")]
    result = LeRobotExport(
        target.path,
        fps,
        feature_names(store.spec.observations),
        has_rewards=store.has_rewards,
        has_success=bool((table.success[chosen] >= 0).all()),
    )
    with (
        whole_directory(target.path) as fresh,
        progress.task("export", len(chosen), "episode") as task,
    ):
        writer = _Writer(fresh, store.spec, result)
        for index in chosen.tolist():
            writer.write(store.episode(index))
            task.advance()
        writer.finish(int((table.split[chosen] == 0).sum()))
    if not result.has_rewards:
        progress.message("the store has no rewards: none were written")
    if not result.has_success:
        progress.message("success is not known of every episode: none was written")
    return result


class _Writer:
    """Writes the files of a dataset, one episode after another."""

    def __init__(self, root: Path, spec: SourceSpec, result: LeRobotExport) -> None:
        self._root, self._spec, self._result = root, spec, result
        self._file, self._data, self._metadata = 0, ParquetWriter(), ParquetWriter()
        self._total = _Moments()
        self._tasks: dict[str, int] = {}
        self._labels: dict[str, None] = {}
        self._pending: list[dict[str, Any]] = []

    def write(self, episode: Episode) -> None:
        """Append one episode."""
        result = self._result
        task = self._tasks.setdefault(episode.task, len(self._tasks))
        columns = self._columns(episode, task)
        if self._data.bytes >= FILE_MEGABYTES * 2**20:
            self._data.close()
            self._file += 1
        chunk, number = divmod(self._file, FILES_PER_CHUNK)
        place = DEFAULT_PATHS[3].format(chunk_index=chunk, file_index=number)
        self._data.write(self._root / place, columns)
        statistics = {name: _statistics(values) for name, values in columns.items()}
        self._total.add(statistics)
        row = {
            "episode_index": result.episodes,
            "tasks": [episode.task],
            "length": episode.length,
            "data/chunk_index": chunk,
            "data/file_index": number,
            "dataset_from_index": result.steps,
            "dataset_to_index": result.steps + episode.length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            **({"label": episode.label} if self._spec.labels else {}),
            **{
                f"stats/{name}/{part}": values.tolist()
                for name, parts in statistics.items()
                for part, values in parts.items()
            },
        }
        self._labels.setdefault(episode.label)
        self._pending.append(row)
        if len(self._pending) == METADATA_ROWS:
            self._write_metadata()
        result.episodes += 1
        result.steps += episode.length

    def _columns(self, episode: Episode, task: int) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of an episode: (time,) or, with several components, (time, size)."""
        result, length = self._result, episode.length
        frames = np.arange(length)
        last = frames == length - 1
        columns: dict[str, npt.NDArray[Any]] = {
            **{name: episode.observations[key] for key, name in result.features.items()},
            "action": episode.actions,
        }
        if result.has_rewards and episode.rewards is not None:
            columns[REWARD] = episode.rewards
        columns[DONE] = last
        if result.has_success:
            columns[SUCCESS] = last & bool(episode.success)
        columns[TIME] = (frames / result.fps).astype(np.float32)
        columns[FRAME] = frames
        columns[EPISODE] = np.full(length, result.episodes)
        columns["index"] = result.steps + frames
        columns[TASK] = np.full(length, task)
        return {
            name: values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
            for name, values in columns.items()
        }

    def finish(self, trained: int) -> None:
        """Write the metadata.

        Args:
            trained: Number of the first episodes that are of the training split.
        """
        result = self._result
        result.tasks = tuple(filter(None, self._tasks))
        result.labels = tuple(filter(None, self._labels))
        self._data.close()
        self._write_metadata()
        self._metadata.close()
        tasks = {TASK: np.array([*self._tasks.values()]), "task": [*self._tasks]}
        self._metadata.write(self._root / "meta/tasks.parquet", tasks, index="task")
        self._metadata.close()
        splits = {"train": f"0:{trained}"}
        if trained < result.episodes:
            splits["val"] = f"{trained}:{result.episodes}"
        info = {
            "codebase_version": VERSION,
            "robot_type": None,
            "total_episodes": result.episodes,
            "total_frames": result.steps,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": FILE_MEGABYTES,
            "video_files_size_in_mb": VIDEO_MEGABYTES,
            "fps": int(result.fps) if float(result.fps).is_integer() else result.fps,
            "splits": splits,
            "data_path": DEFAULT_PATHS[3],
            "video_path": None,
            "features": self._features(),
        }
        self._write_json("meta/info.json", info)
        self._write_json("meta/stats.json", self._total.statistics())

    def _features(self) -> dict[str, Any]:
        result, spec = self._result, self._spec
        sizes = {result.features[item.name]: item.size for item in spec.observations}
        sizes["action"] = spec.action.size
        kinds = dict.fromkeys(sizes, "float32")
        kinds |= {REWARD: "float32"} if result.has_rewards else {}
        kinds |= {DONE: "bool"} | ({SUCCESS: "bool"} if result.has_success else {})
        kinds |= {TIME: "float32", **dict.fromkeys((FRAME, EPISODE, "index", TASK), "int64")}
        return {
            name: {"dtype": kind, "shape": [sizes.get(name, 1)], "names": None}
            for name, kind in kinds.items()
        }

    def _write_metadata(self) -> None:
        if self._pending:
            columns = {name: [row[name] for row in self._pending] for name in self._pending[0]}
            self._metadata.write(self._root / EPISODES_FILE, columns)
            self._pending.clear()

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")


def _statistics(values: npt.NDArray[Any]) -> Statistics:
    """Return the statistics of a column of one episode, each (size,)."""
    exact = values.astype(np.float64).reshape(len(values), -1)
    return {
        "min": exact.min(axis=0),
        "max": exact.max(axis=0),
        "mean": exact.mean(axis=0),
        "std": exact.std(axis=0),
        "count": np.array([len(exact)]),
        **dict(zip(QUANTILES, np.quantile(exact, list(QUANTILES.values()), axis=0), strict=True)),
    }


@dataclass
class _Moments:
    """Statistics of all episodes from those of each, quantiles as LeRobot has them: their mean."""

    parts: dict[str, Statistics] = field(default_factory=dict)

    def add(self, statistics: Mapping[str, Statistics]) -> None:
        """Add an episode."""
        for name, new in statistics.items():
            old = self.parts.get(name)
            self.parts[name] = dict(new) if old is None else _merged(old, new)

    def statistics(self) -> dict[str, dict[str, list[float]]]:
        """Return JSON-ready statistics by feature."""
        return {
            name: {part: values.tolist() for part, values in parts.items()}
            for name, parts in self.parts.items()
        }


def _merged(old: Statistics, new: Statistics) -> Statistics:
    count = old["count"] + new["count"]
    weight = new["count"] / count
    shift = new["mean"] - old["mean"]
    variance = (1 - weight) * old["std"] ** 2 + weight * new["std"] ** 2
    return {
        "min": np.minimum(old["min"], new["min"]),
        "max": np.maximum(old["max"], new["max"]),
        "std": np.sqrt(variance + weight * (1 - weight) * shift**2),
        "count": count,
        **{key: old[key] + weight * (new[key] - old[key]) for key in ("mean", *QUANTILES)},
    }
