"""Reader of Minari datasets in their HDF5 layout; minari itself is not needed.

A dataset is a directory with `data/main_data.hdf5` and `data/metadata.json`; the HDF5 file
alone is enough. Episodes are the groups `episode_N`, read in numeric order; each holds one
more observation than actions, and the last one becomes the final observation. Dictionary
observations are flattened, nested names joined by a dot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, Episode, FloatArray, SourceSpec
from lwdctl.core.simulator_facts import OBSERVATION, GymEnvironment
from lwdctl.data.checks import check_components, choose_observations, numeric_order
from lwdctl.data.contents import Contents
from lwdctl.data.gym_envs import (
    SAMPLE,
    describe_env,
    gym_action,
    level_of,
    read_state,
    state_arrays,
)
from lwdctl.data.hdf5 import (
    Hdf5Reader,
    array_at,
    dataset_at,
    location,
    read_array,
    read_rows,
    text_of,
)
from lwdctl.data.reader import EpisodeOutline, check_no_subset

FILE_NAME = "main_data.hdf5"


class MinariFile(Hdf5Reader):
    """One Minari dataset; a `FileReader`.

    The environment comes from `--env` or the metadata's `env_spec`; the behavior label from
    `--label` or the level in the dataset's name.

    The path is the dataset's directory, its `data` directory, or the HDF5 file.
    """

    generic = False

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a file or directory is recognized as Minari's, or ""."""
        if contents.container == "directory":
            names = (f"data/{FILE_NAME}", FILE_NAME)
            return next((name for name in names if name in contents.files), "")
        found = [f"{name}/actions" for name in contents.children() if name.startswith("episode_")]
        return next((key for key in found if key in contents.arrays), "")

    def __init__(self, path: Path, config: IngestConfig) -> None:
        check_no_subset(config, path, "a Minari dataset")
        file, self._metadata = _locate(path)
        super().__init__(file, config)

    def _scan(self, config: IngestConfig) -> None:
        self._metadata = self._metadata or _root_metadata(self._file)
        names = [name for name in self._file if name.startswith("episode_")]
        names.sort(key=numeric_order)
        if not names:
            raise DataError(f"{self.path}: episode_0: is missing; the file holds no episodes")
        groups = [self._group(name) for name in names]
        first = groups[0]
        self._arrays = _observation_arrays(first)
        # A plain array has one key, whose name the format does not give.
        observations = choose_observations(
            config.observation_keys,
            tuple(self._arrays),
            {key: _width(first[name]) for key, name in self._arrays.items()},
            location(first, "observations"),
        )
        self._arrays = {item.name: self._arrays[item.name] for item in observations}
        sizes = {item.name: item.size for item in observations}
        size = sum(sizes.values())
        action_size = int(_actions(first).shape[1])
        lengths = [self._scan_episode(group, sizes, action_size) for group in groups]
        recorded = _json_object(self._metadata.get("env_spec"))
        self._known, env = describe_env(
            config,
            str(recorded.get("id", "")),
            size,
            f"{self.path}: observations",
            sample=lambda: self._sample(groups),
        )
        label = config.label or level_of(str(self._metadata.get("dataset_id") or self.path))
        self.episodes = [
            EpisodeOutline(name, length, "".join(env.tasks), label, seed=_seed(group))
            for name, length, group in zip(names, lengths, groups, strict=True)
        ]
        # What the dataset records takes precedence.
        settings = {
            **env.settings,
            **({"env_spec": recorded} if recorded else {}),
            **state_arrays(first, self._known)[1],
        }
        limit = recorded.get("max_episode_steps")
        steps = limit if isinstance(limit, int) and limit > 0 else env.max_steps
        self.spec = SourceSpec(
            observations=observations,
            action=_action_spec(self._known, self._metadata, action_size),
            env=replace(env, settings=settings, max_steps=steps),
            labels=(),
            source_format="minari",
        )

    def _group(self, name: str) -> h5py.Group:
        group = self._file[name]
        if not isinstance(group, h5py.Group):
            raise DataError(f"{self.path}: {name}: is not a group")
        return group

    def _scan_episode(self, group: h5py.Group, sizes: Mapping[str, int], action_size: int) -> int:
        """Check one episode's shapes against each other and earlier ones; return its steps."""
        actions = _actions(group)
        steps, size = map(int, actions.shape)
        if steps == 0:
            raise DataError(f"{location(actions)}: has no rows")
        check_components(size, action_size, location(actions))
        for key, name in self._arrays.items():
            array = array_at(group, name, ranks=(1, 2))
            rows = array.shape[0]
            if rows != steps + 1:
                raise DataError(
                    f"{location(array)}, row {min(rows, steps + 1)}: has {rows} rows, expected "
                    f"{steps + 1} (one more than actions)"
                )
            check_components(_width(array), sizes[key], location(array))
        for name in ("rewards", "terminations", "truncations"):
            array_at(group, name, ranks=(1,), rows=steps)
        declared = group.attrs.get("total_steps", steps)
        if declared != steps:
            where = location(group, "attrs[total_steps]")
            raise DataError(f"{where}: is {declared}, actions have {steps} rows")
        return steps

    def _sample(self, groups: Sequence[h5py.Group]) -> FloatArray:
        """Return the first rows of the first episodes (time, obs)."""
        rows: list[FloatArray] = []
        for group in groups:
            arrays = [read_rows(group[item], 0, SAMPLE) for item in self._arrays.values()]
            rows.append(np.concatenate([item.reshape(len(item), -1) for item in arrays], axis=1))
            if sum(map(len, rows)) >= SAMPLE:
                break
        return np.concatenate(rows)

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or damaged bytes.
        """
        group = self._group(self.episodes[index].source)
        arrays: dict[str, FloatArray] = {}
        for key, name in self._arrays.items():
            rows = read_rows(group[name])
            arrays[key] = rows.reshape(len(rows), -1)
        success = None
        if isinstance(group.get("infos/success"), h5py.Dataset):
            success = bool(np.any(read_array(group["infos/success"])))
        return Episode(
            source=self.episodes[index].source,
            observations={key: values[:-1] for key, values in arrays.items()},
            actions=read_rows(group["actions"]),
            rewards=read_rows(group["rewards"]),
            final_observation={key: values[-1] for key, values in arrays.items()},
            initial_state=read_state(state_arrays(group, self._known)[0], 0),
            success=success,
        )


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the HDF5 file of a dataset and its metadata, {} where it has no such file."""
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
            "write the dataset again with minari's data_format='hdf5'",
        )
    found = path if path.is_file() else folder / FILE_NAME
    if not found.is_file():
        raise DataError(f"{found}: no such file; a Minari dataset has data/{FILE_NAME}")
    return found, metadata


