"""The records that packages exchange: descriptions of data and environments, and episodes.

Axis names used throughout: batch, time, obs, action, latent, weight, episode, env.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from lwdctl.core.errors import ArtifactError
from lwdctl.core.untrusted import typed

FloatArray = npt.NDArray[np.float32]

_Size = Annotated[int, Meta(ge=0, le=10**8)]
_AGAIN = "copy it again from where it was made, or make it again"

LIMIT_MARGIN = 0.05
"""Fraction of the recorded range by which limits from the data exceed it on either side: a policy
may reach a little further than the demonstrations, and not much, as nobody has tried it."""
CONSTANT_MARGIN = 0.05
"""The same where a component is constant: a fraction of its magnitude, of 1 at least."""
RELATIVE = "action_relative"
RESERVED_KEYS = ("action", RELATIVE, "reward")
"""Columns of a snippet store that no observation may be called after."""


@dataclass(frozen=True)
class ObservationSpec:
    """One named observation array.

    Attributes:
        name: Key, the same in the snippet store and in the environment adapter.
        size: Number of components.
        network: Whether networks see it by default.
    """

    name: str
    size: _Size
    network: bool = True


UNKNOWN_UNITS = "unknown"
"""Units of an action whose source does not say what it means."""


@dataclass(frozen=True)
class ActionSpec:
    """The meaning of an action vector.

    Attributes:
        size: Number of components.
        semantics: `"absolute"` (a target), `"delta"` (a motion) or `"torque"`.
        units: Human-readable units (`"pixels"`, `"normalized"`).
        low: Smallest value per component the environment accepts.
        high: Largest value per component the environment accepts.
        control_rate: Actions per second in hertz, 0 when unknown.
        reference: For absolute targets, the observation key of the position that they command,
            in the same units and of the same size (`"agent_position"`), else "".
        gripper: Components that command a gripper: a state to hold, also where the others are
            motions.
        limits: Where `low` and `high` come from: `"environment"`, `"file"`, `"option"` or
            `"data"` (the recorded range with a margin). A reader whose source gives none leaves
            `low` and `high` empty and this "": they then come from the data.
    """

    size: _Size
    semantics: str
    units: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    control_rate: float = 0.0
    reference: str = ""
    gripper: tuple[_Size, ...] = ()
    limits: str = "environment"

    def unlimited(self) -> ActionSpec:
        """Return this action without limits, so that those of the data are taken."""
        return replace(self, low=(), high=(), limits="")

    def limited_by(
        self, smallest: npt.NDArray[np.float64], largest: npt.NDArray[np.float64]
    ) -> ActionSpec:
        """Return this action with limits from the data: the recorded range with a margin.

        Args:
            smallest: (action,) smallest recorded values.
            largest: (action,) largest recorded values.
        """
        margin = LIMIT_MARGIN * (largest - smallest)
        constant = CONSTANT_MARGIN * np.maximum(np.abs(largest), 1)
        margin = np.where(margin > 0, margin, constant)
        low, high = tuple((smallest - margin).tolist()), tuple((largest + margin).tolist())
        return replace(self, low=low, high=high, limits="data")


@dataclass(frozen=True)
class EnvSpec:
    """How to rebuild the environment that the data was recorded in.

    Attributes:
        adapter: Name of the row in the environment table (`"metaworld"`), or "".
        tasks: Task names that occur, in the order of their indices.
        settings: Adapter arguments, JSON-ready (robomimic's `env_args`, versions).
        max_steps: Episode limit in environment steps.
        stored: Whether it was read from a file, so that an import path in `adapter` is not
            trusted. It is not written.
    """

    adapter: str
    tasks: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    max_steps: _Size = 0
    stored: bool = field(default=False, compare=False, repr=False)


@dataclass(frozen=True)
class SourceSpec:
    """The description of a snippet store's data.

    Attributes:
        observations: The observation arrays, in the order in which networks concatenate them.
        action: The action.
        env: The environment.
        labels: Behavior labels that occur, in the order of their indices.
        source_format: Name of the data format (`"robomimic"`).
        collection_seeds: First and last seed of the demonstrations, or None when unknown.
    """

    observations: tuple[ObservationSpec, ...]
    action: ActionSpec
    env: EnvSpec
    labels: tuple[str, ...]
    source_format: str
    collection_seeds: tuple[int, int] | None = None

    def label_name(self, index: int) -> str:
        """Return the name of a behavior label, "" for an index outside the labels (-1: none)."""
        return self.labels[index] if 0 <= index < len(self.labels) else ""

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        values = asdict(self)
        del values["env"]["stored"]
        return values

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], where: str = "the description of the data"
    ) -> SourceSpec:
        """Rebuild from the values of `to_mapping`, also after JSON.

        Args:
            values: What `to_mapping` returned.
            where: Where it stands, for messages.

        Raises:
            ArtifactError: A value is missing, unknown, of another type, or does not fit the others.
        """
        spec = typed(cls, values, where, hint=_AGAIN)
        names = [item.name for item in spec.observations]
        action = spec.action
        odd = (
            "two observations have one name" if len({*names}) < len(names)
            else "action: its limits do not have its size"
            if (len(action.low), len(action.high)) not in ((0, 0), (action.size, action.size))
            else "action.gripper: there are no such components"
            if any(index >= action.size for index in action.gripper)
            else ""
        )  # fmt: skip
        if odd:
            raise ArtifactError(f"{where}: {odd}", _AGAIN)
        return replace(spec, env=replace(spec.env, stored=True))

    @property
    def network_keys(self) -> tuple[str, ...]:
        """Observation keys that networks see by default, in order."""
        return tuple(item.name for item in self.observations if item.network)

    def sizes(self, keys: tuple[str, ...]) -> tuple[int, ...]:
        """Return the component counts of the named observation keys."""
        known = {item.name: item.size for item in self.observations}
        return tuple(known[key] for key in keys)


Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """Something that a user should know about a file of demonstrations.

    Attributes:
        check: Name of the check, the same for every file (`"left-out"`, `"outside-limits"`).
        severity: `"note"` says what was done, `"warning"` what may be wrong; `"error"` is what
            would make a policy wrong, so that `ingest` stops.
        message: One sentence with the numbers.
        where: File and key, or "".
        hint: What decides it, preferably an option (`"--clip-actions"`), or "".
        values: The numbers of the message, JSON-ready.
    """

    check: str
    severity: Severity
    message: str
    where: str = ""
    hint: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Episode:
    """One demonstration.

    Attributes:
        source: Its place in its source (`"demo_12"`, `"rows 0:1000"`).
        observations: Key to array (time, obs), float32; row t is the observation at which action
            t was taken.
        actions: (time, action), float32.
        rewards: (time,), float32, or None.
        final_observation: Key to array (obs,) after the last action, or None.
        initial_state: Simulator state at the first step, float64 1-D, or None.
        model: Text of the simulator model that the state belongs to (MJCF), or "".
        task: Task name.
        label: Behavior label (operator, level), or "".
        split: `"train"` or `"validation"`, or "" when the source has no split.
        success: Whether it solved the task, or None when unknown.
        seed: Collection seed, or None.
        weight: How often training visits its snippets, relative to those of the other episodes.
    """

    source: str
    observations: Mapping[str, FloatArray]
    actions: FloatArray
    rewards: FloatArray | None = None
    final_observation: Mapping[str, FloatArray] | None = None
    initial_state: npt.NDArray[np.float64] | None = None
    model: str = ""
    task: str = ""
    label: str = ""
    split: str = ""
    success: bool | None = None
    seed: int | None = None
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Number of steps."""
        return int(self.actions.shape[0])
