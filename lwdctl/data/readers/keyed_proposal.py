"""The command that reads a file with keys of its own, guessed from names, shapes and row counts.

Nothing is read because of a guess: it is what an error message proposes, for the user to check.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.config import list_text
from lwdctl.core.errors import DataError
from lwdctl.core.records import Finding
from lwdctl.data.checks import numeric_order
from lwdctl.data.files.array_kinds import components, leaf, why_not_observed
from lwdctl.data.files.contents import ArrayEntry
from lwdctl.data.readers.array_reader import ArrayFile
from lwdctl.data.readers.episode_bounds import (
    Bounds,
    bounds_of_ends,
    bounds_of_flags,
    bounds_of_lengths,
    bounds_of_stack,
)
from lwdctl.data.readers.keyed_arrays import Stack, stack_of, stacked

_ACTIONS = (
    "action", "actions", "act", "acts", "a", "u", "ctrl", "control", "controls", "command",
    "commands", "cmd", "cmds",
)  # fmt: skip
_OBSERVATIONS = ("obs", "state", "qpos", "qvel", "prop", "pos", "eef", "joint", "gripper", "goal")
_FLAGS = (
    "is_last", "dones", "done", "episode_end", "last", "timeouts", "terminals", "terminal",
    "is_terminal", "truncations", "terminations", "truncated", "terminated",
)  # fmt: skip
_MOST_LISTED = 24
_EPISODE_GROUP = re.compile(r"((?:.*/)?[^/]*\d)/(.+)")


@dataclass(frozen=True)
class Keys:
    """The keys of the arrays that are read.

    Attributes:
        observations: Observation keys.
        action: Action key, or "".
        option: Which of `EPISODE_OPTIONS` says where episodes end, or "".
        key: The array that says it, or "".
    """

    observations: tuple[str, ...] = ()
    action: str = ""
    option: str = ""
    key: str = ""


@dataclass(frozen=True)
class Layout:
    """How the arrays of a file hold episodes, as their names and shapes let guess.

    Attributes:
        arrays: The arrays by the keys that name them: of a file with a group per episode, those of
            the first group, without its path; of arrays of whole episodes, as `StackedArrays`
            shows them.
        text: The arrays with shapes and types as one line.
        groups: Paths of the groups that hold an episode each, with a slash at the end, or ().
        stack: The first two axes of arrays of whole episodes, or None.
    """

    arrays: Mapping[str, ArrayEntry]
    text: str
    groups: tuple[str, ...] = ()
    stack: Stack | None = None

    @classmethod
    def of(cls, arrays: Mapping[str, ArrayEntry], given: Keys) -> Layout:
        """Return the layout of a file, of which some keys are known."""
        groups = groups_with(arrays, given.action)
        if len(groups) < 2:
            groups = _episode_groups(arrays, given.action)
        if groups:
            first = groups[0]
            inside = {
                key.removeprefix(first): entry
                for key, entry in arrays.items()
                if key.startswith(first)
            }
            count = f"{len(groups)} groups, one per episode"
            return cls(inside, f"{count}; {first[:-1]} has {_listed(inside)}", tuple(groups))
        for key in (given.action,) if given.action else arrays:
            stack = stack_of(arrays, given.observations, key)
            if stack and (given.action or leaf(key) in _ACTIONS):
                return cls(stacked(arrays, stack), _listed(arrays), stack=stack)
        return cls(arrays, _listed(arrays))

    @property
    def needs_ends(self) -> bool:
        """Whether an option has to say where episodes end."""
        return not self.groups and self.stack is None

    def relative(self, keys: Keys) -> Keys:
        """Return keys without the path of the first group, with which they may be given."""
        prefix = self.groups[0] if self.groups else ""
        observations = tuple(key.removeprefix(prefix) for key in keys.observations)
        return replace(keys, observations=observations, action=keys.action.removeprefix(prefix))


def groups_with(arrays: Mapping[str, ArrayEntry], action: str) -> list[str]:
    """Return the outermost groups that hold the action key, in numeric order.

    Each is a path with a slash at its end. There are none where the key names an array itself.
    """
    if not action or action in arrays:
        return []
    found = [key for key in arrays if key.endswith(f"/{action}")]
    outermost: list[str] = []
    for prefix in sorted(key.removesuffix(action) for key in found):
        if not outermost or not prefix.startswith(outermost[-1]):
            outermost.append(prefix)
    return sorted(outermost, key=_group_order)


def _group_order(prefix: str) -> list[tuple[str, int, str]]:
    """Return a sort key that orders every part of a path numerically."""
    return [numeric_order(part) for part in prefix.split("/")]


def _listed(arrays: Mapping[str, ArrayEntry]) -> str:
    listed = [
        f"{key} {entry.shape} {entry.dtype}" for key, entry in list(arrays.items())[:_MOST_LISTED]
    ]
    rest = len(arrays) - len(listed)
    return ", ".join([*listed, f"and {rest} more"] if rest else listed) or "no arrays"


def propose(data_format: str, file: ArrayFile, given: Keys) -> str:
    """Return the command that reads a file, or a hint where nothing can be guessed.

    Args:
        data_format: The format's name on the command line.
        file: The file.
        given: The keys that are known already.
    """
    layout = Layout.of(file.arrays, given)
    given, found = layout.relative(given), layout.arrays
    action = given.action if given.action in found else _guess_action(found)
    words = ["lwdctl", "ingest", data_format, _quoted(file)]
    if action not in found:
        words += ["--observation-keys", "KEY,...", "--action-key", "KEY"]
        words += ["--episode-ends", "KEY"] * layout.needs_ends
        inside = ", as they are called in a group" if layout.groups else ""
        return f"name them{inside}: {' '.join(words)}"
    observations = given.observations or _guess_observations(found, action)
    words += ["--observation-keys", shlex.quote(list_text(observations) or "KEY")]
    short = {key: key.removeprefix("obs/").removeprefix("observations/") for key in observations}
    renamed = [f"{key}={name}" for key, name in short.items() if key != name]
    if renamed and len({*short.values()}) == len(short):  # environments do not show such prefixes
        words += ["--rename", shlex.quote(list_text(renamed))]
    words += ["--action-key", shlex.quote(action)]
    option, key = "", ""
    if layout.stack:
        option, key = "lengths_key", _guess_lengths(file, layout.stack)
    elif not layout.groups:
        option, key = (given.option, given.key) if given.key else _guess_ends(file, action)
    if key:
        words += [f"--{option.replace('_', '-')}", shlex.quote(key)]
    return " ".join(words)


def _quoted(file: ArrayFile) -> str:
    return shlex.quote(str(file.path))


def _episode_groups(arrays: Mapping[str, ArrayEntry], action: str) -> list[str]:
    """Return the groups that look like episodes, in numeric order, each with a slash at its end.

    There are none where an array of actions lies outside such groups. Groups in which nothing
    looks like actions are episodes where all of them hold the same arrays and none lies outside.
    """
    groups: dict[str, dict[str, ArrayEntry]] = {}
    is_outside = False
    for key, entry in arrays.items():
        match = _EPISODE_GROUP.fullmatch(key)
        if match:
            groups.setdefault(f"{match[1]}/", {})[match[2]] = entry
        elif key == action or leaf(key) in _ACTIONS:
            return []
        else:
            is_outside |= bool(entry.shape)
    holding = [name for name, inside in groups.items() if action in inside or _guess_action(inside)]
    same = len(groups) > 1 and len({frozenset(inside) for inside in groups.values()}) == 1
    return sorted(holding or (groups if same and not is_outside else ()), key=_group_order)


def _guess_action(arrays: Mapping[str, ArrayEntry]) -> str:
    """Return the array that most likely holds actions, or ""."""
    usable = [key for key, entry in arrays.items() if _is_vector(entry)]
    named = [key for name in _ACTIONS for key in usable if leaf(key) == name]
    named += [key for key in usable if "action" in leaf(key) and not leaf(key).startswith("next_")]
    if named:
        return named[0]
    vectors = [key for key in usable if not why_not_observed(key, arrays[key])]
    others = [key for key in vectors if not _looks_observed(key)]
    return others[0] if len(others) == 1 and len(vectors) > 1 else ""


def _guess_observations(arrays: Mapping[str, ArrayEntry], action: str) -> tuple[str, ...]:
    """Return the arrays with the rows of the actions (or one more) that look observed."""
    rows = arrays[action].shape[0]
    fitting = [
        key
        for key, entry in arrays.items()
        if key != action
        and not why_not_observed(key, entry)
        and entry.shape[0] in (rows, rows + 1)
        and "action" not in leaf(key)
        and not (len(entry.shape) == 1 and leaf(key) in _FLAGS)
    ]
    named = [key for key in fitting if _looks_observed(key)]
    best = named or fitting
    exact = [key for key in best if arrays[key].shape[0] == rows]
    return tuple(exact or best)


def _looks_observed(key: str) -> bool:
    return any(word in key.lower() for word in _OBSERVATIONS)


def _is_vector(entry: ArrayEntry) -> bool:
    """Return whether an array may hold actions: floating-point vectors of few components."""
    return (
        entry.is_numeric
        and np.dtype(entry.dtype).kind == "f"
        and len(entry.shape) in (1, 2)
        and components(entry) > 0
        and entry.shape[0] > 0
    )


def _guess_ends(file: ArrayFile, action: str) -> tuple[str, str]:
    """Return the option and its value that say where episodes end."""
    rows = file.arrays[action].shape[0]
    ends, lengths, flags = (
        _counting(file, rows, "end"), _counting(file, rows, "len"), _flag_names(file, rows),
    )  # fmt: skip
    tests: list[tuple[str, Sequence[str], Callable[[npt.NDArray[Any]], bool]]] = [
        ("episode_ends", ends, lambda v: _last_end(bounds_of_ends(v, rows, "")) == rows),
        ("lengths_key", lengths, lambda v: _last_end(bounds_of_lengths(v, rows, "")) == rows),
        ("terminals_key", flags, lambda v: _last_end(bounds_of_flags(v, rows, "", "first")) > 0),
        ("episode_ends", ends, lambda v: 2 * _last_end(bounds_of_ends(v, rows, "")) > rows),
        ("lengths_key", lengths, lambda v: 2 * _last_end(bounds_of_lengths(v, rows, "")) > rows),
    ]
    for option, keys, fits in tests:
        for key in keys:
            try:
                file.open((), (key,))
                if fits(file.rows(key)):
                    return option, key
            except DataError:
                continue
    return "terminals", "ignore"


def _guess_lengths(file: ArrayFile, stack: Stack) -> str:
    """Return the array that holds the lengths of episodes which are stored as `stack`, or ""."""
    for key in _counting(file, stack.episodes, "len"):
        if "len" in leaf(key) and file.arrays[key].shape[0] == stack.episodes:
            try:
                file.open((), (key,))
                bounds_of_stack(file.rows(key), stack.steps, "")
            except DataError:
                continue
            return key
    return ""


def _last_end(found: tuple[Bounds, list[Finding]]) -> int:
    return found[0][-1][1]


def _counting(file: ArrayFile, rows: int, word: str) -> list[str]:
    """Return lists of whole numbers that may count rows, those with the word in front."""
    found = [
        key
        for key, entry in file.arrays.items()
        if entry.is_numeric
        and np.dtype(entry.dtype).kind in "iu"
        and len(entry.shape) == 1
        and 0 < entry.shape[0] <= rows
    ]
    return sorted(found, key=lambda key: word not in leaf(key))


def _flag_names(file: ArrayFile, rows: int) -> Sequence[str]:
    return [
        key
        for name in _FLAGS
        for key, entry in file.arrays.items()
        if leaf(key) == name and entry.shape in ((rows,), (rows, 1)) and entry.is_numeric
    ]
