"""Reader of OGBench's npz files; ogbench itself is not needed.

All trajectories lie end to end in `observations` and `actions`. OGBench knows three layouts, which
its arrays tell apart:

- As downloaded, `terminals` flags the last row of a trajectory: its final observation, beside an
  action that is not used (`s0 .. s4`, `a0 .. a4`: four steps).
- Compact, as `load_dataset(compact_dataset=True)` returns it: `valids` is 0 in that row, and
  `terminals` flags the row before as well.
- Regular, as `load_dataset` returns it: `next_observations` beside `observations`, all rows are
  steps, and `terminals` flags the last one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, FloatArray, SourceSpec
from lwdctl.core.simulator_facts import OBSERVATION
from lwdctl.data.checks import (
    NonFiniteError,
    check_declared_bytes,
    check_rows,
    choose_observations,
    without_dropped,
)
from lwdctl.data.files.array_kinds import is_image
from lwdctl.data.files.contents import ArrayEntry, Contents
from lwdctl.data.files.npz_files import NpzFile
from lwdctl.data.named_environments import requested_env
from lwdctl.data.reader import EpisodeOutline
from lwdctl.data.readers.array_reader import ArrayReader
from lwdctl.data.readers.flags import Flags, Rows, flags_of, runs_left_out, split_at_flags
from lwdctl.data.readers.gym_envs import check_continuous, check_known, value_text, with_texts

_STEPS = ("observations", "actions", "terminals")
_STATE = ("qpos", "qvel", "button_states")
_NEXT, _VALIDS, _REWARDS, _MASKS = "next_observations", "valids", "rewards", "masks"
_NAME = re.compile(
    r"(?P<env>(visual-)?(pointmaze|antmaze|humanoidmaze|antsoccer|cube|scene|puzzle)(-[a-z0-9]+)*?)"
    r"-(?P<kind>navigate|stitch|explore|path|play|noisy)(-[a-z0-9]+)*?-(?P<version>v\d+)(-\d+)?"
    r"(?P<split>-val)?"
)


@dataclass(frozen=True)
class _Family:
    """The action of a family of OGBench's environments, all in [-1, 1]."""

    size: int
    semantics: str
    control_rate: float


_FAMILIES = {
    "pointmaze": _Family(2, "delta", 10.0),
    "antmaze": _Family(8, "torque", 10.0),
    "antsoccer": _Family(8, "torque", 10.0),
    "humanoidmaze": _Family(21, "torque", 40.0),
    "cube": _Family(5, "delta", 20.0),
    "scene": _Family(5, "delta", 20.0),
    "puzzle": _Family(5, "delta", 20.0),
}


class _Trajectory(NamedTuple):
    """The rows `start:stop` of its steps, and the row of its final observation, -1 if unknown."""

    start: int
    stop: int
    final: int


