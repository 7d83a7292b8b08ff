"""Reader of Diffusion Policy's PushT replay buffers (zarr v2, a directory or `.zarr.zip`).

The buffer holds `data/state` (agent x, y; block x, y; block angle), `data/action` (target
position of the agent) and often `data/keypoint`, in pixels and radians, and the ends of episodes
in `meta/episode_ends`. The angle wraps, so networks get its sine and cosine.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import EnvSpec, Episode, SourceSpec
from lwdctl.core.simulator_facts import (
    PUSHT_ACTION,
    PUSHT_MAX_STEPS,
    PUSHT_OBSERVATIONS,
    PUSHT_STATE_SIZE,
    PUSHT_TASK,
)
from lwdctl.data.checks import check_rows, choose_observations, finite_rows, without_dropped
from lwdctl.data.files.contents import Contents
from lwdctl.data.files.zarr_files import ZarrFile
from lwdctl.data.named_environments import requested_env
from lwdctl.data.reader import EPISODE_OPTIONS, EpisodeOutline
from lwdctl.data.readers.array_reader import ArrayReader
from lwdctl.data.readers.episode_bounds import bounds_of_ends

ENDS = "meta/episode_ends"
SIZES = {item.name: item.size for item in PUSHT_OBSERVATIONS}
DEFAULT = tuple(item.name for item in PUSHT_OBSERVATIONS if item.network)


class PushTBuffer(ArrayReader):
    """One replay buffer; a `FileReader`.

    Raises:
        DataError: The structure is not a PushT buffer's; the message names file and key.
    """

    opener = ZarrFile
    what = "a PushT buffer"
    unused = ("action_key", *EPISODE_OPTIONS, "terminals", "label_from", "task_from")
    array_uses: ClassVar = {"data/state": "observation"}

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a store is recognized as a PushT buffer, or ""."""
        state, action = contents.arrays.get("data/state"), contents.arrays.get("data/action")
        if contents.container != "zarr" or state is None or action is None:
            return ""
        fits = state.shape[1:] == (PUSHT_STATE_SIZE,) and action.shape[1:] == (PUSHT_ACTION.size,)
        return "data/state and data/action of PushT's sizes" if fits else ""

    def _scan(self, config: IngestConfig) -> None:
        present, arrays = DEFAULT, ["data/state", "data/action"]
        self._check_shape("data/state", (PUSHT_STATE_SIZE,))
        self._check_shape("data/action", (PUSHT_ACTION.size,))
        if "data/keypoint" in self._file.arrays:
            self._check_shape("data/keypoint", (9, 2), (SIZES["keypoint"],))
            present = (*DEFAULT, "keypoint")
            arrays.append("data/keypoint")
        # Only the state is a network input by default; keypoints are stored beside it.
        sizes = {name: SIZES[name] for name in present}
        observations = choose_observations(
            config.observation_keys or without_dropped(config.drop, present, str(self.path)),
            DEFAULT,
            sizes,
            str(self.path),
        )
        self._file.open(arrays)
        self._file.open((), (ENDS,))
        rows = self._file.arrays["data/state"].shape[0]
        self._bounds, found = bounds_of_ends(self._file.rows(ENDS), rows, f"{self.path}: {ENDS}")
        self.findings += self._file.findings
        self._list_left_out(arrays)
        self.findings += found
        adapter, requested = requested_env(config)
        task = requested if requested and adapter != "pusht" else PUSHT_TASK
        self.episodes = [
            EpisodeOutline(rows.name, rows.stop - rows.start, task, config.label or "")
            for rows in self._bounds
        ]
        steps = config.max_steps or PUSHT_MAX_STEPS
        self.spec = SourceSpec(
            observations=observations,
            action=PUSHT_ACTION,
            env=EnvSpec(adapter or "pusht", (task,), {}, steps),
            labels=(),
            source_format="pusht",
        )

    def _check_shape(self, key: str, *shapes: tuple[int, ...]) -> None:
        """Check that the rows of an array have one of the shapes, one row per step."""
        array = self._file.arrays.get(key)
        if array is None:
            raise DataError(f"{self.path}: {key}: is missing")
        if array.shape[1:] not in shapes or not array.shape or not array.is_numeric:
            raise DataError(
                f"{self.path}: {key}: has shape {array.shape} of {array.dtype}, "
                f"expected (rows, {', '.join(map(str, shapes[0]))}) numbers"
            )
        rows = self._file.arrays["data/state"].shape[0]
        check_rows(array.shape[0], rows, f"{self.path}: {key}", "data/state")

    def _list_left_out(self, arrays: list[str]) -> None:
        """Say which arrays are not read."""
        rest = [key for key in self._file.arrays if key not in (*arrays, ENDS)]
        if rest:
            message = f"not part of a PushT buffer's state: {', '.join(rest)}"
            self._report("left-out", "", message, keys=rest)

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or a damaged chunk.
        """
        start, stop = self._bounds[index]
        # The angle and the initial state are computed from the stored float64.
        state = self._file.rows("data/state", start, stop)
        rows = finite_rows(state, f"{self.path}: data/state", start, self.findings)
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
            source=self.episodes[index].source,
            observations={name: observations[name] for name in names},
            actions=self._rows("data/action", start, stop),
            initial_state=state[0].astype(np.float64),
        )
