"""Reader of robomimic's HDF5 layout (versions 1.2 to 1.5 of `env_args`).

robomimic itself is not needed. robosuite's `object` observation is converted to one convention
(`data.robosuite`); `env_args` are kept as written in `EnvSpec.settings["env_args"]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import h5py
import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import (
    ActionSpec,
    EnvSpec,
    Episode,
    FloatArray,
    ObservationSpec,
    SourceSpec,
)
from lwdctl.core.registry import is_import_path
from lwdctl.core.simulator_facts import (
    METAWORLD_CONTROL_RATE,
    METAWORLD_MAX_STEPS,
    ROBOSUITE_DEFAULT_MAX_STEPS,
    ROBOSUITE_MAX_STEPS,
    ROBOSUITE_NETWORK_KEYS,
    robosuite_action,
    robosuite_control_rate,
)
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.checks import check_components, choose_observations, numeric_order
from lwdctl.data.contents import Contents
from lwdctl.data.hdf5 import (
    Hdf5Reader,
    array_at,
    dataset_at,
    location,
    read_array,
    text_of,
)
from lwdctl.data.reader import EpisodeOutline, requested_env
from lwdctl.data.robomimic_writer import LEVELS
from lwdctl.data.robosuite import (
    CONVENTION,
    POSITION_KEY,
    ObjectConvention,
    PoseTargets,
    arm_settings,
    pose_targets,
)

QUATERNION_KEY = "robot0_eef_quat"
SUCCESS_REWARD = 1.0


class RobomimicFile(Hdf5Reader):
    """One robomimic file; a `FileReader`.

    Tasks come from the attribute `task` of a demonstration, else from `env_name`; labels from
    `--label`, the attributes `operator` or `label`, else masks; success from the attribute
    `success`, else (robosuite) from a reward of 1.
    """

    generic = False

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a file is recognized as robomimic's, or ""."""
        demos = [name for name in contents.children("data") if f"data/{name}" in contents.groups]
        found = [f"data/{name}/actions" for name in demos]
        return next((key for key in found if key in contents.arrays), "")

    def _scan(self, config: IngestConfig) -> None:
        path = self.path
        data = self._file.get("data")
        if not isinstance(data, h5py.Group):
            raise DataError(f"{path}: data: is missing; a robomimic file has data/demo_0 and so on")
        demos = sorted(
            (name for name in data if isinstance(data[name], h5py.Group)), key=numeric_order
        )
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
                self._scan_demo(demo, sizes),
                text_of(demo.attrs.get("task", task)),
                config.label or _own_label(demo) or labels.get(name, ""),
                splits.get(name, ""),
                _seed(demo),
            )
            for name, demo in ((name, data[name]) for name in names)
        ]
        self.spec = self._make_spec(observations, sizes["actions"])

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
        place = demo.name.strip("/")
        steps = self._shape_of(f"{place}/actions")[0]
        if steps == 0:
            raise DataError(f"{location(demo, 'actions')}: has no rows")
        for name, size in sizes.items():
            found = self._shape_of(f"{place}/{name}", rows=steps)[1]
            check_components(found, size, f"{self.path}: {place}/{name}")
        for name in ("rewards", "dones", "states"):
            if self._holds(f"{place}/{name}"):
                self._shape_of(f"{place}/{name}", ranks=(1, 2), rows=steps)
        declared = demo.attrs.get("num_samples", steps)
        if declared != steps:
            where = location(demo, "attrs[num_samples]")
            raise DataError(f"{where}: is {declared}, actions have {steps} rows")
        if self._targets is not None:
            self._targets.check(demo)
        return steps

    def _make_spec(self, observations: tuple[ObservationSpec, ...], action_size: int) -> SourceSpec:
        tasks = tuple(dict.fromkeys(item.task for item in self.episodes))
        labels = {item.label for item in self.episodes} - {""}
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
        return SourceSpec(
            observations=observations,
            action=action,
            env=EnvSpec(self._adapter, tasks, settings, limit),
            labels=(),
            source_format="robomimic",
        )

    def read(self, index: int) -> Episode:
        """Load one demonstration.

        Raises:
            DataError: NaN or infinity, or an `object` that is neither of the two known ones.
        """
        outline = self.episodes[index]
        demo = self._file["data"][outline.source]
        place = f"data/{outline.source}"
        keys = [item.name for item in self.spec.observations]
        observations = {key: self._read_rows(f"{place}/obs/{key}") for key in keys}
        final = self._final_observation(place, observations, outline.length)
        self._normalize_object(place, observations, final)
        rewards = None
        if self._has_rewards:
            rewards = self._read_rows(f"{place}/rewards").reshape(-1)
        actions = self._read_rows(f"{place}/actions")
        if self._targets is not None:
            actions = self._targets.convert(demo, actions)
        success = None
        if "success" in demo.attrs:
            success = bool(demo.attrs["success"])
        elif self._adapter == "robosuite" and rewards is not None:
            success = bool((rewards >= SUCCESS_REWARD).any())
        return Episode(
            source=outline.source,
            observations=observations,
            actions=actions,
            rewards=rewards,
            final_observation=final,
            initial_state=self._initial_state(place),
            model=text_of(demo.attrs.get("model_file", "")) or self._shared_model,
            success=success,
        )

    def _final_observation(
        self, place: str, observations: Mapping[str, FloatArray], steps: int
    ) -> dict[str, FloatArray] | None:
        """Return the observation after the last action, where every key has one."""
        if not all(self._holds(f"{place}/next_obs/{key}") for key in observations):
            return None
        final: dict[str, FloatArray] = {}
        for key, values in observations.items():
            name = f"{place}/next_obs/{key}"
            size = self._shape_of(name, rows=steps)[1]
            check_components(size, values.shape[1], f"{self.path}: {name}")
            final[key] = self._read_rows(name, steps - 1, steps)[0]
        return final

    def _normalize_object(
        self,
        place: str,
        observations: dict[str, FloatArray],
        final: dict[str, FloatArray] | None,
    ) -> None:
        values = observations.get("object")
        if values is None or not self._object.applies(values.shape[1]):
            return
        # The end effector's pose, whether it is stored or not.
        names = [f"{place}/obs/{key}" for key in (POSITION_KEY, QUATERNION_KEY)]
        for name in filter(self._holds, names):
            self._shape_of(name, rows=len(values))
        position, quaternion = (
            self._read_rows(name) if self._holds(name) else None for name in names
        )
        where = f"{self.path}: {place}/obs/object"
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

    def _initial_state(self, place: str) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """Return the first simulator state: `states[0]`, or lwdctl's own `initial_state`."""
        for name, rank, last in (("states", 2, 1), ("initial_state", 1, None)):
            key = f"{place}/{name}"
            if not self._holds(key):
                continue
            self._shape_of(key, ranks=(rank,))
            state = self._read_values(key, 0, last).astype(np.float64).reshape(-1)
            if not np.isfinite(state).all():
                raise DataError(f"{self.path}: {key}, row 0: is not finite")
            return state
        return None


