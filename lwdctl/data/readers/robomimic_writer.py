"""Writing demonstrations as one HDF5 file in robomimic's layout.

The layout is that of robomimic 0.3 (`data/demo_N/{obs,next_obs,actions,rewards,dones}`,
`data.attrs["env_args"]`, `mask/*`), so robomimic's own `SequenceDataset` reads the file.
What robomimic's layout has no place for is stored beside it: the attributes `task`, `label`,
`seed` and `success` of each demonstration, and the dataset `initial_state` where no `states` are
known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import DataError
from lwdctl.core.records import Episode
from lwdctl.data.checks import check_rows
from lwdctl.data.files.guarded_file import GuardedFile

LEVELS = ("better", "okay", "worse")
"""Levels of skill, in the names of operators and masks."""
DEMONSTRATIONS_PAYLOAD = "demonstrations.hdf5"
"""Name of the file in a `demonstrations` artifact."""


class RobomimicWriter:
    """Streams episodes into a new file; usable as a context manager.

    Leaving the context with an exception removes the file.

    Args:
        path: File to create; it must not exist yet.
        env_args: `env_name`, `env_version`, `type` and `env_kwargs`, JSON-ready.

    Raises:
        DataError: The file exists, or `env_args` is not JSON.
    """

    def __init__(self, path: Path, env_args: Mapping[str, Any]) -> None:
        import h5py

        try:
            text = json.dumps(dict(env_args), indent=4)
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: env_args is not JSON ({error})") from None
        self._path = path
        try:
            self._bytes = GuardedFile(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be created ({error})") from None
        # Newer file versions hold attributes beyond 64 KiB, which a model text can be.
        self._file = h5py.File(self._bytes, "w", libver=("v110", "v110"))
        self._data = self._file.create_group("data")
        self._data.attrs["env_args"] = text
        self._data.attrs["total"] = 0
        self._total = 0
        self._masks: dict[str, list[str]] = {}
        self._sizes: dict[str, int] = {}

    def write(self, episode: Episode, states: npt.NDArray[np.float64] | None = None) -> None:
        """Append one episode as `demo_N`, N counting from 0.

        The label becomes a mask, and so does the level in an operator's name
        (`better_operator_1` is also in `better`).

        Args:
            episode: The demonstration.
            states: (time, state), the simulator's state at each action, or None.

        Raises:
            DataError: No steps, unequal lengths, or sizes that differ from the first episode's.
            OSError: The disk is full.
        """
        self._check(episode, states)
        name = f"demo_{len(self._data)}"
        group = self._data.create_group(name)
        group.create_dataset("actions", data=episode.actions)
        dones = np.zeros(episode.length, dtype=np.int8)
        dones[-1] = 1
        group.create_dataset("dones", data=dones)
        if episode.rewards is not None:
            group.create_dataset("rewards", data=episode.rewards)
        for key, values in episode.observations.items():
            group.create_dataset(f"obs/{key}", data=values)
        for key, last in (episode.final_observation or {}).items():
            later = [*episode.observations[key][1:], np.asarray(last, dtype=np.float32)]
            group.create_dataset(f"next_obs/{key}", data=np.stack(later))
        if states is not None:
            group.create_dataset("states", data=states)
        elif episode.initial_state is not None:
            group.create_dataset("initial_state", data=episode.initial_state)
        group.attrs["num_samples"] = episode.length
        texts = {"model_file": episode.model, "task": episode.task, "label": episode.label}
        group.attrs.update({key: text for key, text in texts.items() if text})
        if episode.seed is not None:
            group.attrs["seed"] = episode.seed
        if episode.success is not None:
            group.attrs["success"] = bool(episode.success)
        self._total += episode.length
        self._data.attrs["total"] = self._total
        for mask in _masks(episode):
            self._masks.setdefault(mask, []).append(name)
        self._bytes.check()

    def close(self) -> None:
        """Write the masks and close the file."""
        if not self._file:
            return
        for mask, names in self._masks.items():
            self._file.create_dataset(f"mask/{mask}", data=np.asarray(names, dtype="S"))
        self._file.close()
        self._bytes.close()
        self._bytes.check()

    def __enter__(self) -> RobomimicWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close the file, and remove it when an exception ended the context."""
        if kind is None:
            self.close()
            return
        self._file.close()
        self._bytes.close()
        self._path.unlink(missing_ok=True)

    def _check(self, episode: Episode, states: npt.NDArray[np.float64] | None) -> None:
        where = f"{self._path}: {episode.source or 'episode'}"
        if episode.length == 0:
            raise DataError(f"{where}: has no steps")
        arrays = {**episode.observations, "action": episode.actions}
        sizes = {key: int(values.shape[1]) for key, values in arrays.items()}
        rows = {key: len(values) for key, values in arrays.items()}
        if states is not None:
            rows["states"] = len(states)
        for key, found in rows.items():
            check_rows(found, episode.length, f"{where}: {key}", "actions")
        self._sizes = self._sizes or sizes
        if sizes != self._sizes:
            raise DataError(f"{where}: sizes {sizes} differ from the first episode's {self._sizes}")


def _masks(episode: Episode) -> list[str]:
    level, operator, _ = episode.label.partition("_operator_")
    split = {"validation": "valid"}.get(episode.split, episode.split)
    names = (episode.label, level if operator and level in LEVELS else "", split)
    return [name for name in names if name]
