"""Reader of Diffusion Policy's PushT replay buffers (zarr v2, a directory or `.zarr.zip`).

The buffer holds `data/state` (agent x, y; block x, y; block angle), `data/action` (target
position of the agent) and often `data/keypoint`, pixels and radians, and the ends of episodes
in `meta/episode_ends`. The angle wraps, so networks get its sine and cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, FloatArray, SourceSpec
from lwdctl.data.checks import NUMBER_KINDS, choose_keys, finite_rows, observation_specs
from lwdctl.data.merge import EpisodeOutline, MergedReader
from lwdctl.data.reader import ReadOptions
from lwdctl.data.zarr_guard import open_zarr, read_zarr, require_array

TASK = "push_t"
MAX_STEPS = 300
STATE_SIZE = 5
KEYPOINT_SIZE = 18
SIZES = {"agent_position": 2, "block_position": 2, "block_angle_sincos": 2}
ACTION = ActionSpec(
    2, "absolute", "pixels", (0.0, 0.0), (512.0, 512.0), 10.0, reference="agent_position"
)


def open_pusht(paths: Sequence[Path], options: ReadOptions) -> MergedReader:
    """Open one or several PushT replay buffers as one source."""
    return MergedReader(PushTBuffer, paths, options)


class PushTBuffer:
    """One replay buffer; a file reader.

    Args:
        path: The zarr directory or zip file.
        options: What the user asked for; there are no subsets to filter by.

    Raises:
        DataError: The structure is not a PushT buffer's; the message names file and key.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self.sources: Sequence[str]
        self.lengths: Sequence[int]
        if options.filter_key:
            raise DataError(f"{path}: a PushT buffer has no subset '{options.filter_key}'")
        self._label = options.label
        self._group, self._store = open_zarr(path, options.max_bytes)
        try:
            self._scan(options)
        except BaseException:
            self._store.close()
            raise

    def _scan(self, options: ReadOptions) -> None:
        self._state = self._array("data/state", (STATE_SIZE,))
        self._action = self._array("data/action", (ACTION.size,))
        present = dict(SIZES)
        if "data/keypoint" in self._group:
            self._keypoint = self._array("data/keypoint", (9, 2), (KEYPOINT_SIZE,))
            present["keypoint"] = KEYPOINT_SIZE
        # Networks see the state by default; keypoints are stored beside it.
        keys = choose_keys(
            options.observation_keys or tuple(present), tuple(SIZES), tuple(present), str(self.path)
        )
        self._ends = self._read_ends()
        starts = [0, *self._ends[:-1]]
        self.lengths = [end - start for start, end in zip(starts, self._ends, strict=True)]
        self.sources = [
            f"rows {start}:{end}" for start, end in zip(starts, self._ends, strict=True)
        ]
        adapter = options.env.partition("/")[0] or "pusht"
        self.spec = SourceSpec(
            observations=observation_specs(keys, [present[name] for name, _ in keys]),
            action=ACTION,
            env=EnvSpec(adapter, (TASK,), {}, MAX_STEPS),
            labels=(self._label,) if self._label else (),
            source_format="pusht",
        )

    def _array(self, key: str, *shapes: tuple[int, ...]) -> zarr.Array[Any]:
        array = require_array(self._group, key, self.path)
        if array.shape[1:] not in shapes or array.dtype.kind not in NUMBER_KINDS:
            raise DataError(
                f"{self.path}: {key}: has shape {array.shape} of {array.dtype}, "
                f"expected (rows, {', '.join(map(str, shapes[0]))}) numbers"
            )
        if key != "data/state" and array.shape[0] != self._state.shape[0]:
            shorter = min(array.shape[0], self._state.shape[0])
            raise DataError(
                f"{self.path}: {key}, row {shorter}: has {array.shape[0]} rows, but data/state "
                f"has {self._state.shape[0]}"
            )
        return array

    def _read_ends(self) -> list[int]:
        """Return one past the last row of each episode."""
        key = "meta/episode_ends"
        array = require_array(self._group, key, self.path)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(f"{self.path}: {key}: is not a list of row numbers")
        ends = [int(end) for end in self._rows(array, key, 0, array.shape[0])]
        if not ends:
            raise DataError(f"{self.path}: {key}: holds no episodes")
        for row, (previous, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if end <= previous:
                raise DataError(
                    f"{self.path}: {key}, row {row}: episode ends at {end}, not after {previous}"
                )
        total = self._state.shape[0]
        if ends[-1] != total:
            raise DataError(
                f"{self.path}: {key}, row {len(ends) - 1}: last episode ends at {ends[-1]}, but "
                f"data/state has {total} rows"
            )
        return ends

    def outline(self, index: int) -> EpisodeOutline:
        """Say what an episode is without loading its steps."""
        del index
        return EpisodeOutline(TASK, self._label)

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or a damaged chunk.
        """
        stop = self._ends[index]
        start = stop - self.lengths[index]
        state = self._rows(self._state, "data/state", start, stop)
        finite_rows(state, f"{self.path}: data/state", start)
        names = [item.name for item in self.spec.observations]
        action = self._rows(self._action, "data/action", start, stop)
        return Episode(
            source=self.sources[index],
            observations={name: self._observation(name, state, start) for name in names},
            actions=finite_rows(action, f"{self.path}: data/action", start),
            initial_state=state[0].astype(np.float64),
            task=TASK,
            label=self._label,
        )

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _observation(self, name: str, state: npt.NDArray[Any], start: int) -> FloatArray:
        if name == "keypoint":
            rows = self._rows(self._keypoint, "data/keypoint", start, start + len(state))
            rows = rows.reshape(len(rows), KEYPOINT_SIZE)
            return finite_rows(rows, f"{self.path}: data/keypoint", start)
        if name == "block_angle_sincos":
            angle = state[:, 4].astype(np.float64)
            return np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
        columns = slice(0, 2) if name == "agent_position" else slice(2, 4)
        return np.ascontiguousarray(state[:, columns], dtype=np.float32)

    def _rows(self, array: zarr.Array[Any], key: str, start: int, stop: int) -> npt.NDArray[Any]:
        return read_zarr(array, key, self.path, start, stop)
