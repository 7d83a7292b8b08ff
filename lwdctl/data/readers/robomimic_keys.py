"""What the arrays of a demonstration in robomimic's layout are: observations, actions, others.

A demonstration also carries values in attributes, in fields of JSON attributes, or in arrays.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.config import list_text
from lwdctl.core.errors import DataError
from lwdctl.core.plain_text import listed
from lwdctl.core.records import RESERVED_KEYS, Finding, ObservationSpec, Severity
from lwdctl.core.simulator_facts import OBSERVATION, robosuite_network_keys
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.checks import NUMBER_KINDS, choose_observations, nothing_left
from lwdctl.data.files.hdf5 import json_of, location, read_array, text_of
from lwdctl.data.readers.robomimic_env import ACTIONS
from lwdctl.data.readers.robomimic_masks import SHOWN

OBS = "obs"
GENERATOR_GROUP = "datagen_info"
"""Group in which MimicGen and Isaac Lab Mimic keep what their generators work with."""
# Numbers per step beside the observations that are none.
NO_OBSERVATIONS = ("rewards", "dones", "states", "initial_state", "success")
MAX_DEPTH = 6
ROWS = "rows for"
"""What the reason says where an array does not fit the actions."""


def arrays_in(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Return all arrays below a group by their paths.

    Links within the file are followed, but every group is visited once, so that groups which
    contain each other end.
    """
    found: dict[str, h5py.Dataset] = {}
    visited: set[int] = set()
    stack = [("", group)]
    while stack:
        prefix, item = stack.pop()
        address = h5py.h5o.get_info(item.id).addr
        if address in visited or prefix.count("/") > MAX_DEPTH:
            continue
        visited.add(address)
        for name, child in item.items():
            if isinstance(child, h5py.Dataset):
                found[f"{prefix}{name}"] = child
            elif isinstance(child, h5py.Group):
                stack.append((f"{prefix}{name}/", child))
    return found


def is_vector(shape: Sequence[int]) -> bool:
    """Return whether every row is one vector: of shape (), (n,), (1, n) or (n, 1)."""
    return 1 <= len(shape) <= 2 or (len(shape) == 3 and 1 in shape[1:])


def is_action(path: str) -> bool:
    """Return whether the path of an array says that it holds actions."""
    return "action" in path.partition("/")[0]


ODD: dict[str, tuple[str, Severity, str, str]] = {
    "no actions": (
        "left-out", "note", "{} groups beside the demonstrations hold no actions: {}", "",
    ),
    "empty": ("left-out", "warning", "{} demonstrations have no steps and are left out: {}", ""),
    "num_samples": (
        "metadata", "warning",
        "num_samples of {} demonstrations is not the number of their actions, which counts: {}", "",
    ),
    "seed": (
        "metadata", "warning",
        "the seed of {} demonstrations is not a whole number from 0 on, and not stored: {}", "",
    ),
    "success": (
        "metadata", "warning",
        "the attribute success of {} demonstrations is neither true nor false, and not used: {}",
        "",
    ),
    "label": ("metadata", "warning", "{} demonstrations have no behavior label: {}", ""),
    "task": ("metadata", "warning", "{} demonstrations have no task of their own: {}", ""),
    "failed": (
        "success", "note", "{} demonstrations are marked as failed and stored: {}",
        "--only-successful leaves them out",
    ),
    "states": (
        "left-out", "note",
        "states of {} demonstrations are no table of a row per action, and are not stored: {}", "",
    ),
    "final": (
        "adjusted", "note",
        ("{} demonstrations have one row more than the actions in their observations; it is stored"
         " as the observation after the last action, and not trained on: {}"), "",
    ),
    "some final": (
        "left-out", "note",
        ("{} demonstrations have one row more than the actions in some of their observations; that"
         " row is left out: {}"), "",
    ),
}  # fmt: skip
"""Oddities of demonstrations that do no harm: check, severity, message and hint."""


