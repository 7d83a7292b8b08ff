"""Which columns of a LeRobot dataset are the action and the observations, and what is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwdctl.artifacts.snippet_arrays import RESERVED_KEYS
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, EnvSpec, Finding
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.checks import without_dropped
from lwdctl.data.files.array_kinds import why_not_observed
from lwdctl.data.files.contents import ArrayEntry
from lwdctl.data.files.parquet_files import is_whole, rank_of
from lwdctl.data.readers.lerobot_meta import Feature, Info
from lwdctl.data.readers.lerobot_rows import DONE, EPISODE, FRAME, REWARD, SUCCESS, TASK, TIME
from lwdctl.data.readers.named_environments import describe_requested

ACTION_KEYS = ("action", "actions")
BOOKKEEPING = (EPISODE, FRAME, TASK, TIME, "index")
MAX_RANK = 2
_VISUAL = ("video", "image")
_NOT_DEFAULT = "not in the default choice"


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset's data files.

    Attributes:
        path: The dataset, for error messages.
        types: Type of every column of the first data file.
        info: What the metadata say of them.
        config: What the user requests.
    """

    path: Path
    types: Mapping[str, Any]
    info: Info
    config: IngestConfig

    def feature(self, name: str) -> Feature:
        """Return what the metadata says of a column; empty where it says nothing."""
        return self.info.features.get(name, Feature("", (), ()))

    def vectors(self) -> list[str]:
        """Return the columns of numbers or of at most two-dimensional arrays."""
        return [
            name
            for name, kind in self.types.items()
            if (rank := rank_of(kind)) is not None
            and rank <= MAX_RANK
            and name not in BOOKKEEPING
            and self.feature(name).dtype not in _VISUAL
        ]

    def action_key(self) -> str:
        """Return the column of the actions.

        Raises:
            DataError: There is none, or it does not hold vectors of real numbers.
        """
        vectors, requested = self.vectors(), self.config.action_key
        key = requested or next((name for name in ACTION_KEYS if name in self.types), "")
        if key not in vectors:
            hint = f"--action-key NAME chooses one of: {', '.join(vectors)}" if vectors else ""
            if requested:
                hint = did_you_mean(key, vectors)
            held = f"holds {self.types[key]}, no vectors" if key in self.types else "is missing"
            raise DataError(f"{self.path}: {key or ACTION_KEYS[0]}: {held}", hint)
        if is_whole(self.types[key]):
            raise DataError(
                f"{self.path}: {key}: holds {self.types[key]}: discrete actions are not regressed",
                "--action-key NAME chooses another column",
            )
        return key

    def default_keys(self, action: str) -> tuple[str, ...]:
        """Return the observation keys that are stored by default.

        They are the vectors whose name begins with `observation`; where there are none, all that
        are neither an action nor the outcome of a step.

        Raises:
            DataError: One to drop is not among them.
        """
        others = [name for name in self.vectors() if name != action and name not in RESERVED_KEYS]
        named = [name for name in others if name.startswith("observation")]
        default = [name for name in named or others if not self._why_not(name)]
        return without_dropped(self.config.drop, default, f"{self.path}: features")

    def _why_not(self, name: str) -> str:
        """Return why a vector is not in the default choice, "" if it can be."""
        if name.startswith(("next.", "action")):
            return "not observed at its step"
        return why_not_observed(name, ArrayEntry((1, *self.feature(name).shape), "float32"))

    def left_out(self, used: Sequence[str]) -> Iterator[Finding]:
        """Yield what is not read and why.

        Args:
            used: Columns that are read.
        """
        reasons: dict[str, list[str]] = {}
        for name in dict.fromkeys([*self.types, *self.info.features]):
            if name not in (*used, *BOOKKEEPING, REWARD, DONE, SUCCESS):
                reasons.setdefault(self._reason(name), []).append(name)
        if reasons:
            text = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
            yield Finding(
                "left-out", "note", f"not read: {text}", str(self.path),
                "--observation-keys NAME,... chooses" if _NOT_DEFAULT in reasons else "",
                {"reasons": reasons},
            )  # fmt: skip

    def _reason(self, name: str) -> str:
        dtype = self.feature(name).dtype
        if dtype in _VISUAL:
            return f"{dtype}s are not read"
        if name not in self.types:
            return "no such column in the data files"
        if name not in self.vectors():
            return f"holds {self.types[name]}, not vectors"
        if name in self.config.drop:
            return "--drop"
        return self._why_not(name) or _NOT_DEFAULT

    def describe_action(self, key: str, size: int) -> tuple[ActionSpec, EnvSpec, list[Finding]]:
        """Describe action and environment as the user requests them.

        Where neither the user nor the environment says what the actions are, they are targets,
        unless the names of their components say motions. Steps per second are those of the dataset.

        Raises:
            DataError: The environment takes actions of another size, or the actions cannot be
                converted.
        """
        where, names = f"{self.path}: {key}", self.feature(key).names[:size]
        action, env, found = describe_requested(self.config, size, where)
        motions = [name for name in names if "delta" in name.lower()]
        if found and motions:
            message = f"components are called {', '.join(motions)}: read as motions"
            hint = "--actions recorded-absolute declares targets"
            action = replace(action, semantics="delta")
            found = [Finding("semantics", "note", message, where, hint)]
        gripper = tuple(at for at, name in enumerate(names) if "gripper" in name.lower())
        rate = self.info.fps or action.control_rate
        return replace(action, control_rate=rate, gripper=gripper or action.gripper), env, found
