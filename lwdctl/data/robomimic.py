"""Reader of robomimic's HDF5 layout (versions 1.2 to 1.5 of `env_args`).

robomimic itself is not needed. robosuite's `object` observation is converted to one convention
(`robosuite_object`); `env_args` are kept as written in `EnvSpec.settings["env_args"]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import EnvSpec, Episode, FloatArray, ObservationSpec, SourceSpec
from lwdctl.core.simulator_facts import ROBOSUITE_NETWORK_KEYS
from lwdctl.data.checks import check_components, choose_observations
from lwdctl.data.hdf5 import (
    array_at,
    location,
    number_of,
    open_hdf5,
    read_array,
    read_rows,
    text_of,
)
from lwdctl.data.reader import EpisodeOutline, closed_on_error, requested_env
from lwdctl.data.robomimic_env import (
    action_spec,
    adapter_of,
    max_steps_of,
    read_env_args,
)
from lwdctl.data.robomimic_masks import Masks
from lwdctl.data.robosuite_actions import PoseTargets, pose_targets
from lwdctl.data.robosuite_object import CONVENTION, ObjectConvention

POSITION_KEY, QUATERNION_KEY = "robot0_eef_pos", "robot0_eef_quat"
SUCCESS_REWARD = 1.0


class RobomimicFile:
    """One robomimic file; a `FileReader`.

    Tasks come from the attribute `task` of a demonstration, else from `env_name`; labels from
    `--label`, the attributes `operator` or `label`, else masks; success from the attribute
    `success`, else (robosuite) from a reward of 1.

    Args:
        path: The file.
        config: What the user requests.

    Raises:
        DataError: The structure is not robomimic's; the message names file and key.
    """

    def __init__(self, path: Path, config: IngestConfig) -> None:
        self.path = path
        self._file = open_hdf5(path, config.max_bytes)
        with closed_on_error(self._file):
            self._scan(config)

    def _scan(self, config: IngestConfig) -> None:
        path = self.path
        data = self._file.get("data")
        if not isinstance(data, h5py.Group):
            raise DataError(f"{path}: data: is missing; a robomimic file has data/demo_0 and so on")
        demos = sorted((name for name in data if isinstance(data[name], h5py.Group)), key=number_of)
        masks = Masks(self._file, demos)
        names = masks.select(config.filter_key or "")
        if not names:
            raise DataError(f"{path}: data: holds no demonstrations")
        self._env_args = read_env_args(data)
        adapter, task = requested_env(config)
        self._adapter = adapter or adapter_of(self._env_args)
        env_name = str(self._env_args.get("env_name", ""))
        task = task or env_name.rpartition("/")[2]
        version = str(self._env_args.get("env_version", ""))
        self._object = ObjectConvention(task, version)
        first = data[names[0]]
        observations = self._choose_observations(first, config)
        self._targets: PoseTargets | None = None
        if config.actions == "absolute" and self._adapter == "robosuite":
            self._targets = pose_targets(data, first, self._env_args)
        self._has_rewards = all("rewards" in data[name] for name in names)
        sizes = {f"obs/{item.name}": item.size for item in observations}
        sizes["actions"] = int(array_at(first, "actions").shape[1])
        labels, splits = masks.labels(), masks.splits(config.filter_key or "")
        self.episodes = [
            EpisodeOutline(
                name,
                self._scan_demo(data[name], sizes),
                text_of(data[name].attrs.get("task", task)),
                config.label or _own_label(data[name]) or labels.get(name, ""),
                splits.get(name, ""),
            )
            for name in names
        ]
        self.spec = self._make_spec(data, observations, sizes["actions"])

    def _choose_observations(
        self, demo: h5py.Group, config: IngestConfig
    ) -> tuple[ObservationSpec, ...]:
        obs = demo.get("obs")
        if not isinstance(obs, h5py.Group):
            raise DataError(f"{location(demo, 'obs')}: is missing")
        shapes = {key: getattr(item, "shape", None) or () for key, item in obs.items()}
        default = [key for key, shape in shapes.items() if len(shape) == 2]
        if self._adapter == "robosuite":
            default = list(ROBOSUITE_NETWORK_KEYS)
        sizes = {key: int(shape[-1]) if shape else 0 for key, shape in shapes.items()}
        return choose_observations(config.observation_keys, default, sizes, location(obs))

    def _scan_demo(self, demo: h5py.Group, sizes: Mapping[str, int]) -> int:
        """Check one demonstration's shapes against each other and the first one's."""
        steps = int(array_at(demo, "actions").shape[0])
        if steps == 0:
            raise DataError(f"{location(demo, 'actions')}: has no rows")
        for name, size in sizes.items():
            found = array_at(demo, name, rows=steps).shape[1]
            check_components(found, size, location(demo, name))
        for name in ("rewards", "dones", "states"):
            if name in demo:
                array_at(demo, name, ranks=(1, 2), rows=steps)
        declared = demo.attrs.get("num_samples", steps)
        if declared != steps:
            where = location(demo, "attrs[num_samples]")
            raise DataError(f"{where}: is {declared}, actions have {steps} rows")
        if self._targets is not None:
            self._targets.check(demo)
        return steps

    def _make_spec(
        self, data: h5py.Group, observations: tuple[ObservationSpec, ...], action_size: int
    ) -> SourceSpec:
        tasks = tuple(dict.fromkeys(item.task for item in self.episodes))
        labels = sorted({item.label for item in self.episodes} - {""})
        seeds = [seed for item in self.episodes if (seed := _seed(data[item.source])) is not None]
        settings: dict[str, Any] = {"env_args": self._env_args} if self._env_args else {}
        if any(item.name == "object" and self._object.applies(item.size) for item in observations):
            settings["object_convention"] = CONVENTION
        where = f"{self.path}: data.attrs[env_args]"
        action = action_spec(self._adapter, self._env_args, action_size, where)
        if self._targets is not None:
            action = self._targets.spec
            settings["actions"] = action.semantics
        limit = max(
            max_steps_of(self._adapter, task, self._env_args, several_operators=len(labels) > 1)
            for task in tasks
        )
        limit = limit or max(item.length for item in self.episodes)
        return SourceSpec(
            observations=observations,
            action=action,
            env=EnvSpec(self._adapter, tasks, settings, limit),
            labels=tuple(labels),
            source_format="robomimic",
            collection_seeds=(min(seeds), max(seeds)) if seeds else None,
        )

    def read(self, index: int) -> Episode:
        """Load one demonstration.

        Raises:
            DataError: NaN or infinity, or an `object` that is neither of the two known ones.
        """
        outline = self.episodes[index]
        demo = self._file["data"][outline.source]
        keys = [item.name for item in self.spec.observations]
        observations = {key: read_rows(demo["obs"][key]) for key in keys}
        final = self._final_observation(demo, keys)
        self._normalize_object(demo, observations, final)
        rewards = None
        if self._has_rewards:
            rewards = read_rows(demo["rewards"]).reshape(-1)
        actions = read_rows(demo["actions"])
        if self._targets is not None:
            actions = self._targets.convert(demo, actions)
        return Episode(
            source=outline.source,
            observations=observations,
            actions=actions,
            rewards=rewards,
            final_observation=final,
            initial_state=self._initial_state(demo),
            model=text_of(demo.attrs.get("model_file", "")) or self._shared_model,
            task=outline.task,
            label=outline.label,
            split=outline.split,
            success=self._success(demo, rewards),
            seed=_seed(demo),
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _final_observation(
        self, demo: h5py.Group, keys: Sequence[str]
    ) -> dict[str, FloatArray] | None:
        """Return the observation after the last action, where every key has one."""
        if any(f"next_obs/{key}" not in demo for key in keys):
            return None
        final: dict[str, FloatArray] = {}
        steps = demo["actions"].shape[0]
        for key in keys:
            dataset = array_at(demo, f"next_obs/{key}", rows=steps)
            check_components(dataset.shape[1], demo["obs"][key].shape[1], location(dataset))
            final[key] = read_rows(dataset, steps - 1, steps)[0]
        return final

    def _normalize_object(
        self,
        demo: h5py.Group,
        observations: dict[str, FloatArray],
        final: dict[str, FloatArray] | None,
    ) -> None:
        values = observations.get("object")
        if values is None or not self._object.applies(values.shape[1]):
            return
        # The end effector's pose, whether it is stored or not.
        position, quaternion = (
            read_rows(array_at(demo, f"obs/{key}", rows=len(values)))
            if key in demo["obs"]
            else None
            for key in (POSITION_KEY, QUATERNION_KEY)
        )
        where = location(demo, "obs/object")
        if self._object.is_old(values, position, quaternion, where):
            observations["object"] = self._object.convert(values)
            if final is not None:
                final["object"] = self._object.convert(final["object"])

    @cached_property
    def _shared_model(self) -> str:
        """The model of demonstrations that store none: the file's only one, or ""."""
        demos = self._file["data"].values()
        models = {text_of(demo.attrs["model_file"]) for demo in demos if "model_file" in demo.attrs}
        return models.pop() if len(models) == 1 else ""

    def _initial_state(self, demo: h5py.Group) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """Return the first simulator state: `states[0]`, or lwdctl's own `initial_state`."""
        for key, last in (("states", 1), ("initial_state", None)):
            if key not in demo:
                continue
            dataset = array_at(demo, key, ranks=(2,) if key == "states" else (1,))
            state = read_array(dataset, 0, last).astype(np.float64).reshape(-1)
            if not np.isfinite(state).all():
                raise DataError(f"{location(dataset)}, row 0: is not finite")
            return state
        return None

    def _success(self, demo: h5py.Group, rewards: FloatArray | None) -> bool | None:
        if "success" in demo.attrs:
            return bool(demo.attrs["success"])
        if self._adapter != "robosuite" or rewards is None:
            return None
        return bool((rewards >= SUCCESS_REWARD).any())


def _own_label(demo: h5py.Group) -> str:
    """Return the behavior label that a demonstration's attributes give, or ""."""
    for name in ("operator", "label"):
        if name in demo.attrs:
            return text_of(demo.attrs[name])
    return ""


def _seed(demo: h5py.Group) -> int | None:
    if "seed" not in demo.attrs:
        return None
    try:
        return int(demo.attrs["seed"])
    except (TypeError, ValueError):
        raise DataError(f"{location(demo, 'attrs[seed]')}: is not an integer") from None
