"""Reader of Minari datasets, in HDF5, arrow or parquet; minari itself is not needed.

A dataset is a directory with `data/metadata.json` and `data/main_data.hdf5`, or a folder of arrow
or parquet files per episode; an HDF5 file alone is enough. Episodes are read in numeric order;
each holds one more observation than actions, and the last one becomes the final observation.
Dictionary observations are flattened, nested names joined by a dot.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, Episode, FloatArray, SourceSpec
from lwdctl.core.simulator_facts import OBSERVATION, GymEnvironment
from lwdctl.data.checks import (
    NonFiniteError,
    ReportsFindings,
    check_components,
    closed_on_error,
    finite_rows,
)
from lwdctl.data.files.contents import ArrayEntry, Contents
from lwdctl.data.named_environments import gym_action
from lwdctl.data.reader import EPISODE_OPTIONS, EpisodeOutline, check_no_subset, check_unused
from lwdctl.data.readers.flags import Rows, evenly
from lwdctl.data.readers.gym_envs import (
    SAMPLE,
    GymSource,
    check_continuous,
    check_known,
    describe_env,
    named_label,
    value_text,
    with_texts,
)
from lwdctl.data.readers.minari_observations import GROUP, find_observations
from lwdctl.data.readers.minari_spaces import json_object, kind_of, limits_of, part_of
from lwdctl.data.readers.minari_storage import FILE_NAME, open_storage
from lwdctl.data.readers.states import States, find_states, is_of_the_episode_before

SUCCESS_KEYS = ("infos/success", "infos/is_success")
_GOALS = ("desired_goal", "goal")
_ARROW_FILE = re.compile(r"(data/)?\d+/[^/]+\.(arrow|parquet)")


class MinariFile(ReportsFindings):
    """One Minari dataset; a `FileReader`.

    The environment comes from `--env` or the metadata's `env_spec`; the behavior label from
    `--label`, `--label-from` or the level in the dataset's name.

    The path is the dataset's directory, its `data` directory, or the HDF5 file.

    Raises:
        DataError: The structure is not Minari's; the message names file and key.
        MissingExtraError: It is made of arrow or parquet files, and pyarrow is not installed.
    """

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a file or directory is recognized as Minari's, or ""."""
        if contents.container == "directory":
            names = {f"data/{FILE_NAME}", FILE_NAME}
            described = {"data/metadata.json", "metadata.json"} & {*contents.files}
            for name in contents.files:
                if name in names or (described and _ARROW_FILE.fullmatch(name)):
                    return name
            return ""
        found = [name for name in contents.children() if name.startswith("episode_")]
        for name in found:
            if contents.has(f"{name}/actions") and contents.has(f"{name}/{GROUP}"):
                return f"{name}/actions"
        return ""

    def __init__(self, path: Path, config: IngestConfig) -> None:
        what = "a Minari dataset"
        check_no_subset(config, path, what)
        check_unused(config, path, what, *EPISODE_OPTIONS, "terminals")
        self.findings = []
        self._storage = open_storage(path, config.max_bytes)
        self.path = self._storage.path
        with closed_on_error(self._storage):
            self._scan(config)

    def _scan(self, config: IngestConfig) -> None:
        metadata = self._storage.metadata
        self._used: set[str] = set(SUCCESS_KEYS)
        self._steps = self._find_steps(config)
        self._names = list(self._steps)
        self._observations = find_observations(self._storage, self._steps, config)
        self.findings += self._observations.findings
        recorded = json_object(metadata.get("env_spec"))
        source = GymSource(
            str(recorded.get("id", "")),
            sum(item.size for item in self._observations.specs),
            self._action_size,
            self.path,
            sample=self._sample,
        )
        known, env = describe_env(config, source, self.findings)
        self._has_rewards = self._check_rewards()
        self._check_metadata()
        self._find_states(known)
        self._stale = self._find_stale_goals()
        self.episodes, tasks = self._outlines(config, env.tasks)
        # What the dataset records takes precedence.
        settings = {
            **env.settings,
            **({"env_spec": recorded} if recorded else {}),
            **self._states(self._names[0]).layout,
        }
        limit = recorded.get("max_episode_steps")
        steps = limit if isinstance(limit, int) and limit > 0 else env.max_steps
        self.spec = SourceSpec(
            observations=self._observations.specs,
            action=self._describe_action(known),
            env=replace(env, settings=settings, max_steps=config.max_steps or steps, tasks=tasks),
            labels=(),
            source_format="minari",
        )
        self._list_left_out()

    def _find_steps(self, config: IngestConfig) -> dict[str, int]:
        """Return the number of steps of every episode that has any."""
        if not self._storage.names:
            raise DataError(f"{self.path}: episode_0: is missing; the file holds no episodes")
        first = self._storage.names[0]
        entries = self._storage.arrays(first)
        self._action_key = self._choose_action(config, entries, self._storage.where(first))
        self._check_continuous(entries[self._action_key], first)
        steps: dict[str, int] = {}
        empty: list[str] = []
        for name in self._storage.names:
            shape = self._shape(name, self._action_key)
            width = math.prod(shape[1:])
            where = self._storage.where(name, self._action_key)
            if not shape[0]:
                empty.append(name)
                continue
            if not steps:
                self._action_size = width
            check_components(width, self._action_size, where)
            steps[name] = shape[0]
        if not steps:
            raise DataError(f"{self._storage.where(first, 'actions')}: has no rows")
        if empty:
            message = f"{len(empty)} episodes have no steps ({empty[0]} is the first)"
            self._report("left-out", empty[0], message, episodes=empty[:10])
        return steps

    def _choose_action(
        self, config: IngestConfig, entries: Mapping[str, ArrayEntry], where: str
    ) -> str:
        """Return the path of the action array below an episode."""
        if config.action_key:
            numeric = [key for key, entry in entries.items() if entry.is_numeric]
            return check_known(config.action_key, numeric, "--action-key", self.path)
        if "actions" in entries:
            return "actions"
        parts = [key for key in entries if key.startswith("actions/")]
        if not parts:
            raise DataError(f"{where}/actions: is missing")
        usable = [key for key in parts if entries[key].dtype.startswith("float")]
        raise DataError(
            f"{where}/actions: is a group of {len(parts)} arrays, not one array",
            f"--action-key {shlex.quote(usable[0])}" if usable else "",
        )

    def _check_continuous(self, entry: ArrayEntry, name: str) -> None:
        """Check that the action space, or else the array, is continuous."""
        where = self._storage.where(name, self._action_key)
        top, _, rest = self._action_key.partition("/")
        declared = json_object(self._storage.metadata.get("action_space"))
        space = part_of(declared, rest) if top == "actions" else {}
        if kind_of(space) not in ("", "Box"):
            choices = space.get("n", space.get("nvec", ""))
            raise DataError(
                f"{where}: are discrete (the action space is {kind_of(space)}({choices}));"
                " policies have continuous actions"
            )
        if not space and entry.is_numeric:
            check_continuous(np.dtype(entry.dtype), where)
        elif entry.is_numeric and np.dtype(entry.dtype).kind != "f":
            message = f"actions are whole numbers ({entry.dtype}); policies have continuous actions"
            self._report("discrete-actions", self._action_key, message, "warning")
        self._action_space = space

    def _shape(self, name: str, key: str) -> tuple[int, ...]:
        """Return the shape of an array of numbers with at least one axis."""
        shape = self._storage.shapes(name).get(key)
        if shape is None:
            entry = self._storage.arrays(name).get(key)
            problem = "is missing" if entry is None else f"holds {entry.dtype}, not numbers"
            raise DataError(f"{self._storage.where(name, key)}: {problem}")
        if not shape:
            raise DataError(f"{self._storage.where(name, key)}: has no rows")
        return shape

    def _sample(self) -> FloatArray:
        """Return the first rows of the first episodes (time, obs)."""
        rows: list[FloatArray] = []
        for name in self._steps:
            rows.append(self._observed(name, 0, SAMPLE))
            if sum(map(len, rows)) >= SAMPLE:
                break
        return np.concatenate(rows)

    def _observed(self, name: str, start: int, stop: int) -> FloatArray:
        """Return rows of all observations side by side (time, obs), finite or not."""
        try:
            parts = [
                self._storage.read(name, path, start, stop)
                for path in self._observations.paths.values()
            ]
        except NonFiniteError:  # never written, of which `read` tells
            count = len(range(*slice(start, stop).indices(self._steps[name] + 1)))
            size = sum(item.size for item in self._observations.specs)
            return np.full((count, size), np.nan, np.float32)
        with np.errstate(over="ignore"):
            flat = [part.reshape(len(part), -1).astype(np.float32) for part in parts]
        return np.concatenate(flat, axis=1)

    def _check_rewards(self) -> bool:
        """Return whether every step of every episode has a reward; say why not."""
        problems: dict[str, str] = {}
        for name, steps in self._steps.items():
            shape = self._storage.shapes(name).get("rewards")
            if shape is None:
                problems[name] = "are missing"
            elif shape[0] != steps or math.prod(shape) != steps:
                problems[name] = f"have shape {shape}, expected {(steps,)}"
            elif not self._is_finite(name, "rewards"):
                problems[name] = "hold NaN or infinity, or were never written"
        if problems:
            first, problem = next(iter(problems.items()))
            message = (
                f"rewards of {len(problems)} of {len(self._steps)} episodes cannot be used (of"
                f" {first} they {problem}); no episode has rewards"
            )
            self._report("left-out", "rewards", message, episodes=len(problems))
        return not problems

    def _is_finite(self, name: str, key: str) -> bool:
        """Return whether an array was written, and without NaN and infinity."""
        try:
            return bool(np.isfinite(self._storage.read(name, key)).all())
        except NonFiniteError:
            return False

    def _check_metadata(self) -> None:
        """Report metadata and flags that contradict the rows."""
        storage, wrong = self._storage, []
        for name, steps in self._steps.items():
            declared = storage.attributes(name).get("total_steps", steps)
            if not np.array_equal(declared, steps):
                wrong.append(f"{name}: total_steps is {declared}, but there are {steps} actions")
        totals = {"total_episodes": len(storage.names), "total_steps": sum(self._steps.values())}
        for key, found in totals.items():
            declared = storage.metadata.get(key, found)
            if declared != found:
                wrong.append(f"{key} is {declared}, but there are {found}")
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            message = f"the metadata contradict the rows, which count: {'; '.join(wrong[:3])}{more}"
            self._report("metadata", "total_steps", message, "warning", contradictions=len(wrong))
        odd = {
            key: [n for n, steps in self._steps.items() if storage.shapes(n).get(key) != (steps,)]
            for key in ("terminations", "truncations")
        }
        for key, names in odd.items():
            if names:
                message = f"{key} of {len(names)} episodes are missing or of another length"
                self._report("metadata", f"{names[0]}/{key}", f"{message}; they are not needed")

    def _states(self, name: str) -> States:
        """Return the simulator states recorded in an episode."""
        shapes = self._storage.shapes(name)
        states, problem = find_states(
            lambda part: shapes.get(f"infos/{part}"),
            lambda part, start, stop: self._storage.read(name, f"infos/{part}", start, stop),
            self._steps[name] + 1,
            self._known,
        )
        if problem:
            self._state_problems.setdefault(name, problem)
        return replace(states, shift=states.shift + self._moved, verified=self._verified)

    def _find_states(self, known: GymEnvironment | None) -> None:
        """Find out which state belongs to an observation; say what is missing or misplaced."""
        self._known, self._moved, self._verified = known, 0, False
        self._state_problems: dict[str, str] = {}
        where = f"{self.path}: infos"
        short = [name for name in self._steps if self._states(name).shift]
        if short:
            message = (
                f"infos of {len(short)} episodes ({short[0]} is the first) are a row short; they"
                " are aligned from the end, so that the first observation has no state"
            )
            self._report("adjusted", "infos", message, episodes=len(short))
        if self._state_problems:
            name, problem = next(iter(self._state_problems.items()))
            message = (
                f"{len(self._state_problems)} episodes have no initial state ({name}: {problem})"
            )
            self._report("left-out", "infos", message, episodes=len(self._state_problems))
        if [*self._observations.paths] != [OBSERVATION]:
            return
        first = self._names[0]
        states = self._states(first)
        aligned, findings = states.aligned([(0, self._observed(first, 0, SAMPLE))], where)
        self.findings += findings
        self._moved, self._verified = aligned.shift - states.shift, aligned.verified
        if not self._verified:
            return
        wrong = []
        for name in evenly(self._names):
            state = self._states(name).at(0, self._steps[name])
            if state is not None and not self._states(name).belongs(
                state, self._observed(name, 0, 1)[0]
            ):
                wrong.append(name)
        if wrong:
            message = (
                f"the first state of {len(wrong)} episodes ({wrong[0]} is the first) belongs to"
                " another observation; they have no initial state"
            )
            self._report("initial-state", "infos", message, "warning", episodes=len(wrong))

    def _find_stale_goals(self) -> set[str]:
        """Return the goals whose first row is that of the episode before."""
        found: set[str] = set()
        for key, path in self._observations.paths.items():
            if key.rpartition(".")[2] not in _GOALS:
                continue
            names = [name for name in evenly(self._names[1:]) if self._is_stale(name, path)]
            if names:
                found.add(key)
                message = (
                    f"the first row of {len(names)} episodes ({names[0]} is the first) is the goal"
                    " of the episode before; it is replaced by that of the second row"
                )
                self._report("adjusted", path, message, "warning", episodes=len(names))
        return found

    def _is_stale(self, name: str, path: str) -> bool:
        before = self._names[self._names.index(name) - 1]
        rows = self._storage.read(name, path, 0, 3)
        last = self._storage.read(before, path, self._steps[before] - 1)[-1]
        return is_of_the_episode_before(rows) and bool((rows[0] == last).all())

    def _outlines(
        self, config: IngestConfig, tasks: tuple[str, ...]
    ) -> tuple[list[EpisodeOutline], tuple[str, ...]]:
        """Return the outlines of the episodes, and their tasks."""
        recorded = str(self._storage.metadata.get("dataset_id", ""))
        label, findings = named_label(config, recorded, str(self.path), str(self.path))
        self.findings += findings
        outlines = [
            EpisodeOutline(name, steps, seed=_seed(self._storage.attributes(name)))
            for name, steps in self._steps.items()
        ]
        return with_texts(config, outlines, label, tasks, self._column)

    def _column(self, name: str, option: str) -> list[str]:
        """Return an attribute, or the first row of an array, of every episode as text."""
        first = self._names[0]
        attributes = self._storage.attributes(first)
        key = check_known(name, {*attributes, *self._storage.arrays(first)}, option, self.path)
        self._used.add(key)
        found: list[str] = []
        for episode in self._names:
            try:
                if key in attributes:
                    value = self._storage.attributes(episode)[key]
                else:
                    value = self._storage.read(episode, key, 0, 1)
                found.append(value_text(value))
            except (KeyError, ValueError):
                where = self._storage.where(episode, key)
                raise DataError(f"{where}: {option}: is not one value in every episode") from None
        return found

    def _describe_action(self, known: GymEnvironment | None) -> ActionSpec:
        """Return the action of the environment, with the limits that the dataset records."""
        spec = gym_action(known, self._action_size)
        low, high = limits_of(self._action_space, self._action_size)
        return replace(spec, low=low, high=high, limits="file") if low else spec

    def _list_left_out(self) -> None:
        """Say which arrays of the episodes are not read."""
        first = self._names[0]
        used = {*self._used, self._action_key, "rewards", "terminations", "truncations"}
        used |= {f"infos/{name}" for name in self._states(first).sizes}
        keys = [
            key for key in self._storage.arrays(first)
            if key not in used and key.partition("/")[0] != GROUP
        ]  # fmt: skip
        if keys:
            message = f"not read, as they are no observations: {', '.join(keys)}"
            self._report("left-out", first, message, keys=keys)

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or damaged bytes.
        """
        name = self._names[index]
        steps = self._steps[name]
        arrays = {key: self._rows(name, path) for key, path in self._observations.paths.items()}
        for key in self._stale:
            if is_of_the_episode_before(arrays[key][:3]):
                arrays[key][0] = arrays[key][1]
        final = None
        if name not in self._observations.without_final:
            final = {key: values[steps] for key, values in arrays.items()}
        observed = np.concatenate([values[0] for values in arrays.values()])
        return Episode(
            source=name,
            observations={key: values[:steps] for key, values in arrays.items()},
            actions=self._rows(name, self._action_key),
            rewards=self._rows(name, "rewards").reshape(-1) if self._has_rewards else None,
            final_observation=final,
            initial_state=self._states(name).initial(
                Rows(0, steps), observed, self._storage.where(name, "infos")
            ),
            success=self.succeeded(index),
        )

    def _rows(self, name: str, key: str) -> FloatArray:
        """Return an array (time, components) as finite float32."""
        values = self._storage.read(name, key)
        rows = finite_rows(values, lambda: self._storage.where(name, key), findings=self.findings)
        return rows.reshape(len(rows), -1)

    def succeeded(self, index: int) -> bool | None:
        """Return whether an episode solved its task, None where it does not say."""
        name = self._names[index]
        shapes = self._storage.shapes(name)
        found = next((key for key in SUCCESS_KEYS if key in shapes), None)
        return None if found is None else bool((self._storage.read(name, found) > 0).any())

    def close(self) -> None:
        """Close the file."""
        self._storage.close()


def _seed(attributes: Mapping[str, Any]) -> int | None:
    """Return the reset seed; Minari omits it, or writes text, where there was none."""
    seed = attributes.get("seed")
    return int(seed) if isinstance(seed, int | np.integer) and seed >= 0 else None
