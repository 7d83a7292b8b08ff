"""Reader of D4RL's flat HDF5 files; d4rl itself is not needed.

All episodes lie end to end in `observations`, `actions`, `rewards`, `terminals` and
`timeouts`. An episode ends at a row with either flag. Rows after the last flag are kept as an
episode of their own: its steps are as good as any. Files without `timeouts` (older ones) are
cut at the environment's step limit as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError
from lwdctl.core.records import EnvSpec, Episode, FloatArray, ObservationSpec, SourceSpec
from lwdctl.data.checks import choose_keys, require_length, require_size
from lwdctl.data.gym_envs import (
    SAMPLE,
    GymEnv,
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
    open_hdf5,
    read_array,
    read_rows,
    text_of,
)
from lwdctl.data.merge import EpisodeOutline, MergedReader
from lwdctl.data.reader import ReadOptions

OBSERVATION = "observation"
STATE_KEYS = ("qpos", "qvel")
SUCCESS_KEYS = ("success", "goal_achieved")


def open_d4rl(paths: Sequence[Path], options: ReadOptions) -> MergedReader:
    """Open one or several D4RL files as one source; the file's level becomes the label."""
    return MergedReader(D4rlFile, paths, options)


class D4rlFile:
    """One D4RL file; a file reader.

    The environment comes from `--env`, `metadata/env`, or the file's name. The initial state
    is `infos/qpos`, `infos/qvel` and what else the environment needs (`board_pos`), laid end
    to end; `EnvSpec.settings["initial_state"]` says the sizes.

    Args:
        path: The file.
        options: What the user asked for; there are no subsets to filter by.

    Raises:
        DataError: The structure is not D4RL's; the message names file and key.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self.sources: Sequence[str]
        self.lengths: Sequence[int]
        if options.filter_key:
            raise DataError(f"{path}: a D4RL file has no subset '{options.filter_key}'")
        choose_keys(options.observation_keys, (OBSERVATION,), (OBSERVATION,), str(path))
        self._file = open_hdf5(path, options.max_bytes)
        self._datasets: dict[str, h5py.Dataset] = {}
        try:
            self._scan(options)
        except BaseException:
            self._file.close()
            raise

    def _scan(self, options: ReadOptions) -> None:
        rows, size = array_shape(dataset_at(self._file, "observations", self.path), self.path)
        if rows == 0:
            raise DataError(f"{self.path}: observations: has no rows")
        action_size = self._beside("actions", rows)[1]
        self._beside("rewards", rows, ranks=(1, 2))
        if "next_observations" in self._file:
            shape = self._beside("next_observations", rows)
            require_size(shape[1], size, f"{self.path}: next_observations")
        named = gym_id(self._metadata("env"))
        env = known_env(options.env.partition("/")[2] or named or self.path.stem)
        spec = env_spec(env, options.env, named, size, f"{self.path}: observations")
        if spec.settings.get("use_contact_forces"):
            spec = note_zero_forces(spec, self._rows("observations", 0, min(rows, SAMPLE)))
        if env is not None:
            require_size(action_size, env.action_size, f"{self.path}: actions")
        self._state_keys, state_sizes = self._find_state(env, rows)
        self._success_keys = [key for key in SUCCESS_KEYS if f"infos/{key}" in self._file]
        for key in self._success_keys:
            self._beside(f"infos/{key}", rows, ranks=(1, 2))
        self._task = spec.tasks[0] if spec.tasks else ""
        self._label = options.label or level_of(self._metadata("level") or self.path.stem)
        self._ends = self._find_ends(rows, spec.max_steps)
        starts = [0, *self._ends[:-1]]
        self.lengths = [end - start for start, end in zip(starts, self._ends, strict=True)]
        self.sources = [
            f"rows {start}:{end}" for start, end in zip(starts, self._ends, strict=True)
        ]
        settings = {**spec.settings, **({"initial_state": state_sizes} if state_sizes else {})}
        self.spec = SourceSpec(
            observations=(ObservationSpec(OBSERVATION, size),),
            action=gym_action(env, action_size),
            env=EnvSpec(spec.adapter, spec.tasks, settings, spec.max_steps or max(self.lengths)),
            labels=(self._label,) if self._label else (),
            source_format="d4rl",
        )

    def _beside(self, key: str, rows: int, ranks: tuple[int, ...] = (2,)) -> tuple[int, ...]:
        """Return the shape of an array that must be as long as the observations."""
        shape = array_shape(dataset_at(self._file, key, self.path), self.path, ranks=ranks)
        require_length(shape[0], rows, f"{self.path}: {key}", "observations")
        return shape

    def _metadata(self, name: str) -> str:
        item = self._file.get(f"metadata/{name}")
        return text_of(item[()]) if isinstance(item, h5py.Dataset) and item.shape == () else ""

    def _find_state(self, env: GymEnv | None, rows: int) -> tuple[list[str], list[list[Any]]]:
        """Return the keys of the simulator state and their sizes; none where one is missing."""
        names = [*STATE_KEYS, *(env.state_keys if env else ())]
        keys = [f"infos/{name}" for name in names]
        if any(key not in self._file for key in keys):
            return [], []
        shapes = [self._beside(key, rows) for key in keys]
        return keys, [[name, shape[1]] for name, shape in zip(names, shapes, strict=True)]

    def _find_ends(self, rows: int, limit: int) -> list[int]:
        """Return one past the last row of each episode."""
        ended = self._flags("terminals", rows)
        if "timeouts" in self._file:
            ended = ended | self._flags("timeouts", rows)
        elif not limit:
            raise DataError(
                f"{self.path}: timeouts: is missing, and the environment's step limit is unknown",
                "name the environment with --env ADAPTER/NAME",
            )
        ends = [int(row) + 1 for row in np.flatnonzero(ended)]
        if not ends or ends[-1] < rows:
            ends.append(rows)
        if "timeouts" in self._file:
            return ends
        cut: list[int] = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            cut += [*range(start + limit, end, limit), end]
        return cut

    def _flags(self, key: str, rows: int) -> npt.NDArray[np.bool_]:
        """Read flags stored as (rows,) or (rows, 1), bool or number."""
        self._beside(key, rows, ranks=(1, 2))
        values = read_array(self._file[key], self.path)
        if values.size != rows:
            raise DataError(f"{self.path}: {key}: has shape {values.shape}, not one flag a row")
        values = values.reshape(rows)
        odd = np.flatnonzero((values != 0) & (values != 1))
        if odd.size:
            raise DataError(f"{self.path}: {key}, row {odd[0]}: {values[odd[0]]} is no flag")
        return values.astype(bool)

    def outline(self, index: int) -> EpisodeOutline:
        """Say what an episode is without loading its steps."""
        del index
        return EpisodeOutline(self._task, self._label)

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or damaged bytes.
        """
        stop = self._ends[index]
        start = stop - self.lengths[index]
        rewards = self._rows("rewards", start, stop)
        if rewards.size != len(rewards):
            raise DataError(f"{self.path}: rewards, row {start}: has {rewards.shape[1]} columns")
        final = None
        if "next_observations" in self._file:
            final = {OBSERVATION: self._rows("next_observations", stop - 1, stop)[0]}
        return Episode(
            source=self.sources[index],
            observations={OBSERVATION: self._rows("observations", start, stop)},
            actions=self._rows("actions", start, stop),
            rewards=rewards.reshape(-1),
            final_observation=final,
            initial_state=self._initial_state(start),
            task=self._task,
            label=self._label,
            success=self._success(start, stop),
        )

    def close(self) -> None:
        """Close the file."""
        self._datasets.clear()
        self._file.close()

    def _initial_state(self, row: int) -> npt.NDArray[np.float64] | None:
        if not self._state_keys:
            return None
        parts = []
        for key in self._state_keys:
            self._rows(key, row, row + 1)  # refuses NaN and infinity
            parts.append(read_array(self._dataset(key), self.path, row, row + 1).reshape(-1))
        return np.concatenate(parts).astype(np.float64)

    def _success(self, start: int, stop: int) -> bool | None:
        """Tell whether any step is marked as solved; None when the file marks none at all."""
        if not self._success_keys:
            return None
        flags = self._dataset(f"infos/{self._success_keys[0]}")
        return bool(np.any(read_array(flags, self.path, start, stop)))

    def _rows(self, key: str, start: int, stop: int) -> FloatArray:
        return read_rows(self._dataset(key), self.path, start, stop)

    def _dataset(self, key: str) -> h5py.Dataset:
        """Return an array, always the same handle: its chunk cache lives as long as that."""
        if key not in self._datasets:
            self._datasets[key] = self._file[key]
        return self._datasets[key]
