"""Reader of Diffusion Policy's PushT replay buffers (zarr v2, a directory or `.zarr.zip`).

The buffer holds `data/state` (agent x, y; block x, y; block angle), `data/action` (target
position of the agent) and often `data/keypoint`, in pixels and radians, and the ends of episodes
in `meta/episode_ends`. The angle wraps, so networks get its sine and cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import EnvSpec, Episode, Finding, FloatArray, SourceSpec
from lwdctl.core.simulator_facts import (
    PUSHT_ACTION,
    PUSHT_MAX_STEPS,
    PUSHT_OBSERVATIONS,
    PUSHT_STATE_SIZE,
    PUSHT_TASK,
)
from lwdctl.data.checks import (
    NUMBER_KINDS,
    check_rows,
    choose_observations,
    closed_on_error,
    finite_rows,
)
from lwdctl.data.contents import Contents
from lwdctl.data.reader import (
    check_no_subset,
    outlines_of_rows,
    requested_env,
)
from lwdctl.data.zarr_files import open_zarr, read_zarr_rows, zarr_array_at

SIZES = {item.name: item.size for item in PUSHT_OBSERVATIONS}
DEFAULT = tuple(item.name for item in PUSHT_OBSERVATIONS if item.network)


class PushTBuffer:
    """One replay buffer; a `FileReader`.

    Raises:
        DataError: The structure is not a PushT buffer's; the message names file and key.
    """

    generic = False

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a store is recognized as a PushT buffer, or ""."""
        state, action = contents.arrays.get("data/state"), contents.arrays.get("data/action")
        if contents.container != "zarr" or state is None or action is None:
            return ""
        fits = state.shape[1:] == (PUSHT_STATE_SIZE,) and action.shape[1:] == (PUSHT_ACTION.size,)
        return "data/state and data/action of PushT's sizes" if fits else ""

    def __init__(self, path: Path, config: IngestConfig) -> None:
        self.path = path
        self.findings: list[Finding] = []
        check_no_subset(config, path, "a PushT buffer")
        self._group, self._store = open_zarr(path, config.max_bytes)
        with closed_on_error(self._store):
            self._scan(config)

    def _scan(self, config: IngestConfig) -> None:
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._open("data/state", (PUSHT_STATE_SIZE,))
        self._open("data/action", (PUSHT_ACTION.size,))
        present = DEFAULT
        if "data/keypoint" in self._group:
            self._open("data/keypoint", (9, 2), (SIZES["keypoint"],))
            present = (*DEFAULT, "keypoint")
        # Only the state is a network input by default; keypoints are stored beside it.
        observations = choose_observations(
            config.observation_keys or present,
            DEFAULT,
            {name: SIZES[name] for name in present},
            str(self.path),
        )
        self._ends = self._read_ends()
        self.episodes = outlines_of_rows(self._ends, PUSHT_TASK, config.label or "")
        adapter, _ = requested_env(config)
        self.spec = SourceSpec(
            observations=observations,
            action=PUSHT_ACTION,
            env=EnvSpec(adapter or "pusht", (PUSHT_TASK,), {}, PUSHT_MAX_STEPS),
            labels=(),
            source_format="pusht",
        )

    def _open(self, key: str, *shapes: tuple[int, ...]) -> None:
        """Open an array whose rows have one of the shapes, one row per step."""
        array = zarr_array_at(self._group, key, self.path)
        if array.shape[1:] not in shapes or array.dtype.kind not in NUMBER_KINDS:
            raise DataError(
                f"{self.path}: {key}: has shape {array.shape} of {array.dtype}, "
                f"expected (rows, {', '.join(map(str, shapes[0]))}) numbers"
            )
        self._arrays[key] = array
        rows = self._arrays["data/state"].shape[0]
        check_rows(array.shape[0], rows, f"{self.path}: {key}", "data/state")

    def _read_ends(self) -> list[int]:
        """Return one past the last row of each episode."""
        key = "meta/episode_ends"
        array = self._arrays[key] = zarr_array_at(self._group, key, self.path)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(f"{self.path}: {key}: is not a list of row numbers")
        ends = [int(end) for end in self._stored(key, 0, array.shape[0])]
        if not ends:
            raise DataError(f"{self.path}: {key}: holds no episodes")
        for row, (previous, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if end <= previous:
                raise DataError(
                    f"{self.path}: {key}, row {row}: episode ends at {end}, not after {previous}"
                )
        total = self._arrays["data/state"].shape[0]
        if ends[-1] != total:
            raise DataError(
                f"{self.path}: {key}, row {len(ends) - 1}: last episode ends at {ends[-1]}, but "
                f"data/state has {total} rows"
            )
        return ends

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or a damaged chunk.
        """
        outline, stop = self.episodes[index], self._ends[index]
        start = stop - outline.length
        # The angle and the initial state are computed from the stored float64.
        state = self._stored("data/state", start, stop)
        rows = finite_rows(state, f"{self.path}: data/state", start)
        angle = state[:, 4].astype(np.float64)
        observations = {
            "agent_position": rows[:, :2].copy(),
            "block_position": rows[:, 2:4].copy(),
            "block_angle_sincos": np.stack([np.sin(angle), np.cos(angle)], 1).astype(np.float32),
        }
        names = [item.name for item in self.spec.observations]
        if "keypoint" in names:
            observations["keypoint"] = self._rows("data/keypoint", start, stop)
        return Episode(
            source=outline.source,
            observations={name: observations[name] for name in names},
            actions=self._rows("data/action", start, stop),
            initial_state=state[0].astype(np.float64),
        )

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _rows(self, key: str, start: int, stop: int) -> FloatArray:
        """Return rows (time, size) as finite float32."""
        rows = self._stored(key, start, stop).reshape(stop - start, -1)
        return finite_rows(rows, f"{self.path}: {key}", start)

    def _stored(self, key: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return the rows `start:stop` as they are stored."""
        return read_zarr_rows(self._arrays[key], start, stop, f"{self.path}: {key}")
