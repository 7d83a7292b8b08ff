"""What D4RL's, Minari's and OGBench's data share: Gymnasium environments, labels and tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import EnvSpec, Finding, FloatArray
from lwdctl.core.simulator_facts import ANT_CONTACT_FORCES, GymEnvironment
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.named_environments import is_version_of, known_env, requested_env
from lwdctl.data.reader import EpisodeOutline

# Rows from which it is decided whether a file's contact forces are all zero.
SAMPLE = 1000
_ID = re.compile(r"[\w:./-]+-v\d+")
MOST_ID = 1000
"""Characters of a recorded name in which an environment is looked for."""
_LEVELS = (
    "medium-replay", "medium-expert", "full-replay", "simple", "medium", "expert", "random",
    "human", "cloned",
)  # fmt: skip


def level_of(text: str) -> str:
    """Return the behavior level that a file or data set name contains, or ""."""
    words = f"-{re.sub(r'[^a-z0-9]+', '-', text.lower())}-"
    return next((level for level in _LEVELS if f"-{level}-" in words), "")


@dataclass(frozen=True)
class GymSource:
    """What a file says about its environment.

    Attributes:
        recorded: Text with the Gymnasium id that it names, or "".
        size: Components of an observation.
        action_size: Components of an action.
        path: The file, as messages name it.
        sample: Reads some observations (time, obs); called where contact forces are recorded.
        name: Its file's name, which names the environment where nothing else does.
    """

    recorded: str
    size: int
    action_size: int
    path: Path
    sample: Callable[[], FloatArray]
    name: str = ""


def describe_env(
    config: IngestConfig, source: GymSource, findings: list[Finding]
) -> tuple[GymEnvironment | None, EnvSpec]:
    """Describe the environment of recorded data.

    D4RL's data were recorded with a MuJoCo that left Ant's contact forces at zero; networks trained
    on that must not see real forces. The setting `zero_contact_forces` marks such data.

    Args:
        config: Its `env` takes precedence over the recorded one, its `max_steps` over the
            environment's.
        source: What the file says.
        findings: What is found is appended.

    Returns:
        The environment, None where it is not a known one, and its specification.

    Raises:
        DataError: The known environment has observations or actions of another size.
    """
    adapter, requested = requested_env(config)
    match = _ID.search(source.recorded[:MOST_ID])
    name = match[0] if match else ""
    env = _named_env(adapter, requested, name, source, findings)
    task = requested or name or (env.id if env else "")
    tasks: tuple[str, ...] = (task,) if task else ()
    settings: dict[str, Any] = {"id": task} if task else {}
    if env is None:
        return None, EnvSpec(adapter, tasks, settings, config.max_steps or 0)
    if name in ("", env.id):  # another version may have other sizes
        problem = _size_problem(env, source)
        if problem:
            raise DataError(
                f"{source.path}: {problem}",
                "--env ADAPTER/NAME names the environment, or with any other name none",
            )
        settings.update(env.observation_sizes[source.size])
    if settings.get("use_contact_forces"):
        forces = source.sample()[:, -ANT_CONTACT_FORCES:]
        if not forces.any():
            settings["zero_contact_forces"] = True
    limit = config.max_steps or env.max_steps
    return env, EnvSpec(adapter or env.adapter, tasks, settings, limit)


def _named_env(
    adapter: str, requested: str, recorded: str, source: GymSource, findings: list[Finding]
) -> GymEnvironment | None:
    """Return the known environment that `--env`, the file or the file's name says, or None."""
    if not (requested or recorded):
        return _named_by_file(source, findings)
    env = known_env(requested or recorded)
    if env is None:
        return None
    is_certain = adapter == env.adapter if requested else is_version_of(recorded, env)
    # Another environment's name may contain a word such as "pen".
    return env if is_certain or not _size_problem(env, source) else None


