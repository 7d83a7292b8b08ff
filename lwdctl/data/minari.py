"""Reader of Minari data sets in their HDF5 layout; minari itself is not needed.

A data set is a directory with `data/main_data.hdf5` and `data/metadata.json`; the HDF5 file
alone will do. Episodes are the groups `episode_N`, read in numeric order; each holds one
observation more than actions, and the last one becomes the final observation. Dictionary
observations are flattened, nested names joined by a dot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, FloatArray, SourceSpec
from lwdctl.data.checks import choose_keys, observation_specs, require_length, require_size
from lwdctl.data.gym_envs import (
    SAMPLE,
    env_spec,
    gym_action,
    gym_id,
    known_env,
    level_of,
    note_zero_forces,
)
from lwdctl.data.hdf5_guard import (
    array_shape,
    dataset_at,
    location,
    number_of,
    open_hdf5,
    read_array,
    read_rows,
    text_of,
)
from lwdctl.data.merge import EpisodeOutline, MergedReader
from lwdctl.data.reader import ReadOptions

OBSERVATION = "observation"
FILE_NAME = "main_data.hdf5"
STATE_KEYS = ("qpos", "qvel")


def open_minari(paths: Sequence[Path], options: ReadOptions) -> MergedReader:
    """Open one or several Minari data sets as one source."""
    return MergedReader(MinariFile, paths, options)


class MinariFile:
    """One Minari data set; a file reader.

    The environment comes from `--env` or the metadata's `env_spec`; the label from `--label`
    or the level in the data set's name.

    Args:
        path: The data set's directory, its `data` directory, or the HDF5 file.
        options: What the user asked for; there are no subsets to filter by.

    Raises:
        DataError: The structure is not Minari's; the message names file and key.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        if options.filter_key:
            raise DataError(f"{path}: a Minari data set has no subset '{options.filter_key}'")
        self.sources: Sequence[str]
        self.lengths: Sequence[int]
        self.path, self._metadata = _locate(path)
        self._file = open_hdf5(self.path, options.max_bytes)
        try:
            self._metadata = self._metadata or _root_metadata(self._file)
            self._name = str(self._metadata.get("dataset_id") or path)
            self._scan(options)
        except BaseException:
            self._file.close()
            raise

    def _scan(self, options: ReadOptions) -> None:
        names = [name for name in self._file if name.startswith("episode_")]
        self.sources = sorted(names, key=number_of)
        if not self.sources:
            raise DataError(f"{self.path}: episode_0: is missing; the file holds no episodes")
        first = self._group(self.sources[0])
        self._arrays = _observation_arrays(first, self.path)
        # A plain array has one key, whose name the format does not give.
        keys = choose_keys(
            options.observation_keys,
            tuple(self._arrays),
            tuple(self._arrays),
            f"{self.path}: {location(first, 'observations')}",
        )
        self._arrays = {key: self._arrays[key] for key, _ in keys}
        sizes: dict[str, int] = {}
        self.lengths = [self._scan_episode(self._group(name), sizes) for name in self.sources]
        env = self._env_spec(options, sum(sizes[key] for key, _ in keys))
        self._task = env.tasks[0] if env.tasks else ""
        self._label = options.label or level_of(self._name)
        seeds = [seed for name in self.sources if (seed := _seed(self._group(name))) is not None]
        self.spec = SourceSpec(
            observations=observation_specs(keys, [sizes[key] for key, _ in keys]),
            action=self._action_spec(options, sizes["actions"]),
            env=env,
            labels=(self._label,) if self._label else (),
            source_format="minari",
            collection_seeds=(min(seeds), max(seeds)) if seeds else None,
        )

    def _group(self, name: str) -> h5py.Group:
        group = self._file[name]
        if not isinstance(group, h5py.Group):
            raise DataError(f"{self.path}: {name}: is not a group")
        return group

    def _scan_episode(self, group: h5py.Group, sizes: dict[str, int]) -> int:
        """Check one episode's shapes against each other and earlier ones."""
        actions = dataset_at(group, "actions", self.path)
        where = f"{self.path}: {location(group, '')}"
        if len(actions.shape or ()) == 1:
            raise DataError(f"{where}actions: are discrete (shape {actions.shape})")
        steps, size = array_shape(actions, self.path)
        if steps == 0:
            raise DataError(f"{where}actions: has no rows")
        require_size(size, sizes.setdefault("actions", size), f"{where}actions")
        for key, name in self._arrays.items():
            shape = array_shape(dataset_at(group, name, self.path), self.path, ranks=(1, 2))
            if shape[0] != steps + 1:
                raise DataError(
                    f"{where}{name}, row {min(shape[0], steps + 1)}: has {shape[0]} rows, expected "
                    f"{steps + 1} (one more than actions)"
                )
            size = shape[1] if len(shape) > 1 else 1
            require_size(size, sizes.setdefault(key, size), f"{where}{name}")
        for name in ("rewards", "terminations", "truncations"):
            shape = array_shape(dataset_at(group, name, self.path), self.path, ranks=(1,))
            require_length(shape[0], steps, f"{where}{name}", "actions")
        declared = group.attrs.get("total_steps", steps)
        if declared != steps:
            raise DataError(f"{where}attrs[total_steps]: is {declared}, actions have {steps} rows")
        return steps

    def _env_spec(self, options: ReadOptions, size: int) -> EnvSpec:
        """Describe the environment; what the metadata say goes before what is known of it."""
        recorded = _json_object(self._metadata.get("env_spec"))
        named = gym_id(str(recorded.get("id", "")))
        known = known_env(options.env.partition("/")[2] or named)
        spec = env_spec(known, options.env, named, size, f"{self.path}: observations")
        if spec.settings.get("use_contact_forces"):
            spec = note_zero_forces(spec, self._sample())
        self._state_names = [*STATE_KEYS, *(known.state_keys if known else ())]
        settings = {**spec.settings, **({"env_spec": recorded} if recorded else {})}
        first = self._group(self.sources[0])
        keys = [f"infos/{name}" for name in self._state_names]
        if all(key in first for key in keys):
            shapes = [array_shape(dataset_at(first, key, self.path), self.path) for key in keys]
            settings["initial_state"] = [
                [name, shape[1]] for name, shape in zip(self._state_names, shapes, strict=True)
            ]
        limit = recorded.get("max_episode_steps")
        steps = limit if isinstance(limit, int) and limit > 0 else spec.max_steps
        return EnvSpec(spec.adapter, spec.tasks, settings, steps or max(self.lengths))

    def _sample(self) -> FloatArray:
        """Return the first rows of the first episodes (time, obs)."""
        rows: list[FloatArray] = []
        for name in self.sources:
            group = self._group(name)
            arrays = [
                read_rows(group[item], self.path, 0, SAMPLE) for item in self._arrays.values()
            ]
            rows.append(np.concatenate([item.reshape(len(item), -1) for item in arrays], axis=1))
            if sum(map(len, rows)) >= SAMPLE:
                break
        return np.concatenate(rows)

    def _action_spec(self, options: ReadOptions, size: int) -> ActionSpec:
        recorded = _json_object(self._metadata.get("env_spec"))
        named = gym_id(str(recorded.get("id", "")))
        spec = gym_action(known_env(options.env.partition("/")[2] or named), size)
        space = _json_object(self._metadata.get("action_space"))
        low, high = _limits(space.get("low"), size), _limits(space.get("high"), size)
        if not (low and high):
            return spec
        return ActionSpec(size, spec.semantics, spec.units, low, high, spec.control_rate)

    def outline(self, index: int) -> EpisodeOutline:
        """Say what an episode is without loading its steps."""
        del index
        return EpisodeOutline(self._task, self._label)

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or damaged bytes.
        """
        group = self._group(self.sources[index])
        arrays: dict[str, FloatArray] = {}
        for key, name in self._arrays.items():
            rows = read_rows(group[name], self.path)
            arrays[key] = rows.reshape(len(rows), -1)
        return Episode(
            source=self.sources[index],
            observations={key: values[:-1] for key, values in arrays.items()},
            actions=read_rows(group["actions"], self.path),
            rewards=read_rows(group["rewards"], self.path),
            final_observation={key: values[-1] for key, values in arrays.items()},
            initial_state=self._initial_state(group),
            task=self._task,
            label=self._label,
            success=self._success(group),
            seed=_seed(group),
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _initial_state(self, group: h5py.Group) -> npt.NDArray[np.float64] | None:
        """Return `qpos`, `qvel` and so on at the reset, laid end to end, where recorded."""
        keys = [f"infos/{name}" for name in self._state_names]
        if any(key not in group for key in keys):
            return None
        parts = []
        for key in keys:
            dataset = dataset_at(group, key, self.path)
            array_shape(dataset, self.path)
            read_rows(dataset, self.path, 0, 1)  # refuses NaN and infinity
            parts.append(read_array(dataset, self.path, 0, 1).reshape(-1))
        return np.concatenate(parts).astype(np.float64)

    def _success(self, group: h5py.Group) -> bool | None:
        if not isinstance(group.get("infos/success"), h5py.Dataset):
            return None
        return bool(np.any(read_array(group["infos/success"], self.path)))


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the HDF5 file of a data set and its metadata, {} where it has no such file.

    Raises:
        DataError: No such path, no data set, or one that is not stored as HDF5.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    if path.is_file():
        folder = path.parent
    else:
        folder = path if (path / "metadata.json").is_file() else path / "data"
    metadata: dict[str, Any] = {}
    file = folder / "metadata.json"
    if file.is_file() and (path.is_dir() or path.name == FILE_NAME):
        try:
            metadata = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{file}: is not JSON ({error})") from None
        if not isinstance(metadata, dict):
            raise DataError(f"{file}: is not a JSON object")
    stored = str(metadata.get("data_format", "hdf5"))
    if stored != "hdf5":
        raise DataError(
            f"{file}: data_format: is '{stored}'; only hdf5 is read",
            "make the data set again with minari's data_format='hdf5'",
        )
    found = path if path.is_file() else folder / FILE_NAME
    if not found.is_file():
        raise DataError(f"{found}: no such file; a Minari data set has data/{FILE_NAME}")
    return found, metadata


def _root_metadata(file: h5py.File) -> dict[str, Any]:
    """Return the metadata that Minari before 0.5 kept in the HDF5 file itself."""
    return {
        name: text_of(file.attrs[name])
        for name in ("dataset_id", "env_spec", "action_space")
        if name in file.attrs
    }


def _json_object(text: Any) -> dict[str, Any]:
    """Parse JSON inside metadata; anything but an object counts as absent."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return {}
    return dict(value) if isinstance(value, Mapping) else {}


def _limits(values: Any, size: int) -> tuple[float, ...]:
    """Return finite limits of the right number, or ()."""
    try:
        limits = np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return ()
    if limits.size != size or not np.isfinite(limits).all():
        return ()
    return tuple(float(value) for value in limits)


def _observation_arrays(group: h5py.Group, path: Path) -> dict[str, str]:
    """Return observation key to location inside an episode."""
    item = group.get("observations")
    if item is None:
        raise DataError(f"{path}: {location(group, 'observations')}: is missing")
    if isinstance(item, h5py.Dataset):
        return {OBSERVATION: "observations"}
    names: list[str] = []
    item.visititems(
        lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None
    )
    return {name.replace("/", "."): f"observations/{name}" for name in names}


def _seed(group: h5py.Group) -> int | None:
    """Return the reset seed; Minari leaves it out, or writes a word, where there was none."""
    seed = group.attrs.get("seed")
    return int(seed) if isinstance(seed, int | np.integer) and seed >= 0 else None