def odd_findings(
    odd: Mapping[str, Sequence[str]],
    reshaped: Mapping[str, Sequence[tuple[str, tuple[int, ...]]]],
    where: str,
) -> list[Finding]:
    """Return what to say about oddities of demonstrations.

    Args:
        odd: Names of demonstrations by their oddity, a row of `ODD`.
        reshaped: Name of an array to the demonstrations, with its shape in each, in which a row
            is no vector.
        where: File and group.
    """
    found = []
    for what, places in odd.items():
        check, severity, message, hint = ODD[what]
        text = message.format(len(places), listed(places, SHOWN))
        values: dict[str, Any] = {"count": len(places), "first": list(places[:10])}
        found.append(Finding(check, severity, text, where, hint, values))
    if reshaped:
        first = {name: places[0] for name, places in reshaped.items()}
        shown = listed(
            [f"{name} of {demo}, {shape}" for name, (demo, shape) in first.items()], SHOWN
        )
        counts = {name: len(places) for name, places in reshaped.items()}
        message = f"every row becomes one vector: {shown}"
        found.append(Finding("adjusted", "note", message, where, values={"reshaped": counts}))
    return found


@dataclass(frozen=True)
class Layout:
    """The arrays of one demonstration.

    Attributes:
        paths: Of every possible observation its path below the demonstration, by its name
            (nested names are joined by a dot).
        sizes: Its number of components.
        beside: Names of those that lie beside the group `obs`.
        unusable: Names of arrays below `obs` that can be no observation, with the reason.
        actions: Paths of arrays that may hold actions, the likeliest first.
        others: Paths of all other arrays.
    """

    paths: Mapping[str, str]
    sizes: Mapping[str, int]
    beside: tuple[str, ...]
    unusable: Mapping[str, str]
    actions: tuple[str, ...]
    others: tuple[str, ...]


def layout_of(demo: h5py.Group) -> Layout:
    """Return what the arrays of a demonstration are."""
    paths: dict[str, str] = {}
    sizes: dict[str, int] = {}
    beside, actions, others = list[str](), list[str](), list[str]()
    unusable: dict[str, str] = {}
    arrays = arrays_in(demo)
    inside = {name_of(path) for path in arrays if path.partition("/")[0] == OBS}
    for path, item in arrays.items():
        top = path.partition("/")[0]
        if top != OBS and is_action(path):
            actions.append(path)
            continue
        name = name_of(path)
        reason = _reason_against(path, name, item)
        if top == OBS and reason:
            unusable[name] = reason
        elif top == OBS or not ("/" in path or name in {*inside, *NO_OBSERVATIONS} or reason):
            paths[name], sizes[name] = path, math.prod(item.shape[1:])
            beside += [name] if top != OBS else []
        else:
            others.append(path)
    actions.sort(key=lambda path: ("/" in path, len(demo[path].shape or ()) != 2))
    return Layout(paths, sizes, tuple(beside), unusable, tuple(actions), tuple(others))


def name_of(path: str) -> str:
    """Return the name of the observation at a path below a demonstration."""
    return OBSERVATION if path == OBS else path.removeprefix(f"{OBS}/").replace("/", ".")


def _reason_against(path: str, name: str, item: h5py.Dataset) -> str:
    """Return why an array can be no observation, or ""."""
    shape = item.shape
    if GENERATOR_GROUP in path.split("/"):
        return "what the generator of the demonstrations works with"
    if shape is None or item.dtype.kind not in NUMBER_KINDS:
        return f"holds {item.dtype}, not numbers"
    if not shape:
        return "a single value"
    if not is_vector(shape):
        noun = "images" if item.dtype.itemsize == 1 else "rows"
        return f"{noun} of shape {shape[1:]}"
    return "its name is reserved in snippet stores" if name in RESERVED_KEYS else ""


def choose_action_key(layout: Layout, config: IngestConfig, where: str) -> str:
    """Return the path of the action array below a demonstration.

    Args:
        layout: Of the first demonstration.
        config: `action_key`, or None for `actions`.
        where: File and demonstration, for error messages.

    Raises:
        DataError: There is none of that name; the hint names one that there is.
    """
    key = (config.action_key or ACTIONS).replace(".", "/")
    if key in layout.actions:
        return key
    if config.action_key and key in (layout.paths.get(name) for name in layout.beside):
        return key
    problem = "is an observation" if key in layout.paths.values() else "is missing"
    if layout.actions:
        shown = f"{where}/{key}: {problem}; arrays that may hold actions: "
        hint = f"--action-key {shlex.quote(layout.actions[0])}"
        if config.action_key:
            hint = did_you_mean(key, layout.actions)
        raise DataError(shown + listed(layout.actions, SHOWN), hint)
    if layout.beside and not config.action_key:
        raise DataError(
            f"{where}/{key}: is missing",
            f"--action-key {shlex.quote(layout.beside[0])}, if it holds the actions",
        )
    raise DataError(f"{where}/{key}: {problem}")


