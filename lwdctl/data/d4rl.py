"""Reader of D4RL's flat HDF5 files; d4rl itself is not needed.

All episodes lie end to end in `observations`, `actions`, `rewards`, `terminals` and
`timeouts`. An episode ends at a row with either flag. Rows after the last flag are kept as an
episode of their own, because their steps are as good as any. Files without `timeouts` (older
ones) are also cut at the environment's step limit.
"""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import numpy.typing as npt

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import Episode, FloatArray, SourceSpec
from lwdctl.core.simulator_facts import OBSERVATION
from lwdctl.data.checks import check_components, choose_observations
from lwdctl.data.contents import Contents
from lwdctl.data.gym_envs import (
    SAMPLE,
    describe_env,
    gym_action,
    level_of,
    read_state,
    state_arrays,
)
from lwdctl.data.hdf5 import Hdf5Reader, array_at, read_array, read_rows, text_of
from lwdctl.data.reader import check_no_subset, outlines_of_rows

SUCCESS_KEYS = ("success", "goal_achieved")


class D4rlFile(Hdf5Reader):
    """One D4RL file; a `FileReader`.

    The environment comes from `--env`, `metadata/env`, or the file's name; the behavior label
    from `--label`, `metadata/level`, or the file's name. The initial state is `infos/qpos`,
    `infos/qvel` and what else the environment needs (`board_pos`), concatenated;
    `EnvSpec.settings["initial_state"]` has the sizes.
    """

    generic = False

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a file is recognized as D4RL's, or ""."""
        keys = ("observations", "actions", "terminals")
        if contents.container == "hdf5" and all(key in contents.arrays for key in keys):
            return ", ".join(keys)
        return ""

    def _scan(self, config: IngestConfig) -> None:
        check_no_subset(config, self.path, "a D4RL file")
        observations = array_at(self._file, "observations")
        # One handle per array: its chunk cache lives as long as the handle.
        self._arrays: dict[str, h5py.Dataset] = {"observations": observations}
        rows, size = observations.shape
        if rows == 0:
            raise DataError(f"{self.path}: observations: has no rows")
        action_size = self._open("actions").shape[1]
        self._open("rewards", ranks=(1, 2))
        if "next_observations" in self._file:
            found = self._open("next_observations").shape[1]
            check_components(found, size, f"{self.path}: next_observations")
        env, spec = describe_env(
            config,
            self._metadata("env"),
            size,
            f"{self.path}: observations",
            sample=lambda: self._rows("observations", 0, min(rows, SAMPLE)),
            file_name=self.path.stem,
        )
        if env is not None:
            check_components(action_size, env.action_size, f"{self.path}: actions")
        self._state, layout = state_arrays(self._file, env, rows=rows, reference="observations")
        found = (f"infos/{key}" for key in SUCCESS_KEYS if f"infos/{key}" in self._file)
        self._success = next(found, "")
        if self._success:
            self._open(self._success, ranks=(1, 2))
        label = config.label or level_of(self._metadata("level") or self.path.stem)
        self._ends = self._find_ends(rows, spec.max_steps)
        self.episodes = outlines_of_rows(self._ends, "".join(spec.tasks), label)
        self.spec = SourceSpec(
            observations=choose_observations(
                config.observation_keys, (OBSERVATION,), {OBSERVATION: size}, str(self.path)
            ),
            action=gym_action(env, action_size),
            env=replace(spec, settings={**spec.settings, **layout}),
            labels=(),
            source_format="d4rl",
        )

    def _open(self, key: str, ranks: tuple[int, ...] = (2,)) -> h5py.Dataset:
        """Return an array that must have as many rows as the observations."""
        rows = len(self._arrays["observations"])
        array = array_at(self._file, key, ranks=ranks, rows=rows, reference="observations")
        return self._arrays.setdefault(key, array)

    def _metadata(self, name: str) -> str:
        item = self._file.get(f"metadata/{name}")
        return text_of(item[()]) if isinstance(item, h5py.Dataset) and item.shape == () else ""

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
        """Read flags stored as (rows,) or (rows, 1), as bool or number."""
        values = read_array(self._open(key, ranks=(1, 2)))
        if values.size != rows:
            raise DataError(f"{self.path}: {key}: has shape {values.shape}, not one flag a row")
        values = values.reshape(rows)
        odd = np.flatnonzero((values != 0) & (values != 1))
        if odd.size:
            raise DataError(
                f"{self.path}: {key}, row {odd[0]}: {values[odd[0]]} is not a flag (0 or 1)"
            )
        return values.astype(bool)

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or damaged bytes.
        """
        outline, stop = self.episodes[index], self._ends[index]
        start = stop - outline.length
        rewards = self._rows("rewards", start, stop)
        if rewards.size != len(rewards):
            raise DataError(f"{self.path}: rewards, row {start}: has {rewards.shape[1]} columns")
        final = None
        if "next_observations" in self._file:
            final = {OBSERVATION: self._rows("next_observations", stop - 1, stop)[0]}
        success = None
        if self._success:
            success = bool(np.any(read_array(self._arrays[self._success], start, stop)))
        return Episode(
            source=outline.source,
            observations={OBSERVATION: self._rows("observations", start, stop)},
            actions=self._rows("actions", start, stop),
            rewards=rewards.reshape(-1),
            final_observation=final,
            initial_state=read_state(self._state, start),
            success=success,
        )

    def _rows(self, key: str, start: int, stop: int) -> FloatArray:
        return read_rows(self._arrays[key], start, stop)
