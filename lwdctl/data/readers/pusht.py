"""Reader of Diffusion Policy's PushT replay buffers (zarr v2, a directory or `.zarr.zip`).

The buffer holds `data/state` (agent x, y; block x, y; block angle), `data/action` (target
position of the agent) and often `data/keypoint`, in pixels and radians, and the ends of episodes
in `meta/episode_ends`. The angle wraps, so networks get its sine and cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

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
    check_rows,
    choose_observations,
    closed_on_error,
    finite_rows,
    without_dropped,
)
from lwdctl.data.files.contents import Contents
from lwdctl.data.files.zarr_files import ZarrFile
from lwdctl.data.named_environments import requested_env
from lwdctl.data.reader import EpisodeOutline, check_no_subset, check_unused
from lwdctl.data.readers.episode_bounds import bounds_of_ends, names_of

ENDS = "meta/episode_ends"
SIZES = {item.name: item.size for item in PUSHT_OBSERVATIONS}
DEFAULT = tuple(item.name for item in PUSHT_OBSERVATIONS if item.network)


class PushTBuffer:
    """One replay buffer; a `FileReader`.

    Raises:
        DataError: The structure is not a PushT buffer's; the message names file and key.
    """

    generic = False
    array_uses: ClassVar = {"data/state": "observation"}

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
        check_no_subset(config, path, "a PushT buffer")
        check_unused(
            config, path, "a PushT buffer",
            "action_key", "episode_ends", "terminals_key", "lengths_key", "terminals",
            "label_from", "task_from",
        )  # fmt: skip
        self._file = ZarrFile(path, config.max_bytes)
        with closed_on_error(self._file):
            self._scan(config)

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
        self.findings: list[Finding] = [*self._file.findings, *self._left_out(arrays), *found]
        adapter, requested = requested_env(config)
        task = requested if requested and adapter != "pusht" else PUSHT_TASK
        self.episodes = [
            EpisodeOutline(name, stop - start, task, config.label or "")
            for name, (start, stop) in zip(names_of(self._bounds), self._bounds, strict=True)
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

    def _left_out(self, arrays: list[str]) -> list[Finding]:
        """Return the finding of arrays that are not read."""
        rest = [key for key in self._file.arrays if key not in (*arrays, ENDS)]
        if not rest:
            return []
        message = f"not part of a PushT buffer's state: {', '.join(rest)}"
        return [Finding("left-out", "note", message, str(self.path), values={"keys": rest})]

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

    def close(self) -> None:
        """Close the store."""
        self._file.close()

    def _rows(self, key: str, start: int, stop: int) -> FloatArray:
        """Return rows (time, size) as finite float32."""
        rows = self._file.rows(key, start, stop).reshape(stop - start, -1)
        return finite_rows(rows, f"{self.path}: {key}", start, self.findings)