def choose_keys(
    layout: Layout, adapter: str, partly: Iterable[str], config: IngestConfig, where: str
) -> tuple[ObservationSpec, ...]:
    """Decide which observations are stored and which of them are network inputs.

    Args:
        layout: Of the first demonstration.
        adapter: Row of the environment table; robosuite's keys have a default of their own.
        partly: Names that some demonstrations lack, which are left out by default.
        config: `observation_keys` and `drop`.
        where: File and group, for error messages.

    Raises:
        DataError: There is no such key, it can be no observation, or none is left.
    """
    known = {*layout.paths, *layout.unusable}
    dropped = {name.replace("/", ".") for name in config.drop}
    for name in sorted(dropped - known):
        raise DataError(f"{where}: --drop: no observation '{name}'", did_you_mean(name, known))
    requested = [name.replace("/", ".") for name in config.observation_keys]
    for name in requested:
        if name in layout.unusable:
            raise DataError(
                f"{where}: '{name}' cannot be an observation: {layout.unusable[name]}",
                "leave --observation-keys out to store every key that can",
            )
    inside = [name for name in layout.paths if name not in layout.beside]
    default: Sequence[str] = inside
    if adapter == "robosuite":
        default = robosuite_network_keys(inside) or inside
    left_out = dropped.union(partly)
    default = [name for name in default if name not in left_out]
    if not requested and not default:
        if dropped:
            raise nothing_left(where)
        _raise_nothing_left(layout, where)
    return choose_observations(requested, default, layout.sizes, where)


def _raise_nothing_left(layout: Layout, where: str) -> None:
    if layout.unusable:
        name, reason = next(iter(layout.unusable.items()))
        hint = (
            "observations need one row per action, or one more for the observation after the last"
            " action: shorten the arrays, or read other actions with --action-key KEY"
        )
        raise DataError(
            f"{where}/{name.replace('.', '/')}: {reason}", hint if ROWS in reason else ""
        )
    if layout.beside:
        raise DataError(
            f"{where}: is missing, and no observation is left",
            f"--observation-keys {shlex.quote(list_text(layout.beside))}",
        )
    raise DataError(f"{where}: is missing")


def findings_of(
    layout: Layout,
    chosen: Sequence[ObservationSpec],
    action_key: str,
    partly: Mapping[str, int],
    demo: h5py.Group,
) -> list[Finding]:
    """Return what of a file's arrays is left out.

    Args:
        layout: Of the first demonstration.
        chosen: The observations that are stored.
        action_key: Path of the action array.
        partly: Names that some demonstrations lack, and how many have them.
        demo: The first demonstration.
    """
    where, names = location(demo), {item.name for item in chosen}
    reasons = dict(layout.unusable)
    reasons |= {name: f"in only {count} of the demonstrations" for name, count in partly.items()}
    for name in layout.paths:
        default = "beside obs" if name in layout.beside else "not a default key"
        if name not in names and name != action_key:
            reasons.setdefault(name, default)
    for name in names.intersection(reasons):
        del reasons[name]
    readable = sorted(name for name in reasons if name in layout.paths and name not in partly)
    others = [path for path in layout.actions if path != action_key]
    every = shlex.quote(list_text([*(item.name for item in chosen), *readable]))
    found = [
        _left_out(
            "observations", reasons, f"{where}/{OBS}",
            f"--observation-keys {every} stores them as well" if readable else "",
            warn=any(name in partly or ROWS in reason for name, reason in reasons.items()),
        ),
        _left_out(
            "action arrays",
            dict.fromkeys(others, "another action array"),
            where,
            f"--action-key {shlex.quote(others[0])} reads it" if others else "",
        ),
        _left_out(
            "arrays",
            {path: "obs holds an array of this name" if path in {*layout.paths, *layout.unusable}
             else "neither observations nor actions" for path in layout.others
             if path.partition("/")[0] not in ("next_obs", "rewards", "dones")
             and path not in ("states", "initial_state")},
            where, "",
        ),
    ]  # fmt: skip
    return [item for item in found if item is not None]


