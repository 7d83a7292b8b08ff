"""The description of a source, checked and changed so that a store can hold it."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lwdctl.core.errors import DataError
from lwdctl.core.plain_text import listed
from lwdctl.core.records import RESERVED_KEYS, Finding, SourceSpec
from lwdctl.core.suggest import did_you_mean

MOST_COMPONENTS = 2**20
"""Components of an observation or action that a network could take."""


def with_renames(spec: SourceSpec, renames: Sequence[str]) -> tuple[SourceSpec, dict[str, str]]:
    """Give observations other names, each as `"OLD=NEW"`, and return which name became which.

    Raises:
        DataError: A text of another form, an observation that is not there, a name that two would
            have, or one that is reserved.
    """
    names = {}
    known = [item.name for item in spec.observations]
    for text in renames:
        old, _, new = text.rpartition("=")
        dotted = old.replace("/", ".")  # as robomimic's reader names paths within a file
        old = dotted if dotted in known and old not in known else old
        if not old or not new:
            raise DataError(f"--rename: '{text}' is not of the form OLD=NEW")
        if old in names:
            raise DataError(f"--rename: '{old}' is given twice")
        if old not in known:
            raise DataError(f"--rename: no observation is called '{old}'", did_you_mean(old, known))
        if new in RESERVED_KEYS:
            raise DataError(
                f"--rename: no observation may be called '{new}': the name is reserved in snippet"
                " stores",
                f"give it another one: --rename {shlex.quote(f'{old}=observed_{new}')}",
            )
        names[old] = new
    renamed = [names.get(name, name) for name in known]
    for name in renamed:
        if renamed.count(name) > 1:
            raise DataError(f"--rename: two observations would be called '{name}'")
    observations = tuple(
        dataclasses.replace(item, name=name)
        for item, name in zip(spec.observations, renamed, strict=True)
    )
    reference = names.get(spec.action.reference, spec.action.reference)
    action = dataclasses.replace(spec.action, reference=reference)
    return dataclasses.replace(spec, observations=observations, action=action), names


def check_sizes(spec: SourceSpec, path: Path) -> None:
    """Check that there is something to observe and something to do, in vectors of some length.

    Raises:
        DataError: Observations or actions have no components, or too many for a network.
    """
    sizes = {"observations": sum(item.size for item in spec.observations)}
    for noun, size in {**sizes, "actions": spec.action.size}.items():
        if not size:
            raise DataError(f"{path}: {noun}: have no components")
        if size > MOST_COMPONENTS:
            raise DataError(
                f"{path}: {noun}: have {size:,} components, expected at most {MOST_COMPONENTS:,}"
            )


def with_stored_reference(spec: SourceSpec, path: Path) -> tuple[SourceSpec, list[Finding]]:
    """Return a description whose actions refer to an observation that is stored, or to none."""
    reference = spec.action.reference
    if not reference or reference in [item.name for item in spec.observations]:
        return spec, []
    message = (
        f"{reference}, the position that the actions command, is not stored: policies cannot"
        " generate actions relative to it"
    )
    found = Finding("reference", "note", message, str(path), values={"key": reference})
    return dataclasses.replace(spec, action=dataclasses.replace(spec.action, reference="")), [found]


def with_finite_settings(spec: SourceSpec, path: Path) -> tuple[SourceSpec, list[Finding]]:
    """Return a description that a store can hold: JSON has no NaN and no infinity."""
    places: list[str] = []

    def finite(value: Any, place: str) -> Any:
        if isinstance(value, Mapping):
            return {key: finite(item, f"{place}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item, f"{place}[{index}]") for index, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            places.append(place.removeprefix("."))
            return None
        return value

    settings = finite(spec.env.settings, "")
    if not places:
        return spec, []
    message = (
        f"{len(places)} numbers in the description of the environment are NaN or infinite; they are"
        f" stored as null: {listed(places)}"
    )
    env = dataclasses.replace(spec.env, settings=settings)
    found = Finding("adjusted", "note", message, str(path), values={"places": places[:10]})
    return dataclasses.replace(spec, env=env), [found]
