"""Files of finished demonstrations, so that an interrupted collection goes on after them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.files import sealed, unsealed, write_durably
from lwdctl.artifacts.manifest import plain
from lwdctl.core.records import Episode

SUFFIX = ".demonstration"
_TEXTS = ("source", "model", "task", "label", "success", "seed")
_ARRAYS = ("actions", "rewards", "initial_state")
_KEYED = ("observations", "final_observation")


@dataclass(frozen=True)
class Demonstration:
    """An episode and, where known, the simulator's state at each action (time, state), float64."""

    episode: Episode
    states: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class Attempt:
    """One run of a task's expert: what is asked of a simulator, and what fixes the outcome."""

    task: str
    seed: int
    operator: str = ""


class FinishedDemonstrations:
    """Keeps every demonstration as a file from the moment it is finished.

    A file is a SHA-256 and an npz archive. A damaged one does not count, nor does one of other
    software.

    Args:
        folder: Where the files go, or None to keep nothing.
        software: What records the demonstrations.
    """

    def __init__(self, folder: Path | None, software: Mapping[str, Any]) -> None:
        self._folder, self._software = folder, plain(software)

    def load(self, attempt: Attempt) -> Demonstration | None:
        """Return what an attempt gave, or None where it is not finished."""
        path = self._path(attempt)
        if path is None or not path.exists():
            return None
        content = unsealed(path.read_bytes())
        if content is None:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        text = json.loads(arrays.pop("text").tobytes())
        if (text.pop("software"), text.pop("attempt")) != (self._software, asdict(attempt)):
            return None
        parts: dict[str, Any] = {part: arrays.get(part) for part in _ARRAYS}
        for part in _KEYED:
            own = [name for name in arrays if name.startswith(f"{part}/")]
            parts[part] = {name.removeprefix(f"{part}/"): arrays[name] for name in own}
        return Demonstration(Episode(**text, **parts), arrays.get("states"))

    def save(self, attempt: Attempt, found: Demonstration) -> None:
        """Write what an attempt gave."""
        path = self._path(attempt)
        if path is None:
            return
        episode = found.episode
        text = {name: getattr(episode, name) for name in _TEXTS}
        text |= {"software": self._software, "attempt": asdict(attempt)}
        arrays = {part: getattr(episode, part) for part in _ARRAYS} | {"states": found.states}
        for part in _KEYED:
            arrays |= {f"{part}/{key}": rows for key, rows in getattr(episode, part).items()}
        arrays["text"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
        archive = io.BytesIO()
        np.savez(archive, **{name: rows for name, rows in arrays.items() if rows is not None})
        write_durably(path, sealed(archive.getvalue()))

    def remove(self) -> None:
        """Remove all files: what was begun cannot be finished."""
        for path in self._folder.iterdir() if self._folder else ():
            path.unlink()

    def _path(self, attempt: Attempt) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{attempt.task}-{attempt.operator}-{attempt.seed}{SUFFIX}"