def _own_label(demo: h5py.Group) -> str:
    """Return the behavior label that a demonstration's attributes give, or ""."""
    attributes = demo.attrs
    return text_of(attributes.get("operator", attributes.get("label", "")))


def _seed(demo: h5py.Group) -> int | None:
    if "seed" not in demo.attrs:
        return None
    try:
        return int(demo.attrs["seed"])
    except (TypeError, ValueError):
        raise DataError(f"{location(demo, 'attrs[seed]')}: is not an integer") from None


class Masks:
    """The masks of one file.

    Args:
        file: The open file; it may have no masks.
        demos: Names of its demonstrations.

    Raises:
        DataError: A mask is not a list of names, or names a missing demonstration.
    """

    def __init__(self, file: h5py.File, demos: Sequence[str]) -> None:
        self._file, self._demos = file, demos
        self._members: dict[str, frozenset[str]] = {}
        group = file.get("mask", {})
        if isinstance(group, h5py.Dataset):
            raise DataError(f"{location(group)}: is not a group")
        known = set(demos)
        for name in group:
            dataset = dataset_at(group, name)
            if dataset.dtype.kind not in "SO" or len(dataset.shape or ()) != 1:
                raise DataError(f"{location(dataset)}: is not a list of names")
            members = [text_of(item) for item in read_array(dataset)]
            for row, member in enumerate(members):
                if member not in known:
                    raise DataError(f"{location(dataset)}, row {row}: no demonstration '{member}'")
            self._members[name] = frozenset(members)

    def select(self, filter_key: str) -> list[str]:
        """Return the demonstrations of the subset `filter_key`, or all of them for "".

        Raises:
            DataError: No such subset.
        """
        if not filter_key:
            return list(self._demos)
        if filter_key not in self._members:
            hint = did_you_mean(filter_key, self._members) or "the file has no masks"
            raise DataError(f"{location(self._file, f'mask/{filter_key}')}: is missing", hint)
        return [demo for demo in self._demos if demo in self._members[filter_key]]

    def labels(self) -> dict[str, str]:
        """Return the behavior label of each demonstration that has one.

        Labels are the masks named after operators, else `better`, `okay` and `worse`. If
        several hold a demonstration, the smallest (finest) one counts.
        """
        base = [name for name in self._members if not name.endswith(("_train", "_valid"))]
        names = [name for name in base if "operator" in name]
        names = names or [name for name in LEVELS if name in base]
        result: dict[str, str] = {}
        for name in sorted(names, key=lambda name: (-len(self._members[name]), name)):
            result.update(dict.fromkeys(self._members[name], name))
        return result

    def splits(self, filter_key: str) -> dict[str, str]:
        """Return `"train"` or `"validation"` for each demonstration that the masks assign.

        A subset's own split (`NAME_train`, `NAME_valid`) takes precedence over the file's.

        Raises:
            DataError: A demonstration is in both.
        """
        own = f"{filter_key}_train" in self._members and f"{filter_key}_valid" in self._members
        prefix = f"{filter_key}_" if filter_key and own else ""
        train = self._members.get(f"{prefix}train", frozenset())
        valid = self._members.get(f"{prefix}valid", frozenset())
        both = sorted(train & valid)
        if both:
            where = location(self._file, f"mask/{prefix}valid")
            raise DataError(f"{where}: holds {both[0]}, which mask/{prefix}train holds as well")
        return {**dict.fromkeys(train, "train"), **dict.fromkeys(valid, "validation")}