def _left_out(
    noun: str, reasons: Mapping[str, str], where: str, hint: str, *, warn: bool = False
) -> Finding | None:
    if not reasons:
        return None
    shown = "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
    values: dict[str, Any] = {"reasons": dict(reasons)}
    message = f"{len(reasons)} {noun} are left out: {shown}"
    return Finding("left-out", "warning" if warn else "note", message, where, hint, values)


# Models of scenes are megabytes of XML, and no name of anything.
NO_NAMES = ("model_file", "env_args")
LONGEST_NUMBER = 20  # digits; none of 64 bits has more
INSTRUCTIONS = ("ep_meta.lang", "problem_info.language_instruction")
"""Where RoboCasa (per demonstration) and LIBERO (per file) keep the instruction."""


def find_text(demo: h5py.Group, name: str) -> str | None:
    """Return the value that a demonstration or its file has under a name, as text.

    Args:
        demo: The demonstration, whose own attributes go before those of the group of all.
        name: An attribute (`operator`), a field of a JSON attribute (`ep_meta.lang`), or an array
            of the demonstration, whose first row counts.

    Returns:
        None where there is no such value, or it is no single text or number.
    """
    attribute, _, field = name.partition(".")
    for attributes in (demo.attrs, demo.parent.attrs):
        if name in attributes:
            return _single(attributes[name])
        if field and attribute in attributes:
            return _single(_field(json_of(attributes[attribute])[0], field))
    item = demo.get(name.replace(".", "/"))
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        return None
    if not item.shape:
        return _single(item[()])
    return _single(read_array(item, 0, 1).reshape(-1)) if item.shape[0] else None


def required_texts(demos: Sequence[h5py.Group], name: str, option: str) -> list[str | None]:
    """Return the value of every demonstration under a name that the user gave.

    Raises:
        DataError: No demonstration has it; the hint lists the names that there are.
    """
    values = [find_text(demo, name) for demo in demos]
    if any(value is not None for value in values):
        return values
    known = set(_names_in(demos[0]))
    raise DataError(
        f"{location(demos[0])}: {option}: has no text or number '{name}'",
        did_you_mean(name, known) or "the demonstrations have no attributes",
    )


def _names_in(demo: h5py.Group) -> Iterator[str]:
    for attributes in (demo.attrs, demo.parent.attrs):
        for name in attributes:
            if name in NO_NAMES:
                continue
            value = attributes[name]
            fields, _ = json_of(value)
            if _single(value) is not None and not isinstance(fields, dict):
                yield name
            yield from _fields(fields, name)
    for name, item in demo.items():
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "SO":
            yield name


def _fields(value: Any, prefix: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            name = f"{prefix}.{key}"
            if isinstance(item, dict):
                yield from _fields(item, name)
            elif _single(item) is not None:
                yield name


def _field(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _single(value: Any) -> str | None:
    """Return a text, number, array of one of them, or list of words or letters as text, else None.

    LIBERO's own scripts join `language_instruction`, which some of its files hold letter by letter.
    """
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ("" if all(len(item) == 1 for item in value) else " ").join(value)
    if isinstance(value, np.ndarray):
        if value.size != 1:
            return None
        value = value.reshape(-1)[0]
    if isinstance(value, np.generic):
        value = value.item()
    return text_of(value) if isinstance(value, str | bytes | int | float) else None


def flag_of(value: Any) -> bool | None:
    """Return an attribute that is true or false (0 or 1), None for none or another one."""
    if np.size(value) != 1 or np.asarray(value).dtype.kind not in NUMBER_KINDS:
        return None
    number = float(np.asarray(value).reshape(-1)[0])
    return bool(number) if number in (0, 1) else None


def whole_number_of(value: Any) -> int | None:
    """Return an attribute that is a whole number from 0 on, also one written as text, else None."""
    text = text_of(np.asarray(value).reshape(-1)[0]) if np.size(value) == 1 else ""
    text = text.removesuffix(".0")
    return int(text) if text.isdecimal() and len(text) < LONGEST_NUMBER else None