class OgbenchFile(ArrayReader):
    """One OGBench file; a `FileReader`.

    Nothing in the file names the environment: it comes from `--env` or, as a last resort, from the
    file's name, and the behavior label (`navigate`, `play`) and the validation split (`-val`) as
    well. The initial state is `qpos`, `qvel` and `button_states`, concatenated.

    Raises:
        DataError: The structure is not OGBench's; the message names file and key.
    """

    opener = NpzFile
    what = "an OGBench file"
    _file: NpzFile

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a file is recognized as OGBench's, or ""."""
        arrays = contents.arrays
        if contents.container != "npz" or not contents.has(*_STEPS):
            return ""
        # D4RL's arrays have the same names; their timeouts and rewards have no masks.
        if "timeouts" in arrays or (_REWARDS in arrays and _MASKS not in arrays):
            return ""
        rows = {arrays[key].shape[:1] for key in _STEPS}
        return ", ".join(_STEPS) if len(rows) == 1 and rows != {()} else ""

    def _scan(self, config: IngestConfig) -> None:
        self._action = config.action_key or "actions"
        self._total = self._entry("observations").shape[0]
        action_size = self._check_action()
        sizes = self._sizes()
        keys = without_dropped(config.drop, (OBSERVATION,), str(self.path))
        observations = choose_observations(config.observation_keys, keys, sizes, str(self.path))
        self._paths = {item.name: item.name for item in observations}
        if OBSERVATION in self._paths:
            self._paths[OBSERVATION] = "observations"
        for key in self._paths.values():
            self._check_vector(key)
        self._layout = self._find_layout()
        self._trajectories = self._find_trajectories(config)
        self._rewards = self._find_rewards()
        self._masks = _MASKS if self._flags(_MASKS) is not None else ""
        self._states = self._find_states()
        action, env, label, split = self._describe(config, action_size)
        self.episodes, tasks = self._outlines(config, env.tasks, label, split)
        layout = [[key, self._file.arrays[key].shape[1]] for key in self._states]
        settings = {**env.settings, **({"initial_state": layout} if layout else {})}
        self.spec = SourceSpec(
            observations=observations,
            action=action,
            env=EnvSpec(env.adapter, tasks, settings, config.max_steps or 0),
            labels=(),
            source_format="ogbench",
        )
        self._check_sizes(config.max_bytes)
        self._list_left_out(config)

    def _entry(self, key: str) -> ArrayEntry:
        """Return an array of numbers with at least one row."""
        entry = self._file.arrays.get(key)
        if entry is None:
            raise DataError(f"{self.path}: {key}: is missing")
        if not entry.is_numeric or not entry.shape:
            raise DataError(f"{self.path}: {key}: holds {entry.dtype}, not rows of numbers")
        if not entry.shape[0]:
            raise DataError(f"{self.path}: {key}: has no rows")
        return entry

    def _check_action(self) -> int:
        """Check the actions; return their number of components."""
        entry, where = self._entry(self._action), f"{self.path}: {self._action}"
        check_continuous(np.dtype(entry.dtype), where)
        check_rows(entry.shape[0], self._total, where, "observations")
        if len(entry.shape) > 2:
            raise DataError(f"{where}: has shape {entry.shape}, expected 2 axes")
        return math.prod(entry.shape[1:])

    def _sizes(self) -> dict[str, int]:
        """Return the number of components of every array that can be an observation."""
        taken = {*_STEPS, _NEXT, _VALIDS, _REWARDS, _MASKS, self._action}
        rows = {
            key: math.prod(item.shape[1:])
            for key, item in self._file.arrays.items()
            if item.is_numeric and item.shape[:1] == (self._total,) and len(item.shape) == 2
        }
        observed = math.prod(self._file.arrays["observations"].shape[1:])
        return {OBSERVATION: observed, **{k: n for k, n in rows.items() if k not in taken}}

    def _check_vector(self, key: str) -> None:
        entry, where = self._entry(key), f"{self.path}: {key}"
        if is_image(entry):
            hint = f"--observation-keys {','.join(k for k in _STATE if k in self._file.arrays)}"
            raise DataError(
                f"{where}: are images {entry.shape[1:]}; policies see vectors",
                hint if "qpos" in self._file.arrays else "",
            )
        if len(entry.shape) > 2:
            raise DataError(f"{where}: has shape {entry.shape}, expected 2 axes")

    def _find_layout(self) -> str:
        """Return which of OGBench's layouts the file has."""
        entry = self._file.arrays.get(_NEXT)
        if entry is not None:
            if entry.is_numeric and entry.shape == self._file.arrays["observations"].shape:
                return _NEXT
            self._report("left-out", _NEXT, f"has shape {entry.shape}; it is not read")
        return _VALIDS if self._flags(_VALIDS) is not None else ""

    def _flags(self, key: str) -> Flags | None:
        """Return flags stored as (rows,) or (rows, 1), None where the file has none."""
        entry = self._file.arrays.get(key)
        if entry is None:
            return None
        where = f"{self.path}: {key}"
        check_rows(self._entry(key).shape[0], self._total, where, "observations")
        self._file.open([key])
        return flags_of(self._file.rows(key), self._total, where)

    def _find_trajectories(self, config: IngestConfig) -> list[_Trajectory]:
        """Return where every trajectory with at least one step lies."""
        terminals = self._flags("terminals")
        if terminals is None:
            raise DataError(f"{self.path}: terminals: is missing")
        if config.terminals == "ignore" and not config.max_steps:
            raise DataError(
                f"{self.path}: terminals: are all that ends a trajectory",
                "--terminals ignore --max-steps 1000 cuts after 1000 steps",
            )
        last = terminals
        if self._layout == _VALIDS:
            valids = self._flags(_VALIDS)
            assert valids is not None
            last = ~valids
        elif not self._layout and _is_in_pairs(terminals):
            last = np.zeros_like(terminals)
            last[1:] = terminals[1:] & terminals[:-1]
            self._report("adjusted", "terminals", "flags come in pairs: read as a compact dataset")
        limit = (config.max_steps or 0) if config.terminals == "ignore" else 0
        pieces, rests = split_at_flags(last, None, config.terminals, limit)
        self.findings += runs_left_out(rests, f"{self.path}: terminals", "--terminals each")
        flagged = last if config.terminals != "ignore" else np.zeros_like(last)
        found = [self._trajectory(piece, flagged) for piece in pieces]
        return self._with_steps(found)

    def _trajectory(self, piece: Rows, last: Flags) -> _Trajectory:
        """Return the steps of one piece of the rows, by the file's layout."""
        start, stop = piece
        if self._layout == _NEXT:
            return _Trajectory(start, stop, stop - 1)
        return _Trajectory(start, stop - 1, stop - 1) if last[stop - 1] else _Trajectory(*piece, -1)

    def _with_steps(self, found: Sequence[_Trajectory]) -> list[_Trajectory]:
        """Return the trajectories that have steps; say what the rows are."""
        kept = [item for item in found if item.stop > item.start]
        if not kept:
            raise DataError(f"{self.path}: terminals: no trajectory has a step")
        if len(kept) < len(found):
            count = len(found) - len(kept)
            message = f"{count} trajectories have one row and no step; they are left out"
            self._report("left-out", "terminals", message, trajectories=count)
        if self._layout != _NEXT:
            count = sum(item.final >= 0 for item in kept)
            message = (
                f"the last row of {count} trajectories is their final observation; the action in it"
                " is not used"
            )
            self._report("adjusted", self._action, message, trajectories=count)
        return kept

    def _find_rewards(self) -> str:
        """Return the key of the rewards, "" where they are missing or of no use."""
        entry, problem = self._file.arrays.get(_REWARDS), ""
        if entry is None:
            problem = "is missing"
        elif not entry.is_numeric or math.prod(entry.shape) != self._total:
            problem = f"has shape {entry.shape} of {entry.dtype}"
        else:
            self._file.open([_REWARDS])
            bad = int((~np.isfinite(self._file.rows(_REWARDS))).sum())
            problem = f"has {bad} values that are NaN or infinite" if bad else ""
        if problem:
            self._report("left-out", _REWARDS, f"{problem}; episodes have no rewards")
        return "" if problem else _REWARDS

    def _find_states(self) -> tuple[str, ...]:
        """Return the arrays that make up a simulator state, () where it is incomplete."""
        arrays = self._file.arrays
        found = [
            key
            for key in _STATE
            if key in arrays
            and arrays[key].is_numeric
            and arrays[key].shape[:1] == (self._total,)
            and len(arrays[key].shape) == 2
        ]
        if {"qpos", "qvel"} <= {*found}:
            return tuple(found)
        if any(key in arrays for key in _STATE):
            shapes = ", ".join(f"{key} {arrays[key].shape}" for key in _STATE if key in arrays)
            message = f"{shapes}: no qpos and qvel of a row each; episodes have no initial state"
            self._report("left-out", "qpos", message)
        return ()

    def _describe(self, config: IngestConfig, size: int) -> tuple[ActionSpec, EnvSpec, str, str]:
        """Return action, environment, label and split, the last three by the file's name."""
        adapter, requested = requested_env(config)
        match = _NAME.fullmatch(self.path.stem)
        named = f"{match['env']}-{match['version']}" if match else ""
        task = requested or named
        family = next(
            (name for name in _FAMILIES if task.removeprefix("visual-").startswith(name)), ""
        )
        action = ActionSpec(size, "absolute", "unknown", (), (), limits="")
        known = _FAMILIES.get(family)
        if known is not None and known.size == size:
            low, high = (-1.0,) * size, (1.0,) * size
            action = ActionSpec(size, known.semantics, "normalized", low, high, known.control_rate)
        told = []
        if named and not requested:
            told.append(f"the environment {named}")
        label = match["kind"] if match and config.label is None else ""
        if label and not config.label_from:
            told.append(f"the behavior label '{label}'")
        split = "validation" if match and match["split"] else ""
        if split:
            told.append("the validation split")
        if told:
            message = f"the file's name alone says {' and '.join(told)}"
            self._report("metadata", "", message, "note", "--env ADAPTER/NAME --label LABEL")
        env = EnvSpec(adapter, (task,) if task else (), {"id": task} if task else {})
        return action, env, config.label or label, split

    def _outlines(
        self, config: IngestConfig, tasks: tuple[str, ...], label: str, split: str
    ) -> tuple[list[EpisodeOutline], tuple[str, ...]]:
        """Return the outlines of the episodes, and their tasks."""
        outlines = [
            EpisodeOutline(Rows(start, stop).name, stop - start, split=split)
            for start, stop, _ in self._trajectories
        ]
        return with_texts(config, outlines, label, tasks, self._column)

    def _column(self, name: str, option: str) -> list[str]:
        """Return an array's value at the first row of every trajectory, as text."""
        shapes = ((self._total,), (self._total, 1))
        known = [key for key, item in self._file.arrays.items() if item.shape in shapes]
        key = check_known(name, known, option, self.path)
        self._file.open([key])
        values = self._file.rows(key)
        return [value_text(values[start]) for start, *_ in self._trajectories]

    def _check_sizes(self, max_bytes: int) -> None:
        """Check what reading will take; say which arrays must be read as a whole."""
        self._needed = [*self._paths.values(), self._action, *self._states]
        if self._layout == _NEXT and self._paths.keys() == {OBSERVATION}:
            self._needed.append(_NEXT)
        self._needed = list(dict.fromkeys(self._needed))
        total = whole = 0
        for key in self._needed:
            entry = self._file.arrays[key]
            size = math.prod(entry.shape) * np.dtype(entry.dtype).itemsize
            total += size
            whole += size * self._file.is_compressed(key)
            where = f"{self.path}: {key}: has shape {entry.shape}"
            check_declared_bytes(total, max_bytes, where)
        if whole:
            names = ", ".join(filter(self._file.is_compressed, self._needed))
            message = f"{names}: compressed, so that they are held in memory: {whole:,} bytes"
            self._report("memory", "", message, "note", "--max-bytes", bytes=whole)

    def _list_left_out(self, config: IngestConfig) -> None:
        """Say which arrays are not read."""
        used = {*self._needed, *_STEPS[2:], _VALIDS, _MASKS, _REWARDS, _NEXT}
        columns = {config.label_from, config.task_from}
        names = sorted(key for key in self._file.arrays if key not in used | columns)
        if names:
            message = f"not read, as they are no observations: {', '.join(names)}"
            self._report("left-out", "", message, keys=names)

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or damaged bytes.
        """
        self._file.open(self._needed)
        start, stop, final = self._trajectories[index]
        rewards = self._rows(self._rewards, start, stop).reshape(-1) if self._rewards else None
        return Episode(
            source=self.episodes[index].source,
            observations={name: self._rows(key, start, stop) for name, key in self._paths.items()},
            actions=self._rows(self._action, start, stop),
            rewards=rewards,
            final_observation=self._final(final),
            initial_state=self._state(start),
            success=self.succeeded(index),
        )

    def succeeded(self, index: int) -> bool | None:
        """Return whether a trajectory reached its goal, None where the file does not say."""
        if not self._masks:
            return None
        self._file.open(self._needed)
        return not self._file.rows(self._masks, *self._trajectories[index][:2]).all()

    def _final(self, row: int) -> dict[str, FloatArray] | None:
        """Return the observation after the last action, None where it is unknown."""
        if row < 0 or (self._layout == _NEXT and _NEXT not in self._needed):
            return None
        paths = {OBSERVATION: _NEXT} if self._layout == _NEXT else self._paths
        return {name: self._rows(key, row, row + 1)[0] for name, key in paths.items()}

    def _state(self, row: int) -> npt.NDArray[np.float64] | None:
        if not self._states:
            return None
        parts = [self._file.rows(key, row, row + 1)[0] for key in self._states]
        state = np.concatenate(parts).astype(np.float64)
        if not np.isfinite(state).all():
            raise NonFiniteError(f"{self.path}: qpos, row {row}: the state has NaN or infinity")
        return state


def _is_in_pairs(flags: Flags) -> bool:
    """Return whether flags come in runs of exactly two."""
    edges = np.flatnonzero(np.diff(np.r_[False, flags, False].astype(np.int8)))
    lengths = edges[1::2] - edges[::2]
    return bool(lengths.size) and bool((lengths == 2).all())
