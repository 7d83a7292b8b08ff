"""Reader of D4RL's flat HDF5 files; d4rl itself is not needed.

All episodes lie end to end in `observations`, `actions`, `rewards`, `terminals` and
`timeouts`. An episode ends at a row with either flag; a run of terminal flags, as AntMaze has
them at every step near the goal, ends one. Rows after the last flag are kept as an episode of
their own, because their steps are as good as any. Files without `timeouts` (older ones) are also
cut at the environment's step limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import Episode, FloatArray, SourceSpec
from lwdctl.core.simulator_facts import OBSERVATION, GymEnvironment
from lwdctl.data.checks import choose_observations, finite_rows, without_dropped
from lwdctl.data.files.contents import Contents
from lwdctl.data.files.hdf5 import Hdf5Reader, array_at, dataset_at, read_array, text_of
from lwdctl.data.named_environments import gym_action
from lwdctl.data.reader import EPISODE_OPTIONS, EpisodeOutline, check_no_subset, check_unused
from lwdctl.data.readers.flags import (
    Continuity,
    Flags,
    Rows,
    align_flags,
    evenly,
    flags_of,
    rows_without_zero_tail,
    runs_left_out,
    split_at_flags,
)
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
from lwdctl.data.readers.states import States, find_states

SUCCESS_KEYS = ("infos/success", "infos/goal_achieved")
_FLAGS = ("terminals", "timeouts")
_BLOCK = 2**20
"""Rows of a narrow array that are read at once."""


class D4rlFile(Hdf5Reader):
    """One D4RL file; a `FileReader`.

    The environment comes from `--env`, `metadata/env`, or the file's name; the behavior label
    from `--label`, `--label-from`, `metadata/level`, or the file's name. The initial state is
    `infos/qpos`, `infos/qvel` and what else the environment needs (`board_pos`), concatenated;
    `EnvSpec.settings["initial_state"]` has the sizes.
    """

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a file is recognized as D4RL's, or ""."""
        keys = ("observations", "actions", "terminals")
        if contents.container == "hdf5" and all(key in contents.arrays for key in keys):
            return ", ".join(keys)
        return ""

    def _scan(self, config: IngestConfig) -> None:
        check_no_subset(config, self.path, "a D4RL file")
        check_unused(config, self.path, "a D4RL file", *EPISODE_OPTIONS)
        # One handle per array: its chunk cache lives as long as the handle.
        self._arrays: dict[str, h5py.Dataset] = {}
        self._named: tuple[str, ...] = ()
        self._action_key = config.action_key or "actions"
        size = self._open_matrix("observations")
        if self._total == 0:
            raise DataError(f"{self.path}: observations: has no rows")
        action_size = self._open_matrix(self._action_key)
        check_continuous(self._arrays[self._action_key].dtype, f"{self.path}: {self._action_key}")
        self._has_rewards = self._check_rewards()
        self._next_rows = self._open_next(size)
        rows = self._without_zero_tail()
        source = GymSource(
            self._metadata("env"),
            size,
            action_size,
            self.path,
            sample=lambda: self._raw("observations", 0, min(rows, SAMPLE)),
            name=self.path.stem,
        )
        env, spec = describe_env(config, source, self.findings)
        bounds = self._find_episodes(rows, config, spec.max_steps)
        self._states = self._find_states(env, bounds)
        self._success = self._find_success()
        keys = without_dropped(config.drop, (OBSERVATION,), str(self.path))
        self.episodes, tasks = self._outlines(bounds, config, spec.tasks)
        self.spec = SourceSpec(
            observations=choose_observations(
                config.observation_keys, keys, {OBSERVATION: size}, str(self.path)
            ),
            action=gym_action(env, action_size),
            env=replace(spec, settings={**spec.settings, **self._states.layout}, tasks=tasks),
            labels=(),
            source_format="d4rl",
        )
        self._bounds = bounds
        self._list_left_out()

    @property
    def _total(self) -> int:
        """Number of rows of the file."""
        return int(self._arrays["observations"].shape[0])

    def _open(self, key: str, ranks: tuple[int, ...] = (2,)) -> h5py.Dataset:
        """Return an array that must have as many rows as the observations."""
        rows = self._total if self._arrays else None
        array = array_at(self._file, key, ranks=ranks, rows=rows, reference="observations")
        return self._arrays.setdefault(key, array)

    def _open_matrix(self, key: str) -> int:
        """Open an array (rows, components), (rows, 1, components) or (rows,).

        Returns:
            The number of its components.

        Raises:
            DataError: It has another shape, or no components.
        """
        shape = self._open(key, ranks=(1, 2, 3)).shape
        if len(shape) == 3 and shape[1] != 1:
            array_at(self._file, key)  # says what is expected
        size = int(shape[-1]) if len(shape) > 1 else 1
        if not size:
            raise DataError(f"{self.path}: {key}: has shape {shape}: no components")
        if len(shape) != 2:
            self._report("adjusted", key, f"has shape {shape}; it is read as {(shape[0], size)}")
        return size

    def _stored_rows(self, key: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows (time, components) as they are stored."""
        values = read_array(self._arrays[key], start, stop)
        return values.reshape(len(values), -1)

    def _raw(self, key: str, start: int, stop: int) -> FloatArray:
        """Return rows (time, components) as float32, finite or not."""
        with np.errstate(over="ignore"):
            return self._stored_rows(key, start, stop).astype(np.float32)

    def _rows(self, key: str, start: int, stop: int) -> FloatArray:
        """Return rows (time, components) as finite float32."""
        values = self._stored_rows(key, start, stop)
        return finite_rows(values, f"{self.path}: {key}", start, self.findings)

    def _metadata(self, name: str) -> str:
        item = self._file.get(f"metadata/{name}")
        return text_of(item[()]) if isinstance(item, h5py.Dataset) and item.size == 1 else ""

    def _check_rewards(self) -> bool:
        """Return whether the file has a reward for every row; say why not."""
        try:
            array = self._open("rewards", ranks=(1, 2))
            if array.size == self._total:
                problem = self._not_finite("rewards")
            else:
                problem = f"has {array.shape[1]} columns"
        except DataError as error:
            problem = error.message.removeprefix(f"{self.path}: rewards").lstrip(":, ")
        if problem:
            self._report("left-out", "rewards", f"{problem}; episodes have no rewards")
        return not problem

    def _not_finite(self, key: str) -> str:
        """Return how many values of an array are NaN or infinite, "" for none."""
        count, first = 0, -1
        for start in range(0, self._total, _BLOCK):
            bad = np.flatnonzero(~np.isfinite(self._raw(key, start, start + _BLOCK)))
            if bad.size and first < 0:
                first = start + int(bad[0])
            count += bad.size
        return f"{count} values are NaN or infinite, the first in row {first}" if count else ""

    def _open_next(self, size: int) -> int:
        """Open `next_observations` and return the number of its rows, 0 where it is of no use."""
        key = "next_observations"
        if key not in self._file:
            return 0
        try:
            array = array_at(self._file, key)
        except DataError as error:
            problem = error.message.partition(f"{key}: ")[2]
            self._report("left-out", key, f"{problem}; it is not read")
            return 0
        rows, found = map(int, array.shape)
        if found != size or rows not in (self._total - 1, self._total):
            message = f"has shape {array.shape}, observations {(self._total, size)}; it is not read"
            self._report("left-out", key, message)
            return 0
        if rows < self._total:
            message = "is a row short; the last episode has no final observation"
            self._report("adjusted", key, message, rows=rows)
        self._arrays[key] = array
        return rows

    def _without_zero_tail(self) -> int:
        """Return the number of rows before a tail of nothing but zeros."""

        def read(start: int, stop: int) -> FloatArray:
            keys = ("observations", self._action_key)
            return np.concatenate([self._raw(key, start, stop) for key in keys], axis=1)

        rows = rows_without_zero_tail(read, self._total)
        tail = self._total - rows
        if tail < 2:  # a single row of zeros may be a state at rest
            return self._total
        message = f"rows {rows}:{self._total} are all zero, memory never filled; they are left out"
        self._report("left-out", "observations", message, rows=tail)
        return rows

    def _find_episodes(self, rows: int, config: IngestConfig, limit: int) -> list[Rows]:
        """Return the rows of every episode."""
        flags = {key: self._flags(key)[:rows] for key in _FLAGS if key in self._file}
        if "timeouts" not in flags and not limit:
            raise DataError(
                f"{self.path}: timeouts: is missing, and the environment's step limit is unknown",
                "--max-steps 1000 if an episode has at most 1000 steps",
            )
        if "terminals" not in flags:
            raise DataError(f"{self.path}: terminals: is missing")
        flags = self._aligned(flags, config.terminals)
        cut_at = limit if config.max_steps or "timeouts" not in flags else 0
        timeouts = flags.get("timeouts")
        episodes, rests = split_at_flags(flags["terminals"], timeouts, config.terminals, cut_at)
        hint = "--terminals each ends an episode at every flag, --terminals ignore at none"
        self.findings += runs_left_out(rests, f"{self.path}: terminals", hint)
        if cut_at:
            cuts = sum(stop - start == cut_at for start, stop in episodes)
            why = "as --max-steps requests" if config.max_steps else "as timeouts is missing"
            message = f"{cuts} episodes end at the step limit of {cut_at}, {why}"
            self._report("adjusted", "timeouts", message, episodes=cuts, limit=cut_at)
        elif config.terminals != "ignore" and not any(
            values[episodes[-1].stop - 1] for values in flags.values()
        ):
            last = episodes[-1].stop - episodes[-1].start
            message = f"no flag ends the last {last} rows: they are kept as an episode"
            self._report("adjusted", "timeouts", message, rows=last)
        if limit and not cut_at:
            self._check_lengths([stop - start for start, stop in episodes], flags, limit)
        return episodes

    def _check_lengths(
        self, lengths: Sequence[int], flags: Mapping[str, Flags], limit: int
    ) -> None:
        """Warn of episodes beyond the environment's step limit, where ends may be missing."""
        longer = sum(length > limit for length in lengths)
        if not longer:
            return
        missing = "ends may be missing" if any(map(np.any, flags.values())) else "no flag is set"
        message = (
            f"{longer} of {len(lengths)} episodes are longer than the environment's step limit of"
            f" {limit}; the longest has {max(lengths)} steps: {missing}"
        )
        values = {"episodes": longer, "longest": max(lengths), "limit": limit}
        hint = f"--max-steps {limit} ends episodes there"
        self._report("too-long", "timeouts", message, "warning", hint, **values)

    def _aligned(self, flags: dict[str, Flags], mode: str) -> dict[str, Flags]:
        """Return the flags that end episodes, moved where they lie a row beside the resets."""
        found = np.logical_or.reduce(list(flags.values()))
        if not found.any():
            return flags
        key = "next_observations"
        continuity = Continuity.measure(
            partial(self._raw, "observations"),
            partial(self._raw, key) if self._next_rows else None,
            found,
        )
        aligned = dict(flags)
        for name, values in flags.items():
            if name == "terminals" and mode == "ignore":
                continue
            others = [item for key, item in flags.items() if key != name]
            where = f"{self.path}: {name}"
            aligned[name], findings = align_flags(name, values, continuity, where, others)
            self.findings += findings
        return aligned

    def _flags(self, key: str) -> Flags:
        values = read_array(self._open(key, ranks=(1, 2)))
        return flags_of(values, self._total, f"{self.path}: {key}")

    def _find_states(self, env: GymEnvironment | None, bounds: Sequence[Rows]) -> States:
        """Return the recorded simulator states; say where they are incomplete or misplaced."""

        def shape_of(name: str) -> tuple[int, ...] | None:
            return self._numbers_at(f"infos/{name}") or None

        def read(name: str, start: int, stop: int) -> npt.NDArray[Any]:
            key = f"infos/{name}"
            if key not in self._arrays:
                self._arrays[key] = array_at(self._file, key)
            return read_array(self._arrays[key], start, stop)

        states, problem = find_states(shape_of, read, self._total, env)
        if problem:
            self._report("left-out", "infos", f"{problem}; episodes have no initial state")
        if states.shift:
            message = "is a row short; it is aligned from the end, so that row 0 has no state"
            self._report("adjusted", "infos", message, rows=states.rows)
        looked_at = evenly(bounds)
        first = self._raw("observations", 0, min(SAMPLE, bounds[-1].stop))
        starts = {row: self._raw("observations", row, row + 1) for row, _ in looked_at}
        states, findings = states.aligned([(0, first)], f"{self.path}: infos")
        self.findings += findings
        self.findings += states.check_starts(looked_at, starts, f"{self.path}: infos")
        return states

    def _find_success(self) -> tuple[str, int]:
        """Return the array that says whether the task is solved, and its shift, ("", 0) if none."""
        for key in SUCCESS_KEYS:
            shape = self._numbers_at(key)
            if not shape:
                continue
            rows = shape[0] if math.prod(shape[1:]) == 1 else -1
            if rows in (self._total - 1, self._total):
                self._arrays[key] = array_at(self._file, key, ranks=(1, 2))
                return key, rows - self._total
            message = f"has shape {shape}, not one flag a row; success is unknown"
            self._report("left-out", key, message)
        return "", 0

    def _outlines(
        self, bounds: Sequence[Rows], config: IngestConfig, tasks: tuple[str, ...]
    ) -> tuple[list[EpisodeOutline], tuple[str, ...]]:
        """Return the outlines of the episodes, and their tasks."""
        label, findings = named_label(
            config, self._metadata("level"), self.path.stem, str(self.path)
        )
        self.findings += findings
        outlines = [EpisodeOutline(rows.name, rows.stop - rows.start) for rows in bounds]
        return with_texts(config, outlines, label, tasks, partial(self._column, bounds))

    def _column(self, bounds: Sequence[Rows], name: str, option: str) -> list[str]:
        """Return an array's value at the first row of every episode, as text."""
        shapes = ((), (self._total,), (self._total, 1))
        known = [key for key, item in self._stored.items() if item.shape in shapes]
        key = check_known(name, known, option, self.path)
        array = dataset_at(self._file, key)
        self._named = (*self._named, key)
        if array.shape == ():
            return [value_text(array[()])] * len(bounds)
        return [value_text(read_array(array, start, start + 1)) for start, _ in bounds]

    def _list_left_out(self) -> None:
        """Say which arrays of steps are not read."""
        used = {*self._arrays, *self._named, *(f"infos/{name}" for name in self._states.sizes)}
        reported = {item.where.rpartition(": ")[2] for item in self.findings}
        names = [key for key, stored in self._stored.items() if stored.shape and key not in used]
        names = sorted(key for key in names if key not in reported and key[:9] != "metadata/")
        if names:
            message = f"not read, as they are no observations: {', '.join(names)}"
            self._report("left-out", "/", message, keys=names)

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or damaged bytes.
        """
        start, stop = self._bounds[index]
        observations = self._rows("observations", start, stop)
        rewards = self._rows("rewards", start, stop).reshape(-1) if self._has_rewards else None
        final = None
        if stop <= self._next_rows:
            final = {OBSERVATION: self._rows("next_observations", stop - 1, stop)[0]}
        return Episode(
            source=self.episodes[index].source,
            observations={OBSERVATION: observations},
            actions=self._rows(self._action_key, start, stop),
            rewards=rewards,
            final_observation=final,
            initial_state=self._states.initial(
                self._bounds[index], observations[0], f"{self.path}: infos"
            ),
            success=self.succeeded(index),
        )

    def succeeded(self, index: int) -> bool | None:
        """Return whether an episode solved its task, None where the file does not say."""
        (start, stop), (key, shift) = self._bounds[index], self._success
        return (
            bool((self._raw(key, max(start + shift, 0), stop + shift) > 0).any()) if key else None
        )
