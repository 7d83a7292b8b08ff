"""The contents of a file in few lines: arrays that repeat in every episode as one, key facts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lwdctl.core.errors import ArtifactError
from lwdctl.core.simulator_facts import OBSERVATION
from lwdctl.core.untrusted import parse_json
from lwdctl.data.checks import numeric_order
from lwdctl.data.files.contents import ArrayEntry, Contents, Kind

MOST_RECORDED = 40
LONGEST_RECORDED = 200
"""Characters; longer texts (models, whole configurations) are not facts to read."""
FAMILY_DEPTH = 2
"""Groups of episodes mostly lie at most this deep: `episode_0`, `data/demo_0`."""
DEEP_FAMILY = 3
"""Deeper groups that are numbered are one family where they are at least so many."""
AFTER = ("next_obs", "next_observations", "next_observation")
"""Names of the observations after each action."""
NO_ACTIONS = ("std", "log", "mask", "valid", "is_pad")
"""Parts of names of arrays that lie beside actions and are none."""
FINAL = "final observation"
MOST_TEXTS = 4
"""More arrays of text in one group are shown as one."""
_REASONS: dict[Kind, str] = {
    "image": "left out: a picture",
    "text": "left out: text",
    "not numeric": "left out: not numbers",
    "several axes": "left out: several axes",
    "scalar": "left out: one number",
    "low-dimensional": "left out: not a default key",
}


@dataclass(frozen=True)
class ArrayFamily:
    """One array, or the arrays of the same name in every episode.

    Attributes:
        key: Its path in the file, with `*` for the number of the episode
            (`"data/demo_*/actions"`).
        shape: Its shape, with None where the arrays differ.
        dtype: NumPy's name of its element type.
        kind: What it holds.
        count: How many arrays it stands for, of those that were listed.
        use: What the store keeps of it (`"observation"`, `"action"`), why an observation is left
            out, or "".
        is_action: Whether it may hold actions.
    """

    key: str
    shape: tuple[int | None, ...]
    dtype: str
    kind: Kind
    count: int
    use: str = ""
    is_action: bool = False


def array_families(
    contents: Contents, stored: Mapping[str, str], action_key: str | None = None
) -> tuple[tuple[ArrayFamily, ...], int]:
    """Return the arrays of a file, and how many more entries it has than were listed.

    Args:
        contents: What the file holds.
        stored: What the store keeps, by the name of the array: `{"object": "observation"}`. {}
            where nothing is stored.
        action_key: Key of the action array where it was chosen.
    """
    members: dict[str, list[ArrayEntry]] = {}
    numbered = _numbered_groups(contents)
    texts = Counter(_parent(key) for key, item in contents.arrays.items() if item.kind == "text")
    for key, entry in contents.arrays.items():
        if key in contents.scalars:
            continue  # shown among the recorded values
        family = _family_of(key, numbered)
        if family == key and entry.kind == "text" and texts[_parent(key)] > MOST_TEXTS:
            family = f"{_parent(key)}/*".lstrip("/")  # masks name episodes, dozens of them
        members.setdefault(family, []).append(entry)
    uses = {key: _use(key, stored, action_key) for key in members}
    holders = {_parent(key) for key, use in uses.items() if use.startswith(OBSERVATION)}
    holders = {key for key in holders if "obs" in key.rpartition("/")[2].lower()}
    families = []
    for key, entries in members.items():
        first, is_action = entries[0], _may_be_action(key, entries[0])
        use = uses[key]
        if stored and not use and _parent(key) in holders and not is_action:
            use = _REASONS[first.kind]
        families.append(
            ArrayFamily(key, _shape(entries), first.dtype, first.kind, len(entries), use, is_action)
        )
    listed = {key: len(contents.children(key)) for key in contents.groups}
    hidden = sum(max(0, count - listed[key]) for key, count in contents.groups.items())
    return tuple(families), hidden


def _numbered_groups(contents: Contents) -> dict[str, str]:
    """Return the name in a family of each group that is one of several of the same name."""
    families: dict[str, list[str]] = {}
    for key in contents.groups:
        stem, number, _ = numeric_order(key)
        if number >= 0:
            families.setdefault(f"{stem}*", []).append(key)
    return {
        key: family
        for family, keys in families.items()
        if len(keys) >= (2 if family.count("/") < FAMILY_DEPTH else DEEP_FAMILY)
        for key in keys
    }


def _parent(key: str) -> str:
    return key.rpartition("/")[0]


def _family_of(key: str, numbered: Mapping[str, str]) -> str:
    """Return a key with `*` for the number of the first group of a family on its way."""
    parts = key.split("/")
    for depth in range(1, len(parts) + 1):
        group = "/".join(parts[:depth])
        if group in numbered:
            return "/".join([numbered[group], *parts[depth:]])
    return key


def _shape(entries: list[ArrayEntry]) -> tuple[int | None, ...]:
    shapes = {entry.shape for entry in entries}
    if len({len(shape) for shape in shapes}) > 1:
        return (None,)
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))


def _may_be_action(key: str, entry: ArrayEntry) -> bool:
    parts = key.lower().split("/")
    named = any("action" in part for part in parts[-2:])
    named = named and not any(word in parts[-1] for word in NO_ACTIONS)
    return named and entry.kind == "low-dimensional"


def _use(key: str, stored: Mapping[str, str], action_key: str | None) -> str:
    """Return what the store keeps of an array, or ""."""
    if not stored:
        return ""
    parts = key.split("/")
    if any(part in AFTER for part in parts):
        return stored.get(FINAL, "") if parts[-1] in stored or parts[-1] in AFTER else ""
    if action_key and (key == action_key or key.endswith(f"/{action_key}")):
        return "action"
    if not action_key and parts[-1] in ("action", "actions"):
        return "action"
    for name, use in stored.items():
        path = name.replace(".", "/")
        if key in (name, path) or key.endswith(f"/{path}"):
            return use
    plain = parts[-1] in ("obs", "observation", "observations")
    return stored.get(OBSERVATION, "") if plain else ""


def recorded_values(contents: Contents) -> dict[str, Any]:
    """Return versions, names and other short values that a file records about itself."""
    numbered = _numbered_groups(contents)
    found: dict[str, Any] = {}
    for place, values in contents.attributes.items():
        if place.count("/") < FAMILY_DEPTH and _family_of(place, numbered) == place:
            for name, value in values.items():
                found.update(_short(f"{place}/{name}".lstrip("/"), value))
    for key, value in contents.scalars.items():
        if _family_of(key, numbered) == key:
            found.update(_short(key, value))
    versions_first = sorted(found, key=lambda name: not re.search("version|env", name.lower()))
    return {name: found[name] for name in versions_first[:MOST_RECORDED]}


def _short(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a value that is short enough to read, and the short ones in a text of JSON."""
    if not isinstance(value, str) or (len(value) <= LONGEST_RECORDED and value[:1] != "{"):
        yield name, value
        return
    try:
        held = parse_json(value.encode(), name, allow_nan=True) if value[:1] == "{" else None
    except (ArtifactError, UnicodeEncodeError):
        return
    for key, item in held.items() if isinstance(held, dict) else ():
        if isinstance(item, int | float) or (
            isinstance(item, str) and len(item) <= LONGEST_RECORDED
        ):
            yield f"{name}.{key}", item
