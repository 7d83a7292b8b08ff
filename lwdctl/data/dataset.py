"""Snippet stores of demonstrations that are arrays in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError, DataError, first_line
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.records import (
    ActionSpec,
    EnvSpec,
    Episode,
    Finding,
    FloatArray,
    ObservationSpec,
    SourceSpec,
)
from lwdctl.core.simulator_facts import OBSERVATION
from lwdctl.data.checks import NUMBER_KINDS, NonFiniteError, check_components, finite_rows
from lwdctl.data.files.array_kinds import check_no_images
from lwdctl.data.files.contents import ArrayEntry
from lwdctl.data.ingest import assign_splits
from lwdctl.data.named_environments import describe_requested
from lwdctl.data.quality.action_test import OutsideLimits
from lwdctl.data.quality.checks import DataChecks, declared_action
from lwdctl.data.quality.ingest_report import describe_finding
from lwdctl.data.reader import EpisodeOutline


def store_from_arrays(  # noqa: PLR0913 - what `Dataset.from_arrays` takes, by keyword only
    observations: Sequence[npt.ArrayLike | Mapping[str, npt.ArrayLike]],
    actions: Sequence[npt.ArrayLike],
    *,
    rewards: Sequence[npt.ArrayLike] | None = None,
    tasks: Sequence[str] | str = "",
    labels: Sequence[str] | str = "",
    env: str | EnvSpec = "",
    action: ActionSpec | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
    describe: Callable[[SourceSpec], SourceSpec] | None = None,
) -> SnippetStore:
    """Return a snippet store in memory with one episode per pair of arrays.

    Args:
        observations: Per episode an array (time, obs), stored under the key `"observation"`, or
            a mapping from key to array. With one row more than the actions, the last row is the
            observation after the last action.
        actions: Per episode an array (time, action).
        rewards: Per episode an array (time,), or None.
        tasks: Task of each episode, or of all of them.
        labels: Behavior label of each episode, or of all of them.
        env: Environment, as `"ADAPTER/NAME"` (`"pusht/push_t"`) or its specification. Where it
            gives no step limit, that is the length of the longest episode.
        action: What the actions mean. None takes what the environment says, and where it does not
            say whether they are targets or motions, what the data show, as `ingest` does; without
            an environment, they are absolute targets in unknown units. Without limits it gets the
            recorded range with a margin.
        validation_fraction: Fraction of the episodes of every task and label to hold out.
        seed: Seed of that split.
        progress: Where to report what the actions are taken for; None writes to stderr.
        describe: Fills in what an environment outside of lwdctl says
            (`envs.table.with_outside_environment`).

    Warns:
        UserWarning: float32, in which steps are stored, rounds away how values change.

    Raises:
        ConfigError: The reference of `action` is no observation of the actions' size, or `env` is
            neither a name nor a specification.
        DataError: The numbers of episodes, rows or components differ, the keys of the observations
            do, a task or label is no string, an observation holds images, a value is not finite, an
            action is outside the limits or not what the environment takes, or that takes actions of
            another size.
    """
    _check_environment(env)
    _check_sequence("observations", observations)
    _check_sequence("actions", actions)
    if rewards is not None:
        _check_sequence("rewards", rewards)
    count = len(actions)
    task_of, label_of = _names("tasks", tasks, count), _names("labels", labels, count)
    reward_of = [None] * count if rewards is None else list(rewards)
    given = {"observations": observations, "rewards": reward_of, "tasks": task_of}
    for name, values in {**given, "labels": label_of}.items():
        if len(values) != count:
            raise DataError(f"{name}: has {len(values)} entries for {count} episodes of actions")
    if not count:
        raise DataError("actions: holds no episodes")
    findings: list[Finding] = []
    recorded = [
        _episode(
            f"episode {index}", observations[index], actions[index], reward_of[index], findings
        )
        for index in range(count)
    ]
    for item in findings:
        warnings.warn(f"{item.where}: {item.message}; {item.hint}", stacklevel=3)
    outlines = [
        EpisodeOutline(episode.source, episode.length, task, label)
        for episode, task, label in zip(recorded, task_of, label_of, strict=True)
    ]
    splits = assign_splits(outlines, validation_fraction, seed)
    episodes = [
        replace(episode, task=outline.task, label=outline.label, split=split)
        for episode, outline, split in zip(recorded, outlines, splits, strict=True)
    ]
    first, size = episodes[0].observations, episodes[0].actions.shape[1]
    for episode in episodes:
        check_components(episode.actions.shape[1], size, f"{episode.source}: actions")
        if episode.observations.keys() != first.keys():
            raise DataError(
                f"{episode.source}: observations: has the keys {', '.join(episode.observations)},"
                f" expected those of {episodes[0].source}: {', '.join(first)}"
            )
    longest = max(episode.length for episode in episodes)
    tasks_of_all = tuple(dict.fromkeys(filter(None, task_of)))
    taken, place = _described(env, size, tasks_of_all, action)
    spec = SourceSpec(
        observations=tuple(ObservationSpec(key, rows.shape[1]) for key, rows in first.items()),
        action=action or taken,
        env=place,
        labels=tuple(sorted(set(filter(None, label_of)))),
        source_format="arrays",
    )
    if describe is not None and (action is None or isinstance(env, str)):
        spec = describe(spec)
    own = longest if isinstance(env, str) else 0  # 0 in a specification: the environment's own
    limit = place.max_steps or spec.env.max_steps or own
    spec = replace(spec, env=replace(spec.env, max_steps=limit))
    if action is None and place.adapter:
        action = _meaning(spec, episodes, progress or TqdmProgress())
    spec = replace(spec, action=action or taken)
    _check_action(spec.action, episodes)
    return SnippetStore.in_memory(episodes, spec)


def _described(
    env: str | EnvSpec, size: int, tasks: tuple[str, ...], declared: ActionSpec | None
) -> tuple[ActionSpec, EnvSpec]:
    """Return the actions that an environment takes, if it is known, and the environment.

    Those of a specification are what is declared of them, if anything is.

    Raises:
        DataError: It takes actions of another size.
    """
    if isinstance(env, EnvSpec) and declared is not None:
        return declared, env
    name = env if isinstance(env, str) else "/".join((env.adapter, *env.tasks[:1]))
    action, requested, _ = describe_requested(IngestConfig(env=name), size, "env")
    if isinstance(env, EnvSpec):
        return action, env
    return action, replace(requested, tasks=tasks or requested.tasks)


def _check_environment(env: object) -> None:
    """Check that an environment is given by a name, which is stored with the data."""
    if isinstance(env, str | EnvSpec):
        return
    name = "package.module:Class"
    if isinstance(env, type) and "<" not in env.__qualname__:
        name = f"{env.__module__}:{env.__qualname__}"
    raise ConfigError(f"env is {env!r}, expected the name of an environment", f'env="{name}"')


def _check_sequence(argument: str, values: object) -> None:
    """Check that an argument has one entry per episode."""
    if isinstance(values, Mapping):
        if values and all(getattr(item, "ndim", 0) == 2 for item in values.values()):
            raise DataError(
                f"{argument}: is a single episode, expected a sequence of episodes",
                "from_arrays([observations], [actions])",
            )
        hint = f"[dict(zip({argument}, item)) for item in zip(*{argument}.values())]"
        raise DataError(
            f"{argument}: is a mapping, expected a sequence with one entry per episode",
            f"{hint}, where each value has one array per episode" if values else "",
        )
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise DataError(
            f"{argument}: is of type {type(values).__name__}, expected a sequence with one entry"
            " per episode"
        )


def _meaning(spec: SourceSpec, episodes: Sequence[Episode], progress: Progress) -> ActionSpec:
    """Return what the actions mean, by the environment and the data, as `ingest` infers it.

    Raises:
        DataError: The data contradict the environment, or actions are outside its limits.
    """
    config = IngestConfig()
    checks = DataChecks(spec, config)
    for episode in episodes:
        checks.add(episode)
    semantics = checks.action().semantics
    action = replace(declared_action(spec.action, config), semantics=semantics)
    other = "absolute" if semantics == "delta" else "delta"
    means = {"absolute": "targets", "delta": "motions"}
    clip = f"clip them with np.clip(array, {action.low}, {action.high})"
    hints = {  # those of the checks are options of `lwdctl ingest`
        "semantics": (f"if they are {means[other]}", replace(action, semantics=other)),
        "limits": ("name them as low and high", action),
        "outside-limits": (f"{clip}, or take the recorded range", action.unlimited()),
    }
    for item in checks.findings():
        if item.check in hints:
            said, declared = hints[item.check]
            if item.severity == "error":  # the limits are those of other actions
                declared = declared.unlimited()
            hint = f"{said}: action=lwdctl.{declared}" if item.hint else ""
            if item.severity == "error":
                raise DataError(f"actions: {item.message}", hint)
            progress.message(describe_finding(replace(item, hint=hint)))
    return action


def _check_action(action: ActionSpec, episodes: Sequence[Episode]) -> None:
    """Check that the recorded actions have the described size and reference, and their limits."""
    size = episodes[0].actions.shape[1]
    if action.size != size:
        raise DataError(f"action: describes {action.size} components, but actions have {size}")
    rows = episodes[0].observations.get(action.reference)
    if action.reference and (rows is None or rows.shape[1] != size):
        found = "no observation" if rows is None else f"{rows.shape[1]} components"
        raise ConfigError(
            f"action: has the reference '{action.reference}', which is {found}, expected an"
            f" observation of {size} components",
            'reference="" where no observation is the position that the actions command',
        )
    outside = OutsideLimits(action.low, action.high, "action=ActionSpec(...)")
    for episode in episodes:
        outside.add(episode.source, np.asarray(episode.actions))
    if outside.count:
        raise DataError(
            f"actions: {outside.describe()}",
            "clip them with np.clip(array, action.low, action.high), or pass"
            " action=action.unlimited() to take the recorded range as the limits",
        )


def _names(argument: str, values: Sequence[str] | str, count: int) -> list[str]:
    """Return one task or label per episode, after checking that all are strings."""
    if isinstance(values, str):
        return [values] * count
    if not isinstance(values, Iterable):
        raise DataError(f"{argument}: is {values!r}, expected a string or one per episode")
    names = list(values)
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise DataError(
                f"{argument}: that of episode {index} is {name!r}, expected a string",
                f"{argument}=[str(item) for item in {argument}]",
            )
    return [str(name) for name in names]  # NumPy has strings of its own


def _episode(
    source: str,
    observations: npt.ArrayLike | Mapping[str, npt.ArrayLike],
    actions: npt.ArrayLike,
    rewards: npt.ArrayLike | None,
    findings: list[Finding],
) -> Episode:
    """Return one episode; an additional last observation becomes the final one."""
    if not isinstance(observations, Mapping):
        observations = {OBSERVATION: observations}
    if not observations:
        raise DataError(f"{source}: observations: has no keys")
    for key in observations:
        if not isinstance(key, str):
            raise DataError(f"{source}: observations: the key {key!r} is not a string")
    if isinstance(actions, Mapping):
        raise DataError(
            f"{source}: actions: is a mapping, expected an array (time, action)",
            "observations come first: from_arrays(observations, actions)",
        )
    taken = _rows(actions, f"{source}: actions", findings)
    steps = len(taken)
    if not steps:
        raise DataError(f"{source}: actions: has no rows")
    rows = {
        str(key): _rows(_observed(values, source, str(key)), f"{source}: {key}", findings)
        for key, values in observations.items()
    }
    for key, values in rows.items():
        if len(values) not in (steps, steps + 1):
            raise DataError(
                f"{source}: {key}: has {len(values)} rows, expected {steps} or {steps + 1}"
            )
    has_final = all(len(values) == steps + 1 for values in rows.values())
    return Episode(
        source=source,
        observations={key: values[:steps] for key, values in rows.items()},
        actions=taken,
        rewards=(
            None if rewards is None else _array(rewards, f"{source}: rewards").astype(np.float32)
        ),
        final_observation={key: values[-1] for key, values in rows.items()} if has_final else None,
    )


def _array(values: npt.ArrayLike, where: str) -> npt.NDArray[Any]:
    """Return an array of numbers of any shape."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:  # ragged lists, tensors on a device
        raise DataError(f"{where}: is no array ({first_line(error)})") from None
    if array.dtype.kind not in NUMBER_KINDS:
        raise DataError(f"{where}: holds {array.dtype}, not numbers")
    return array


def _observed(values: npt.ArrayLike, source: str, key: str) -> npt.NDArray[Any]:
    """Return the array of an observation, refusing images."""
    where = f"{source}: {key}"
    array = _array(values, where)
    entry = ArrayEntry(array.shape, str(array.dtype))
    check_no_images(entry, where, f"leave '{key}' out of the observations")
    return array


def _rows(values: npt.ArrayLike, where: str, findings: list[Finding]) -> FloatArray:
    """Return an array (time, size) as finite float32."""
    array = _array(values, where)
    if array.ndim != 2:
        hint = "[array] is the list of a single episode; array[:, None] has one component per step"
        raise DataError(
            f"{where}: has shape {array.shape}, expected (time, size)",
            hint if array.ndim == 1 else "",
        )
    try:
        return finite_rows(array, where, findings=findings)
    except NonFiniteError as error:  # its hint is an option of `lwdctl ingest`
        hint = "leave such episodes out: keep those where np.isfinite(array).all()"
        raise DataError(error.message, hint) from error
