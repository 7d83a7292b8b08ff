"""Demonstrations as arrays: read from a workspace, or built in memory without any file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ConfigError, MissingExtraError
from lwdctl.core.records import Episode, SourceSpec
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.dataset import store_from_arrays
from lwdctl.envs.table import with_outside_environment

if TYPE_CHECKING:
    import pandas as pd

_SETTINGS = (
    "rewards", "tasks", "labels", "env", "action", "validation_fraction", "seed", "progress",
)  # fmt: skip


def load_pandas() -> Any:
    """Return pandas.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError("pandas is not installed", "pip install pandas") from error
    return pd


@dataclass(frozen=True)
class Dataset(Sequence[Episode]):
    """Demonstrations: a sequence of episodes, each with its arrays.

    Use `load_dataset` or `Dataset.from_arrays`.

    Attributes:
        store: The snippet store that holds the steps.
        artifact: The artifact that it stands in, None for data in memory.
        workspace: Where that stands.
    """

    store: SnippetStore
    artifact: Artifact | None = None
    workspace: Workspace = field(default_factory=Workspace.locate)

    @classmethod
    def from_arrays(cls, observations: Any, actions: Any, **settings: Any) -> Dataset:
        """Build a data set in memory, one episode per pair of arrays.

        Args:
            observations: Per episode an array (time, obs) or a mapping from key to such arrays;
                they may have one more row than the actions, the observation after the last one.
            actions: Per episode an array (time, action).
            **settings: Further arguments, by name:

                - `rewards`: per episode an array (time,); none by default.
                - `tasks`, `labels`: a string per episode, or one for all of them; "" by default.
                - `env`: environment that the data were recorded in, by its name
                  (`"metaworld/reach"`, `"package.module:Class"` for one of your own), or an
                  `lwdctl.EnvSpec`; none by default.
                - `action`: an `lwdctl.ActionSpec`, what the actions mean and their limits. By
                  default both are those of the environment. Where it does not say whether actions
                  are targets (`"absolute"`) or motions (`"delta"`), the data decide, as in
                  `ingest`, and a note says so. Without an environment, actions are targets in
                  unknown units. Where no limits are known, they are the recorded range with a
                  margin.
                - `validation_fraction`: fraction of the episodes of every task and label to hold
                  out, 0.1 by default; `seed`: seed of that split, 0 by default.
                - `progress`: where to report; by default on stderr.

        Raises:
            ConfigError: The reference of `action` is no observation of the actions' size, no
                environment has that name, or an unknown argument.
            DataError: The arrays do not fit each other, hold NaN, infinity or images, or actions
                outside the limits or other than the environment's; or a task or label is no string.
        """
        for name in settings:
            if name not in _SETTINGS:
                raise ConfigError(
                    f"from_arrays takes no argument '{name}'", did_you_mean(name, _SETTINGS)
                )
        return cls(store_from_arrays(observations, actions, describe=_described, **settings))

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.store.episodes)

    def __getitem__(self, index: Any) -> Any:
        """Return an episode with its arrays; a slice gives a list."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        return self.store.episode(index % len(self))

    def __iter__(self) -> Iterator[Episode]:
        """Iterate over the episodes."""
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        """Say what the data are."""
        spec, name = self.store.spec, self.artifact.reference if self.artifact else "in memory"
        keys = ", ".join(f"{item.name} [{item.size}]" for item in spec.observations)
        return (
            f"<Dataset {name}: {len(self)} episodes, {self.store.steps} steps of {keys};"
            f" action [{spec.action.size}]>"
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per step: episode, step, task, label, observations, actions, reward.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pd = load_pandas()

        parts = []
        for number, episode in enumerate(self):
            columns: dict[str, Any] = {
                "episode": number, "step": range(episode.length),
                "task": episode.task, "label": episode.label,
            }  # fmt: skip
            for name, rows in {**episode.observations, "action": episode.actions}.items():
                columns |= {f"{name}_{place}": rows[:, place] for place in range(rows.shape[1])}
            if episode.rewards is not None:
                columns["reward"] = episode.rewards
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)


def _described(spec: SourceSpec) -> SourceSpec:
    """Take from the environment what arrays do not say; see `with_outside_environment`.

    Raises:
        ConfigError: As for that; the environment that a file names is to be named by the caller.
    """
    try:
        return with_outside_environment(spec)
    except ConfigError as error:
        if not spec.env.stored:
            raise
        name = "/".join((spec.env.adapter, *spec.env.tasks[:1]))
        hint = f"if you trust it, name it: env={name!r}; or say what the actions mean: action=..."
        raise ConfigError(error.message, hint) from error
