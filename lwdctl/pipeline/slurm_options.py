"""The options of sbatch that a user gives: `partition=gpu,gpus=1,time=4:00:00`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lwdctl.core.errors import ConfigError
from lwdctl.core.plain_text import plain_text, visible

_KEY = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_OURS = {
    "array": "the conditions of an evaluation make the array: see --eval-jobs",
    "dependency": "the recipe says which stage follows which",
    "error": "`lwdctl status RECIPE` names every log",
    "job-name": "lwdctl finds its jobs by their names",
    "kill-on-invalid-dep": "jobs whose inputs cannot be made are always removed",
    "nodes": "a stage runs as one process on one node",
    "no-requeue": "a job that is requeued goes on from its checkpoint",
    "ntasks": "a stage runs as one process; for its threads, set cpus-per-task",
    "ntasks-per-node": "a stage runs as one process; for its threads, set cpus-per-task",
    "open-mode": "a job that is requeued appends to its log",
    "output": "`lwdctl status RECIPE` names every log",
    "parsable": "lwdctl reads what sbatch prints",
    "requeue": "it is always set",
    "signal": "lwdctl asks for a signal 120 seconds before the time limit and requeues the job",
    "test-only": "use `lwdctl run RECIPE --dry-run`",
    "wait": "`lwdctl run` waits by itself; --detach does not",
    "wrap": "lwdctl writes the script",
}
"""Options of sbatch that lwdctl sets itself, and why or what to use instead."""


def parse_slurm_options(texts: Iterable[str]) -> dict[str, str | bool]:
    """Return the options of sbatch that `KEY=VALUE,...` texts name.

    A part without `=` belongs to the value before it (`nodelist=n1,n2`); the value `true` stands
    for an option without a value (`exclusive=true`).

    Args:
        texts: What was given, for example `["partition=gpu,gpus=1", "time=4:00:00"]`.

    Raises:
        ConfigError: A key that is no option's name, or one that lwdctl sets itself; an empty value
            or one with control characters.
    """
    found: dict[str, str | bool] = {}
    for text in texts:
        if visible(text) != text:
            raise ConfigError(
                f"--slurm {plain_text(text, 80)} has a line break or another control character",
                "give KEY=VALUE pairs, for example --slurm partition=gpu,gpus=1,time=4:00:00",
            )
        for part in _parts(text):
            key, _, value = part.partition("=")
            key, value = key.strip().lstrip("-").replace("_", "-"), value.strip()
            _check(key, value, part)
            found[key] = True if value == "true" else value
    return found


def _parts(text: str) -> list[str]:
    """Split `a=1,b=2,3` into `a=1` and `b=2,3`."""
    parts: list[str] = []
    for piece in text.split(","):
        if "=" in piece or not parts:
            parts.append(piece)
        else:
            parts[-1] += f",{piece}"
    return parts


def _check(key: str, value: str, part: str) -> None:
    if not _KEY.fullmatch(key) or not value:
        raise ConfigError(
            f"--slurm: '{part}' is no KEY=VALUE with an option of sbatch",
            "for example --slurm partition=gpu,gpus=1,time=4:00:00; for an option without a value"
            " --slurm exclusive=true",
        )
    if key in _OURS:
        raise ConfigError(f"--slurm: lwdctl sets '{key}' itself", _OURS[key])
