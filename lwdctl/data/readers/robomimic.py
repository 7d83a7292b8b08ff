"""Reader of robomimic's HDF5 layout (versions 1.2 to 1.5 of `env_args`) and of its relatives.

Isaac Lab (Mimic), LIBERO, RoboCasa, MimicGen, DexMimicGen, EgoMimic and robosuite's own recordings
share the layout `data/demo_0/actions`. None of them is needed. robosuite's `object` observation is
converted to one convention (`data.readers.robosuite_object`); `env_args` are kept as written in
`EnvSpec.settings["env_args"]`, but for controllers whose recorded actions are declared to be
targets.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.plain_text import listed
from lwdctl.core.records import EnvSpec, Episode, Finding, FloatArray, ObservationSpec, SourceSpec
from lwdctl.data.checks import (
    NonFiniteError,
    check_components,
    check_rows,
    numeric_order,
    without_number,
)
from lwdctl.data.files.contents import Contents
from lwdctl.data.files.hdf5 import Hdf5Reader, attribute_of, dataset_at, location, text_attribute
from lwdctl.data.named_environments import requested_env
from lwdctl.data.reader import EPISODE_OPTIONS, EpisodeOutline, check_unused
from lwdctl.data.readers.robomimic_env import (
    ACTIONS,
    RecordedActions,
    adapter_of,
    describe_actions,
    max_steps_of,
    read_env_args,
)
from lwdctl.data.readers.robomimic_keys import (
    INSTRUCTIONS,
    OBS,
    ROWS,
    Layout,
    choose_action_key,
    choose_keys,
    find_text,
    findings_of,
    flag_of,
    is_action,
    is_vector,
    layout_of,
    name_of,
    odd_findings,
    required_texts,
    whole_number_of,
)
from lwdctl.data.readers.robomimic_masks import SHOWN, Masks
from lwdctl.data.readers.robosuite_object import (
    BODY_KEY,
    CONVENTION,
    POSITION_KEY,
    ObjectConvention,
)
from lwdctl.data.readers.robosuite_replay import StateReplay, commands_for

if TYPE_CHECKING:
    from lwdctl.data.readers.robosuite_poses import PoseTargets

SUCCESS_REWARD = 1.0


class RobomimicFile(Hdf5Reader):
    """One file of robomimic's layout; a `FileReader`.

    Tasks come from `--task-from`, the attribute `task` of a demonstration, the name in `--env`, an
    instruction (RoboCasa's `ep_meta.lang`, LIBERO's `problem_info.language_instruction`), else from
    `env_name`; labels from `--label`, `--label-from`, the attributes `operator` or `label`, else
    masks; success from the attribute `success`, else (robosuite) from a reward of 1.
    """

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a file is recognized as robomimic's, or ""."""
        for name in contents.children("data"):
            demo = f"data/{name}"
            keys = [key for key in contents.children(demo) if is_action(key)]
            if f"{demo}/{ACTIONS}" in contents.arrays:
                return f"{demo}/{ACTIONS}"
            if keys and contents.has(f"{demo}/{OBS}"):
                return f"{demo}/{keys[0]}"
        return ""

    def _scan(self, config: IngestConfig) -> None:
        check_unused(config, self.path, "a robomimic file", "terminals", *EPISODE_OPTIONS)
        data = self._file.get("data")
        if not isinstance(data, h5py.Group):
            raise DataError(
                f"{self.path}: data: is missing; a robomimic file has data/demo_0 and so on"
            )
        self._data, self._config = data, config
        self._odd: dict[str, list[str]] = {}
        self._reshaped: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        self._replay: StateReplay | None = None
        described = read_env_args(data, config)
        self.findings += described.findings
        self._env_args = described.env_args
        adapter, task = requested_env(config)
        self._adapter = adapter or adapter_of(described.env_args)
        self._task = task or str(described.env_args.get("env_name") or "").rpartition("/")[2]
        self._object_converted = False
        self._object = ObjectConvention(self._task, str(described.env_args.get("env_version", "")))
        names, masks = self._select()
        first = self._demos[names[0]]
        self._observed = self._choose_observations(first, names)
        actions = self._describe_actions(first, described.env_args)
        for name in names:
            self._check_demo(name)
        self._without_rewards = self._check_rewards(names)
        self.episodes = self._outlines(names, masks)
        self.findings += odd_findings(self._odd, self._reshaped, f"{self.path}: data")
        self.findings += masks.findings
        self.spec = self._make_spec(actions)

    def _select(self) -> tuple[list[str], Masks]:
        """Find the demonstrations that are read, with at least one step each, and their lengths."""
        self._demos = {
            name: item for name, item in self._data.items() if isinstance(item, h5py.Group)
        }
        groups = sorted(self._demos, key=numeric_order)
        if not groups:
            raise DataError(f"{self.path}: data: holds no demonstrations")
        likely = (name for name in groups if any(map(is_action, self._demos[name])))
        example = next(likely, groups[0])
        where = location(self._demos[example])
        self._key = choose_action_key(layout_of(self._demos[example]), self._config, where)
        masks = Masks(self._file, groups)
        stem = without_number(example)
        self._lengths: dict[str, int] = {}
        for name in masks.select(self._config.filter_key or ""):
            key = f"data/{name}/{self._key}"
            if self._holds(key):
                self._lengths[name] = self._shape_of(key)[0]
            elif without_number(name) == stem and len(self._demos[name]):
                raise DataError(f"{self.path}: {key}: is missing")
            else:
                self._note("no actions", name)
        empty = [name for name, steps in self._lengths.items() if not steps]
        for name in empty:
            self._note("empty", name)
        names = [name for name in self._lengths if name not in set(empty)]
        if not names:
            place = f"{empty[0]}/{self._key}: has no rows" if empty else "holds no demonstrations"
            raise DataError(f"{self.path}: data{'/' if empty else ': '}{place}")
        return names, masks

    def _choose_observations(
        self, first: h5py.Group, names: Sequence[str]
    ) -> tuple[ObservationSpec, ...]:
        layout, where = layout_of(first), location(first, OBS)
        if self._replays(names[0]):
            layout = self._start_replay(layout, where)
        else:
            layout = self._without_constants(layout, names)
        partly = {} if self._replay else self._keys_of_some(layout, names)
        chosen = choose_keys(layout, self._adapter, partly, self._config, where)
        self._paths = {item.name: layout.paths[item.name] for item in chosen}
        self.findings += findings_of(layout, chosen, self._key, partly, first)
        return chosen

    def _without_constants(self, layout: Layout, names: Sequence[str]) -> Layout:
        """Set keys aside that have one row per action in no demonstration (a camera's matrix)."""
        reasons: dict[str, str] = {}
        for name, path in layout.paths.items():
            shapes = [self._numbers_at(f"data/{demo}/{path}") for demo in names]
            fits = (
                shape and shape[0] in (self._lengths[demo], self._lengths[demo] + 1)
                for demo, shape in zip(names, shapes, strict=True)
            )
            if not any(fits):
                reasons[name] = f"has {shapes[0][0]} {ROWS} {self._lengths[names[0]]} actions"
        beside = {name: layout.paths[name] for name in layout.beside if name in reasons}
        return replace(
            layout,
            paths={name: path for name, path in layout.paths.items() if name not in reasons},
            beside=tuple(name for name in layout.beside if name not in beside),
            unusable={
                **layout.unusable,
                **{name: reason for name, reason in reasons.items() if name not in beside},
            },
            others=(*layout.others, *beside.values()),
        )

    def _replays(self, name: str) -> bool:
        """Return whether observations are computed from states: a recording of robosuite."""
        place = f"data/{name}"
        if self._holds(f"{place}/{OBS}") or self._adapter != "robosuite":
            return False
        return self._has_states(place, self._lengths[name])

    def _start_replay(self, layout: Layout, where: str) -> Layout:
        """Build the environment that replays states; return a layout with what it shows."""
        hint = commands_for(self.path, converted="env_args" in self._data.attrs)
        self._replay = StateReplay(self._env_args, where, hint)
        message = f"observations are computed from the states by robosuite {self._replay.version}"
        self.findings.append(Finding("adjusted", "note", message, where))
        sizes = self._replay.sizes
        return replace(layout, paths=dict(zip(sizes, sizes, strict=True)), sizes=sizes, beside=())

    def _keys_of_some(self, layout: Layout, names: Sequence[str]) -> dict[str, int]:
        """Return the observations that only some demonstrations have, and how many have them."""
        counts: Counter[str] = Counter()
        known = set(layout.paths) | set(layout.unusable)
        wanted = set(names)
        for path in self._stored:
            top, _, rest = path.partition("/")
            demo, _, inner = rest.partition("/")
            if top == "data" and inner.startswith(f"{OBS}/") and demo in wanted:
                name = name_of(inner)
                if name not in known:
                    counts[name] += 1
        inside = {name: path for name, path in layout.paths.items() if name not in layout.beside}
        lacking: dict[str, str] = {}
        for name, path in inside.items():
            without = [demo for demo in names if not self._holds(f"data/{demo}/{path}")]
            if without:
                counts[name] = len(names) - len(without)
                lacking[name] = f"data/{without[0]}/{path}"
        if inside and len(lacking) == len(inside) and not self._config.observation_keys:
            raise DataError(f"{self.path}: {next(iter(lacking.values()))}: is missing")
        return dict(counts)

    def _describe_actions(self, first: h5py.Group, env_args: dict[str, Any]) -> RecordedActions:
        key = location(first, self._key)
        shape = tuple(dataset_at(first, self._key).shape)
        self._chunked = not is_vector(shape)
        if self._chunked and not self._config.action_key:
            raise DataError(
                f"{key}: has shape {shape}, several actions per step",
                f"--action-key {shlex.quote(self._key)} reads the first action of each step",
            )
        if self._chunked:
            message = f"the first of the {shape[1]} actions that every step holds is stored"
            self.findings.append(Finding("adjusted", "warning", message, key))
        self._action_size = self._size_of(shape)
        kind = dataset_at(first, self._key).dtype.kind
        if self._action_size == 1 and kind in "iub":
            raise DataError(f"{key}: holds one integer per step: discrete actions, not numbers")
        if kind in "iub":
            message = "whole numbers are stored as if they were continuous"
            self.findings.append(Finding("discrete", "warning", message, key))
        where = f"{self.path}: data.attrs[env_args]"
        actions = describe_actions(
            self._adapter, env_args, self._key, self._action_size, self._config, where
        )
        self.findings += actions.findings
        self._targets: PoseTargets | None = None
        if self._config.actions == "absolute" and self._adapter == "robosuite":
            # It imports scipy, which takes a while.
            from lwdctl.data.readers.robosuite_poses import pose_targets

            self._targets = pose_targets(self._data, first, actions.env_args, self._action_size)
        return actions

    def _size_of(self, shape: Sequence[int]) -> int:
        return shape[-1] if self._chunked else math.prod(shape[1:])

    def _check_demo(self, name: str) -> None:
        """Check one demonstration's shapes against each other and the first one's."""
        place, steps = f"data/{name}", self._lengths[name]
        key = f"{place}/{self._key}"
        shape = self._shape_of(key)
        if self._chunked == is_vector(shape):
            raise DataError(
                f"{self.path}: {key}: has shape {shape}: only some demonstrations hold several"
                " actions per step"
            )
        check_components(self._size_of(shape), self._action_size, f"{self.path}: {key}")
        if len(shape) != 2 and not self._chunked:
            self._reshaped.setdefault(self._key, []).append((name, shape))
        if self._replay and not self._has_states(place, steps):
            raise DataError(f"{self.path}: {place}/states: is not one row per action")
        longer = 0
        for item in () if self._replay else self._observed:
            key = f"{place}/{self._paths[item.name]}"
            shape, hint = self._shape_of(key), f"--drop {shlex.quote(item.name)}"
            if shape[0] != steps + 1:  # with one row more, the last is the final observation
                check_rows(shape[0], steps, f"{self.path}: {key}", self._key, hint)
            longer += shape[0] > steps
            check_components(math.prod(shape[1:]), item.size, f"{self.path}: {key}", hint)
            if len(shape) != 2:
                self._reshaped.setdefault(item.name, []).append((name, shape))
        if longer:
            self._note("final" if longer == len(self._observed) else "some final", name)
        demo = self._demos[name]
        declared = attribute_of(demo, "num_samples")
        if declared is not None and not np.array_equal(declared, steps):
            self._note("num_samples", f"{name} ({declared} for {steps} rows)")
        success = attribute_of(demo, "success")
        if success is not None and not (flag := flag_of(success)):
            self._note("success" if flag is None else "failed", name)
        if self._holds(f"{place}/states") and not self._has_states(place, steps):
            self._note("states", name)
        if self._targets is not None:
            self._targets.check(demo, steps)

    def _has_states(self, place: str, steps: int) -> bool:
        """Return whether the first row of `states` is the state at the first action."""
        shape = self._numbers_at(f"{place}/states")
        return len(shape) == 2 and shape[0] in (steps, steps + 1)

    def _note(self, what: str, place: str) -> None:
        self._odd.setdefault(what, []).append(place)

    def _check_rewards(self, names: Sequence[str]) -> Collection[str]:
        """Return the demonstrations without rewards; cloning needs none."""
        problems = {name: self._problem_of_rewards(name) for name in names}
        problems = {name: problem for name, problem in problems.items() if problem}
        if not problems:
            return ()
        none_at_all = not any(self._holds(f"data/{name}/rewards") for name in names)
        shown = listed([f"{name} {problem}" for name, problem in problems.items()], SHOWN)
        if none_at_all:
            self._report("rewards", "data", "no demonstration has rewards")
        else:
            message = (
                f"rewards of {len(problems)} of {len(names)} demonstrations cannot be used, so that"
                f" none are stored: {shown}"
            )
            self._report("rewards", "data", message, "warning")
        return problems.keys()

    def _problem_of_rewards(self, name: str) -> str:
        key, steps = f"data/{name}/rewards", self._lengths[name]
        if not self._holds(key):
            return "has none"
        shape = self._numbers_at(key)
        if not shape or math.prod(shape) != steps:
            return f"has rewards of shape {shape} for {steps} actions"
        try:
            self._read_rows(key)
        except NonFiniteError as error:
            return f"has NaN or infinity ({error.message.rpartition('rewards, ')[2]})"
        return ""

    def _outlines(self, names: Sequence[str], masks: Masks) -> list[EpisodeOutline]:
        tasks, labels = self._tasks(names), self._labels(names, masks)
        splits = masks.splits(self._config.filter_key or "")
        return [
            EpisodeOutline(
                name, self._lengths[name], tasks[name], labels[name], splits.get(name, ""),
                self._seed(name),
            )
            for name in names
        ]  # fmt: skip

    def _tasks(self, names: Sequence[str]) -> dict[str, str]:
        """Return the task of every demonstration."""
        demos = [self._demos[name] for name in names]
        if self._config.task_from:
            found = required_texts(demos, self._config.task_from, "--task-from")
        else:
            found = [text_attribute(demo, "task") for demo in demos]
            instruction = next((item for item in INSTRUCTIONS if find_text(demos[0], item)), "")
            if instruction and not any(found) and not requested_env(self._config)[1]:
                found = [find_text(demo, instruction) for demo in demos]
        told = {text for text in found if text}
        for name, text in zip(names, found, strict=True):
            if told and not text:
                self._note("task", name)
        return {name: text or self._task for name, text in zip(names, found, strict=True)}

    def _labels(self, names: Sequence[str], masks: Masks) -> dict[str, str]:
        """Return the behavior label of every demonstration, "" for none."""
        if self._config.label is not None:
            return dict.fromkeys(names, self._config.label)
        demos = [self._demos[name] for name in names]
        if self._config.label_from:
            texts = required_texts(demos, self._config.label_from, "--label-from")
            found = {name: text or "" for name, text in zip(names, texts, strict=True)}
        else:
            of_masks = masks.labels()
            found = {
                name: text_attribute(demo, "operator", "label") or of_masks.get(name, "")
                for name, demo in zip(names, demos, strict=True)
            }
        for name, text in found.items():
            if not text and any(found.values()):
                self._note("label", name)
        return found

    def _seed(self, name: str) -> int | None:
        value = attribute_of(self._demos[name], "seed")
        seed = whole_number_of(value)
        if seed is None and value is not None:
            self._note("seed", name)
        return seed

    def _make_spec(self, actions: RecordedActions) -> SourceSpec:
        tasks = tuple(dict.fromkeys(item.task for item in self.episodes if item.task))
        labels = {item.label for item in self.episodes} - {""}
        settings: dict[str, Any] = {"env_args": actions.env_args} if actions.env_args else {}
        if any(
            item.name == "object" and self._object.applies(item.size) for item in self._observed
        ):
            settings["object_convention"] = CONVENTION
        action = actions.spec
        if self._targets is not None:
            action = self._targets.spec
            settings["actions"] = action.semantics
        limit = self._config.max_steps or max(
            max_steps_of(self._adapter, task, actions.env_args, several_operators=len(labels) > 1)
            for task in {*tasks, self._task}
        )
        return SourceSpec(
            observations=self._observed,
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
        demo = self._demos[outline.source]
        place, steps = f"data/{outline.source}", outline.length
        observations, final = self._observations(place, steps)
        self._normalize_object(place, observations, final)
        rewards = self._rewards(outline.source)
        actions = self._read_rows(f"{place}/{self._key}")
        actions = actions[:, 0] if self._chunked else actions.reshape(steps, -1)
        if self._targets is not None:
            actions = self._targets.convert(demo, actions)
        return Episode(
            source=outline.source,
            observations=observations,
            actions=np.ascontiguousarray(actions),
            rewards=None if self._without_rewards else rewards,
            final_observation=final,
            initial_state=self._initial_state(place, steps),
            model=self._model_of(demo),
            success=self._success(demo, rewards),
        )

    def succeeded(self, index: int) -> bool | None:
        """Return whether a demonstration solved its task, None where the file does not say."""
        name = self.episodes[index].source
        return self._success(self._demos[name], self._rewards(name))

    def _success(self, demo: h5py.Group, rewards: FloatArray | None) -> bool | None:
        success = flag_of(attribute_of(demo, "success"))
        if success is None and self._adapter == "robosuite" and rewards is not None:
            success = bool((rewards >= SUCCESS_REWARD).any())
        return success

    def _rewards(self, name: str) -> FloatArray | None:
        if name in self._without_rewards:
            return None
        return self._read_rows(f"data/{name}/rewards").reshape(-1)

    def _observations(
        self, place: str, steps: int
    ) -> tuple[dict[str, FloatArray], dict[str, FloatArray] | None]:
        """Return the observations at every action, and the one after the last, if there is one."""
        if self._replay:
            rows = self._replayed(place)
        else:
            rows = {}
            for item in self._observed:
                values = self._read_rows(f"{place}/{self._paths[item.name]}")
                rows[item.name] = values.reshape(len(values), item.size)
        seen = {name: values[:steps] for name, values in rows.items()}
        if all(len(values) > steps for values in rows.values()):
            return seen, {name: values[steps] for name, values in rows.items()}
        return seen, self._final_observation(place, steps)

    def _replayed(self, place: str) -> dict[str, FloatArray]:
        """Return the observations of all recorded states of a demonstration."""
        assert self._replay is not None
        model = self._model_of(self._file[place])
        states = self._read_values(f"{place}/states").astype(np.float64)
        rows = self._replay.observations(states, model, f"{self.path}: {place}")
        return {item.name: rows[item.name] for item in self._observed}

    def _final_observation(self, place: str, steps: int) -> dict[str, FloatArray] | None:
        """Return the last row of `next_obs`, where every key has one."""
        final: dict[str, FloatArray] = {}
        for item in self._observed:
            key = f"{place}/next_{self._paths[item.name]}"
            shape = self._numbers_at(key)
            if not shape or shape[0] != steps or math.prod(shape[1:]) != item.size:
                return None
            final[item.name] = self._read_rows(key, steps - 1, steps).reshape(item.size)
        return final

    def _normalize_object(
        self,
        place: str,
        observations: dict[str, FloatArray],
        final: dict[str, FloatArray] | None,
    ) -> None:
        values = observations.get("object")
        if values is None or self._replay or not self._object.applies(values.shape[1]):
            return
        # The end effector's pose, whether it is stored or not.
        names = [f"{place}/{OBS}/{key}" for key in (POSITION_KEY, BODY_KEY)]
        position, quaternion = (
            self._read_rows(name, 0, len(values)).reshape(len(values), -1)
            if self._holds(name)
            else None
            for name in names
        )
        where = f"{self.path}: {place}/{OBS}/object"
        if self._object.is_old(values, position, quaternion, where):
            self._report_conversion()
            observations["object"] = self._object.convert(values)
            if final is not None:
                final["object"] = self._object.convert(final["object"])

    def _report_conversion(self) -> None:
        if not self._object_converted:
            self._object_converted = True
            message = (
                "the observation object of robosuite before 1.5 is stored as 1.5 computes it"
                f" ({self._task})"
            )
            self._report("adjusted", "data", message)

    def _model_of(self, demo: h5py.Group) -> str:
        return text_attribute(demo, "model_file") or self._shared_model

    @cached_property
    def _shared_model(self) -> str:
        """The model of demonstrations that store none: the file's only one, or ""."""
        models = {text_attribute(demo, "model_file") for demo in self._demos.values()}
        models -= {""}
        return models.pop() if len(models) == 1 else ""

    def _initial_state(self, place: str, steps: int) -> npt.NDArray[np.float64] | None:
        """Return the first simulator state: `states[0]`, or lwdctl's own `initial_state`."""
        if self._has_states(place, steps):
            key, last = f"{place}/states", 1
        else:
            key, last = f"{place}/initial_state", None
            if len(self._numbers_at(key)) != 1:
                return None
        state = self._read_values(key, 0, last).astype(np.float64).reshape(-1)
        if not np.isfinite(state).all():
            raise DataError(f"{self.path}: {key}, row 0: is not finite")
        return state

    def close(self) -> None:
        """Close the file, and the environment that replayed its states."""
        super().close()
        if self._replay:
            self._replay.close()
