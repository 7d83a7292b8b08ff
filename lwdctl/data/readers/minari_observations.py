"""Which observation arrays of a Minari dataset are vectors that every episode has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import Finding, ObservationSpec, Severity
from lwdctl.core.simulator_facts import OBSERVATION
from lwdctl.data.checks import choose_observations, without_dropped
from lwdctl.data.files.contents import ArrayEntry
from lwdctl.data.readers.minari_spaces import IMAGE, json_object, part_of, why_no_vector
from lwdctl.data.readers.minari_storage import EpisodeStorage

GROUP = "observations"
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Observations:
    """The observation arrays that are stored.

    Attributes:
        specs: What they are.
        paths: Path of each below an episode, by its key.
        without_final: Episodes with as many observations as actions: what came after the last
            action is unknown.
        findings: What is left out or reshaped.
    """

    specs: tuple[ObservationSpec, ...]
    paths: Mapping[str, str]
    without_final: frozenset[str]
    findings: tuple[Finding, ...]


def find_observations(
    storage: EpisodeStorage, steps: Mapping[str, int], config: IngestConfig
) -> Observations:
    """Choose the observation arrays of a dataset.

    Args:
        storage: The dataset.
        steps: Number of actions of every episode.
        config: What the user requests.

    Raises:
        DataError: There are none, or a requested one is of no use; the message says why.
    """
    where = f"{storage.path}: {GROUP}"
    space = json_object(storage.metadata.get("observation_space"))
    problems: dict[str, str] = {}
    paths: dict[str, str] = {}
    sizes: dict[str, int] = {}
    reshaped: dict[str, tuple[int, ...]] = {}
    for path, (home, entry) in _entries(storage, steps).items():
        rest = path.removeprefix(GROUP).lstrip("/")
        key = rest.replace("/", ".") or OBSERVATION
        problem = why_no_vector(part_of(space, rest), entry)
        if not problem and not space and _is_jpeg(storage, home, path, entry):
            problem = IMAGE
        problem = problem and f"{storage.where(home, path)}: {problem}"
        problem = problem or _why_uneven(storage, path, math.prod(entry.shape[1:]), steps)
        if problem:
            problems[key] = problem
            continue
        paths[key], sizes[key] = path, math.prod(entry.shape[1:])
        if len(entry.shape) > 2:
            reshaped[key] = entry.shape[1:]
    requested = [key for key in config.observation_keys if key in problems]
    if requested or not sizes:
        raise DataError(problems[requested[0]] if requested else _no_vectors(where, problems))
    dropped = [key for key in config.drop if key not in problems]
    default = without_dropped(dropped, tuple(sizes), where)
    specs = choose_observations(config.observation_keys, default, sizes, where)
    chosen = {item.name: paths[item.name] for item in specs}
    without_final = frozenset(
        name
        for name, rows in steps.items()
        if any(storage.shapes(name)[path][0] == rows for path in chosen.values())
    )
    findings = _findings(where, problems, {k: v for k, v in reshaped.items() if k in chosen})
    if without_final:
        first = next(name for name in steps if name in without_final)
        message = (
            f"{len(without_final)} of {len(steps)} episodes ({first} is the first) have as many"
            " observations as actions; their final observation is unknown"
        )
        values = {"episodes": len(without_final)}
        findings.append(Finding("adjusted", "warning", message, where, values=values))
    return Observations(specs, chosen, without_final, tuple(findings))


def _entries(
    storage: EpisodeStorage, steps: Mapping[str, int]
) -> dict[str, tuple[str, ArrayEntry]]:
    """Return every observation array's path, with the first episode that has it."""
    first = next(iter(steps))
    homes = {path: first for path in storage.arrays(first) if path.partition("/")[0] == GROUP}
    for name in steps:
        for path in storage.shapes(name):
            if path not in homes and path.partition("/")[0] == GROUP:
                homes[path] = name
    if not homes:
        raise DataError(f"{storage.where(first, GROUP)}: is missing")
    return {path: (homes[path], storage.arrays(homes[path])[path]) for path in sorted(homes)}


def _is_jpeg(storage: EpisodeStorage, name: str, path: str, entry: ArrayEntry) -> bool:
    """Return whether the bytes of each row are a compressed image."""
    if entry.dtype != "uint8" or len(entry.shape) != 2:
        return False
    return storage.read(name, path, 0, 1).astype(np.uint8).tobytes()[: len(_JPEG)] == _JPEG


def _why_uneven(storage: EpisodeStorage, path: str, width: int, steps: Mapping[str, int]) -> str:
    """Return why an array is not the same in all episodes, or ""."""
    missing = [name for name in steps if path not in storage.shapes(name)]
    if missing:
        where = storage.where(missing[0], path)
        return f"{where}: is missing ({len(missing)} of {len(steps)} episodes do not have it)"
    for name, count in steps.items():
        shape = storage.shapes(name)[path]
        where = storage.where(name, path)
        if not shape or shape[0] not in (count, count + 1):
            rows = shape[0] if shape else 0
            return (
                f"{where}, row {min(rows, count + 1)}: has {rows} rows, expected {count + 1}"
                " (one more than actions)"
            )
        if math.prod(shape[1:]) != width:
            found = math.prod(shape[1:])
            return f"{where}, row 0: has {found} components, earlier episodes have {width}"
    return ""


def _no_vectors(where: str, problems: Mapping[str, str]) -> str:
    if len(problems) == 1:
        return next(iter(problems.values()))
    return f"{where}: no array can be used: {'; '.join(problems.values())}"


def _findings(
    where: str, problems: Mapping[str, str], reshaped: Mapping[str, tuple[int, ...]]
) -> list[Finding]:
    findings = []
    if problems:
        file = where.removesuffix(GROUP)
        shown = "; ".join(text.removeprefix(file) for text in problems.values())
        message = f"{len(problems)} observation arrays are left out: {shown}"
        only_images = all(text.endswith(IMAGE) for text in problems.values())
        severity: Severity = "note" if only_images else "warning"
        keys = dict(problems)
        findings.append(Finding("left-out", severity, message, where, values={"keys": keys}))
    if reshaped:
        shapes = ", ".join(f"{key} {shape}" for key, shape in reshaped.items())
        message = f"observations of several axes are read as vectors: {shapes}"
        values = {"keys": list(reshaped)}
        findings.append(Finding("adjusted", "note", message, where, values=values))
    return findings