def _named_by_file(source: GymSource, findings: list[Finding]) -> GymEnvironment | None:
    """Return the environment that the name of a file says, if the sizes of its arrays agree."""
    env = known_env(source.name)
    if env is None:
        return None
    values, where = {"id": env.id}, str(source.path)
    problem = _size_problem(env, source)
    if problem:
        message = f"the environment is unknown, as the file's name does not fit: {problem}"
        hint = "--env ADAPTER/NAME"
        findings.append(Finding("metadata", "warning", message, where, hint, values))
        return None
    message = f"the environment {env.id} is named by the file's name alone; its sizes agree"
    findings.append(Finding("metadata", "note", message, where, "--env ADAPTER/NAME", values))
    return env


def _size_problem(env: GymEnvironment, source: GymSource) -> str:
    """Return what does not fit an environment, or ""."""
    if source.size not in env.observation_sizes:
        sizes = " or ".join(str(known) for known in env.observation_sizes)
        return f"observations, row 0: has {source.size} components, {env.id} has {sizes}"
    if source.action_size != env.action_size:
        sizes = str(env.action_size)
        return f"actions, row 0: has {source.action_size} components, {env.id} has {sizes}"
    return ""


def named_label(
    config: IngestConfig, recorded: str, name: str, where: str
) -> tuple[str, list[Finding]]:
    """Return the behavior label of a file, and what to say about it.

    Args:
        config: Its `label` takes precedence.
        recorded: Text with the level that the file records, or "".
        name: Its name, which holds the level where nothing else does.
        where: The file.
    """
    if config.label is not None or config.label_from:
        return config.label or "", []
    label = level_of(recorded or name)
    if recorded or not label:
        return label, []
    message = f"the behavior label '{label}' is taken from the file's name"
    return label, [Finding("metadata", "note", message, where, "--label", {"label": label})]


def with_texts(
    config: IngestConfig,
    outlines: Sequence[EpisodeOutline],
    label: str,
    tasks: tuple[str, ...],
    column: Callable[[str, str], list[str]],
) -> tuple[list[EpisodeOutline], tuple[str, ...]]:
    """Return the outlines of the episodes with their labels and tasks, and all tasks.

    Args:
        config: Its `label_from` and `task_from` name columns that say both; `label` counts more.
        outlines: The episodes.
        label: Label of all episodes, where no column is named.
        tasks: Their one task, or () where it is unknown.
        column: Returns the text of every episode in a column that an option names.
    """
    labels, texts = [label] * len(outlines), ["".join(tasks)] * len(outlines)
    if config.label_from and config.label is None:
        labels = column(config.label_from, "--label-from")
    if config.task_from:
        texts = column(config.task_from, "--task-from")
        tasks = tuple(dict.fromkeys(filter(None, texts)))
    found = [
        replace(outline, task=task, label=label)
        for outline, task, label in zip(outlines, texts, labels, strict=True)
    ]
    return found, tasks


def check_continuous(dtype: np.dtype[Any], where: str) -> None:
    """Check that actions of this type can be continuous.

    Raises:
        DataError: They are integers, which number choices.
    """
    if dtype.kind != "f":
        raise DataError(f"{where}: are discrete ({dtype}); policies have continuous actions")


def value_text(value: Any) -> str:
    """Return one recorded value as text, for a label or a task; different values differ.

    Raises:
        ValueError: It is more than one value.
    """
    item = value.item() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(item, bytes):
        return item.decode("utf-8", "replace")
    if isinstance(item, float) and item.is_integer() and abs(item) < 2**53:
        return str(int(item))
    if isinstance(item, float) and isinstance(value, np.ndarray | np.generic):
        return str(np.asarray(value).ravel()[0])  # the fewest digits of its own type
    return str(item)


def check_known(name: str, known: Iterable[str], option: str, path: Path) -> str:
    """Return which of the known names an option means: itself, or one below a group.

    Args:
        name: What the user gives (`"level"`).
        known: Names that there are (`"infos/level"`).
        option: The option, for the message.
        path: The file.

    Raises:
        DataError: There is no such name, or several; the hint has the known ones.
    """
    names = sorted(known)
    found = [item for item in names if item == name or item.rpartition("/")[2] == name]
    if name in found or len(found) == 1:
        return name if name in found else found[0]
    what = "is several" if found else "there is no such column or attribute"
    raise DataError(
        f"{path}: {option} {name}: {what}",
        did_you_mean(name, found or names) or "",
    )