def read_env_args(data: h5py.Group) -> dict[str, Any]:
    """Return `env_args` as written, or {} when the file has none.

    Raises:
        DataError: Not a JSON object.
    """
    if "env_args" not in data.attrs:
        return {}
    where = f"{location(data)}.attrs[env_args]"
    try:
        values = json.loads(text_of(data.attrs["env_args"]))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is not JSON ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("env_kwargs", {}), dict):
        raise DataError(f"{where}: is not a JSON object")
    return values


def adapter_of(env_args: Mapping[str, Any]) -> str:
    """Return the environment table's row: robosuite for robomimic's type 1, or a name as written.

    Code to import (`package.module:Class`) is named by the user with `--env`, never by a file.
    """
    written = env_args.get("type")
    if isinstance(written, str):
        return "" if is_import_path(written) else written
    return "robosuite" if written == 1 else ""


def max_steps_of(
    adapter: str, task: str, env_args: Mapping[str, Any], *, several_operators: bool
) -> int:
    """Return the episode limit with which results on this data are reported, or 0 if unknown."""
    if adapter == "robosuite":
        return ROBOSUITE_MAX_STEPS.get(task, ROBOSUITE_DEFAULT_MAX_STEPS)[several_operators]
    if adapter != "metaworld":
        return 0
    return int(env_args.get("env_kwargs", {}).get("max_steps", METAWORLD_MAX_STEPS))


def action_spec(adapter: str, env_args: Mapping[str, Any], size: int, where: str) -> ActionSpec:
    """Describe the recorded actions.

    Raises:
        DataError: Controller settings that are not the objects robosuite writes.
    """
    if adapter == "robosuite":
        rate = robosuite_control_rate(env_args.get("env_kwargs", {}))
        return robosuite_action(arm_settings(env_args, where) or {}, size, rate)
    low, high = (-1.0,) * size, (1.0,) * size
    if adapter == "metaworld":
        gripper = (size - 1,)
        return ActionSpec(
            size, "delta", "normalized", low, high, METAWORLD_CONTROL_RATE, gripper=gripper
        )
    return ActionSpec(size, "absolute", "unknown", low, high)
