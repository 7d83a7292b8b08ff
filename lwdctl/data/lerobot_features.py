"""Which columns of a LeRobot dataset are the action and the observations, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwdctl.artifacts.snippets import RESERVED_KEYS
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, Finding
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.checks import without_dropped
from lwdctl.data.lerobot_meta import Feature, Info
from lwdctl.data.lerobot_rows import DONE, EPISODE, FRAME, REWARD, SUCCESS, TASK, TIME
from lwdctl.data.parquet_files import is_whole, rank_of

ACTION_KEYS = ("action", "actions")
BOOKKEEPING = (EPISODE, FRAME, TASK, TIME, "index")
MAX_RANK = 2
MAX_COMPONENTS = 4096
"""Components of the largest array that is an observation by default; larger ones are images."""
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
        default = [
            name
            for name in named or others
            if not name.startswith(("next.", "action"))
            and math.prod(self.feature(name).shape) <= MAX_COMPONENTS
        ]
        return without_dropped(self.config.drop, default, f"{self.path}: features")

    def findings(self, used: Sequence[str], action: str) -> Iterator[Finding]:
        """Yield what is not read and why, and what is assumed of the action.

        Args:
            used: Columns that are read.
            action: The action's.
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
        motions, declared = self._motions(action), self.config.actions
        if declared == "recorded" and motions:
            yield Finding(
                "semantics", "note", f"components are called {', '.join(motions)}: read as motions",
                f"{self.path}: {action}", "--actions recorded-absolute declares targets",
            )  # fmt: skip
        elif declared == "recorded":
            yield Finding(
                "semantics", "warning",
                "the dataset does not say whether actions are targets or motions: read as targets,"
                " as LeRobot's robots record them", f"{self.path}: {action}",
                "--actions delta declares motions, --actions recorded-absolute targets",
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
        return _NOT_DEFAULT

    def action_spec(self, key: str, size: int) -> ActionSpec:
        """Describe the action: targets, unless the user or its components' names say motions."""
        names, declared = self.feature(key).names, self.config.actions
        delta = declared == "delta" or (declared == "recorded" and self._motions(key))
        return ActionSpec(
            size,
            "delta" if delta else "absolute",
            "unknown",
            (),
            (),
            self.info.fps,
            gripper=tuple(at for at, name in enumerate(names[:size]) if "gripper" in name.lower()),
            limits="",
        )

    def _motions(self, key: str) -> list[str]:
        return [name for name in self.feature(key).names if "delta" in name.lower()]