def _root_metadata(file: h5py.File) -> dict[str, Any]:
    """Return the metadata that Minari before 0.5 kept in the HDF5 file itself."""
    return {
        name: text_of(file.attrs[name])
        for name in ("dataset_id", "env_spec", "action_space")
        if name in file.attrs
    }


def _json_object(text: Any) -> dict[str, Any]:
    """Return the JSON object in a metadata entry; anything else counts as absent."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return {}
    return dict(value) if isinstance(value, Mapping) else {}


def _action_spec(
    known: GymEnvironment | None, metadata: Mapping[str, Any], size: int
) -> ActionSpec:
    """Return the action of the environment, with the limits that the dataset records."""
    spec = gym_action(known, size)
    space = _json_object(metadata.get("action_space"))
    low, high = _limits(space.get("low"), size), _limits(space.get("high"), size)
    return replace(spec, low=low, high=high) if low and high else spec


def _limits(values: Any, size: int) -> tuple[float, ...]:
    """Return finite limits of the right number, or ()."""
    try:
        limits = np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return ()
    if limits.size != size or not np.isfinite(limits).all():
        return ()
    return tuple(float(value) for value in limits)


def _observation_arrays(group: h5py.Group) -> dict[str, str]:
    """Return the path below an episode's group of every observation key."""
    item = group.get("observations")
    if item is None:
        raise DataError(f"{location(group, 'observations')}: is missing")
    if isinstance(item, h5py.Dataset):
        return {OBSERVATION: "observations"}
    names: list[str] = []
    item.visititems(
        lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None
    )
    return {name.replace("/", "."): f"observations/{name}" for name in names}


def _actions(group: h5py.Group) -> h5py.Dataset:
    """Return an episode's actions (time, action)."""
    actions = dataset_at(group, "actions")
    if len(actions.shape or ()) == 1:
        raise DataError(f"{location(actions)}: are discrete (shape {actions.shape})")
    return array_at(group, "actions")


def _width(array: h5py.Dataset) -> int:
    """Return the number of components of an array (time, size) or (time,)."""
    return int(array.shape[1]) if len(array.shape or ()) > 1 else 1


def _seed(group: h5py.Group) -> int | None:
    """Return the reset seed; Minari omits it, or writes text, where there was none."""
    seed = group.attrs.get("seed")
    return int(seed) if isinstance(seed, int | np.integer) and seed >= 0 else None
