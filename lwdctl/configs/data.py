"""The settings of the stages that make data: `collect` and `ingest`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lwdctl.configs.bounds import StageSettings
from lwdctl.core.config import option
from lwdctl.core.seeding import EVALUATION_SEED_START

_READERS = "lwdctl.data.formats:READERS"
_EXPERTS = "lwdctl.envs.experts:EXPERTS"


@dataclass(frozen=True)
class IngestConfig(StageSettings):
    """Settings of `lwdctl ingest`."""

    format: str | None = option(
        None,
        "Data format of the files (default: recognized by their content).",
        registry=_READERS,
        argument=True,
    )
    paths: tuple[str, ...] = option(
        (),
        "Files or directories to read (default: the newest demonstrations of `lwdctl collect`).",
        argument=True,
    )
    max_episodes: int | None = option(
        None, "Largest number of episodes to keep, drawn at random (default: all).", minimum=1
    )
    max_per_label: int | None = option(
        None, "Largest number of episodes per behavior label, drawn at random (default: all).",
        minimum=1,
    )  # fmt: skip
    only_successful: bool = option(
        False, "Leave out episodes that the source does not mark as successful."
    )
    filter_key: str | None = option(
        None, "Subset of the source to read (robomimic: a name under mask/; default: everything)."
    )
    label: str | None = option(
        None, "Behavior label to give to every episode (default: the source's own labels)."
    )
    label_from: str | None = option(
        None,
        "Attribute or column of an episode whose value is its behavior label (default: the"
        " format's own).",
    )
    task_from: str | None = option(
        None,
        "Attribute or column of an episode whose value is its task (default: the format's own).",
    )
    weight: tuple[float, ...] = option(
        (),
        "How often training visits a snippet of a file, relative to the other files: one number"
        " per path; 0 for never (default: all alike). Normalizers, latent statistics and"
        " validation use every file without weights.",
        minimum=0,
    )
    env: str | None = option(
        None,
        "Environment as ADAPTER or ADAPTER/NAME, or your own as package.module:Class/NAME"
        " (default: the one that the source names).",
    )
    observation_keys: tuple[str, ...] = option(
        (), "Observation keys to store (default: the format's own choice)."
    )
    drop: tuple[str, ...] = option((), "Observation keys to leave out.")
    rename: tuple[str, ...] = option(
        (),
        "Observation keys to store under other names, each as OLD=NEW, so that they are those of"
        " the environment (default: the names of the source).",
        example='["robot/pos=pos"]',
    )
    action_key: str | None = option(None, "Key of the action array (default: the format's own).")
    episode_ends: str | None = option(
        None,
        "hdf5, zarr and npz: key of the array that holds one past the last row of each episode.",
    )
    terminals_key: str | None = option(
        None, "hdf5, zarr and npz: key of the flags that mark the last row of each episode."
    )
    lengths_key: str | None = option(
        None, "hdf5, zarr and npz: key of the array that holds the length of each episode."
    )
    actions: Literal["recorded", "delta", "absolute", "recorded-absolute"] = option(
        "recorded",
        "Action representation to store. recorded: as the source describes it. absolute: convert"
        " robosuite's end-effector deltas (robomimic, OSC_POSE) to target poses (position, 6-D"
        " rotation, gripper). recorded-absolute: the recorded numbers are targets, whatever the"
        " source says. delta: they are motions; an error where the source says otherwise.",
    )
    action_limits: str | None = option(
        None,
        "Limits of every action component: data (the recorded range with a margin), or LOW,HIGH"
        " (default: those of the environment or the file, else data).",
    )
    clip_actions: bool = option(False, "Clip recorded actions to the action limits.")
    terminals: Literal["first", "each", "ignore"] = option(
        "first",
        "How terminal flags end episodes. first: a run of flags ends one episode, at its first"
        " flag. each: every flag ends one. ignore: only timeouts end episodes; a file of hdf5, zarr"
        " or npz is then one episode.",
    )
    max_steps: int | None = option(
        None,
        "Step limit of an episode (default: the environment's). Episodes of d4rl files also end"
        " there.",
        minimum=1,
    )
    validation_fraction: float = option(
        0.1,
        "Fraction of the episodes held out for validation when the source has no split of its own.",
        minimum=0,
        maximum=0.9,
    )
    max_bytes: int = option(
        64 * 2**30, "Largest uncompressed size of a source in bytes.", minimum=1
    )
    on_nan: Literal["error", "drop"] = option(
        "error", "What to do with an episode that contains NaN or infinity."
    )
    seed: int = option(
        0, "Seed of the episodes' order in the store and of the validation split.", minimum=0
    )

    def reads(self, named: Collection[str] = ()) -> tuple[str, ...]:
        """Return the artifact types that are read: none where files or their format are given."""
        del named
        is_collected = not self.paths and self.format in (None, "robomimic")
        return ("demonstrations",) if is_collected else ()


@dataclass(frozen=True)
class CollectConfig(StageSettings):
    """Settings of `lwdctl collect`."""

    simulator: str = option(
        "metaworld", "Simulator to collect in.", registry=_EXPERTS, argument=True
    )
    task: tuple[str, ...] = option(
        (),
        "Task to collect; repeat it for several tasks of metaworld, where mt10 and lwd10 (the"
        " paper's) name ten each. robosuite: lift or can (default: reach; robosuite: lift).",
    )
    operator: tuple[str, ...] = option(
        (),
        "robosuite only: better_operator_1, better_operator_2, okay_operator_1 and so on to"
        " worse_operator_2; repeat it for several (default: all six).",
    )
    episodes: int | None = option(
        None,
        "Demonstrations per task, and for robosuite per operator (default: 25; robosuite: 50,"
        " 300 in all).",
        minimum=1,
    )
    seed: int = option(
        0,
        "First seed; every task uses it and the following ones, which the operators share in turn.",
        minimum=0,
        maximum=EVALUATION_SEED_START - 1,
    )
    noise: float = option(
        0.0, "Standard deviation of Gaussian noise on the expert's actions.", minimum=0
    )
    max_steps: int | None = option(
        None, "Largest number of steps per episode (default: 500).", minimum=1
    )
    keep_failures: bool = option(False, "Keep episodes in which the expert fails.")
    workers: int = option(
        2, "Worker processes; 0 collects in this process. Does not change the data.", minimum=0
    )
    timeout: float = option(
        120.0, "Seconds without a step after which a worker counts as hung.", minimum=0
    )
