"""JSON and TOML that others may have written: read within bounds and checked before use.

The content is plain data of bounded size: regular files only, so that a pipe or a device is not
waited for; not too many values, no deep nesting, no key twice, no number that a float or 64 bits
cannot hold, no half of a character. `typed` turns it into dataclasses.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lwdctl.core.errors import ArtifactError, LwdctlError, first_line
from lwdctl.core.plain_text import plain_text

T = TypeVar("T")

MOST_BYTES = 2**26
"""Bytes of a text file; a manifest of a million files has fewer."""
MOST_VALUES = 2_000_000
"""Values in one text: each takes up to 250 bytes of memory, so that all take less than 0.5 GB."""
MOST_TOML_BYTES = 2**18
"""Bytes of a TOML file: Python's parser is slow, and a recipe has a few thousand."""
MOST_DOTS = 200
"""Dots in a line of TOML: Python's parser takes memory by the square of a dotted key's parts."""
MOST_LEVELS = 32
"""Levels of nesting; our own files have fewer than ten."""
MOST_BITS = 64
"""Bits of an integer beside its sign."""

_KINDS = {
    stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip

Failure = type[LwdctlError]


def read_bytes(
    path: Path,
    failure: Failure = ArtifactError,
    most: int = MOST_BYTES,
    hint: str = "",
    where: str = "",
) -> bytes:
    """Return the content of a regular file of bounded size; nothing else is opened or waited for.

    Args:
        path: The file.
        failure: Type of the error that is raised.
        most: Largest number of bytes accepted.
        hint: What to do about it.
        where: How the message begins, `cannot read PATH` by default.

    Raises:
        LwdctlError: There is no such file, it cannot be read, it is something else than a file, or
            it is too large. The error's cause is the system's, if there is one.
    """
    where = where or f"cannot read {path}"
    check_regular(path, failure, hint, where)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
            # What took its place meanwhile is not waited for either.
            content = file.read(most + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError as error:
        raise failure(f"{where}: {error.strerror}", hint) from error
    if len(content) > most:
        raise failure(f"{where}: it has more than {most:,} bytes", hint)
    return content


def check_regular(
    path: Path, failure: Failure = ArtifactError, hint: str = "", where: str = ""
) -> None:
    """Check that a path leads to a regular file, which a library may then open; see `read_bytes`.

    Raises:
        LwdctlError: There is none, or it is something else.
    """
    where = where or f"cannot read {path}"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise failure(f"{where}: {error.strerror}", hint) from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise failure(f"{where}: it is {kind}, not a file", hint)


def read_json(
    path: Path,
    failure: Failure = ArtifactError,
    hint: str = "",
    *,
    where: str = "",
    allow_nan: bool = False,
) -> Any:
    """Return what a JSON file holds; see `parse_json`, where `where` is the path by default.

    Raises:
        LwdctlError: The file cannot be read or is not such JSON.
    """
    content = read_bytes(path, failure, hint=hint, where=where)
    return parse_json(content, where or str(path), failure, hint, allow_nan=allow_nan)


def parse_json(
    content: bytes,
    where: str,
    failure: Failure = ArtifactError,
    hint: str = "",
    *,
    allow_nan: bool = False,
) -> Any:
    """Return what a JSON text holds.

    Args:
        content: The text in UTF-8, without a mark of byte order.
        where: Its file, for messages.
        failure: Type of the error that is raised.
        hint: What to do about it.
        allow_nan: Whether numbers may be NaN or infinite.

    Raises:
        LwdctlError: It is no JSON, or exceeds the bounds.
    """

    def parse() -> Any:
        if sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values")
        return json.loads(content.decode("utf-8"), object_pairs_hook=_mapping)

    return _plain(parse, "JSON", where, failure, hint, allow_nan=allow_nan)


def read_toml(path: Path, failure: Failure, hint: str = "") -> dict[str, Any]:
    """Return what a TOML file holds; not-a-number and infinity are accepted, as TOML has them.

    Raises:
        LwdctlError: The file cannot be read, is no TOML, or exceeds the bounds.
    """
    content = read_bytes(path, failure, MOST_TOML_BYTES)

    def parse() -> dict[str, Any]:
        if any(line.count(b".") > MOST_DOTS for line in content.splitlines()):
            raise ValueError(f"a line with more than {MOST_DOTS} dots")
        return tomllib.loads(content.decode("utf-8"))

    return _plain(parse, "TOML", str(path), failure, hint, allow_nan=True)


def typed(
    kind: type[T],
    values: Any,
    where: str,
    failure: Failure = ArtifactError,
    hint: str = "",
    *,
    only_known: bool = True,
) -> T:
    """Return plain values as an object of a declared type, checked down to the last value.

    Args:
        kind: A dataclass whose annotations say what is accepted: types, `Literal`, nested
            dataclasses, tuples and mappings of these, and ranges as `Annotated[int, Meta(ge=0)]`.
        values: What a JSON or TOML text holds.
        where: Its file, for messages.
        failure: Type of the error that is raised.
        hint: What to do about it.
        only_known: Whether keys that the type does not have are errors; else they are left out.

    Raises:
        LwdctlError: A value is missing, unknown, of another type or out of range.
    """
    import msgspec  # here, so that help texts do not wait for it

    try:
        made = msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise failure(f"{where}: {_in_words(str(error))}", hint) from error
    unknown = only_known and _unknown(values, msgspec.to_builtins(made))
    if unknown:
        raise failure(f"{where}: unknown key {plain_text(unknown, 200)}", hint)
    return made


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = sorted(key for key, _ in pairs)
        twice = next(one for one, other in itertools.pairwise(keys) if one == other)
        raise ValueError(f"the key '{plain_text(twice, 60)}' stands there twice")
    return values


def _plain(
    parse: Callable[[], T], noun: str, where: str, failure: Failure, hint: str, *, allow_nan: bool
) -> T:
    """Return what a text is parsed to, once it is found to be plain."""
    try:
        value = parse()
        _check_plain(value, allow_nan=allow_nan)
    except RecursionError:
        raise failure(f"{where}: more than {MOST_LEVELS} levels of nesting", hint) from None
    except ValueError as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeError) else first_line(error)
        raise failure(f"{where}: not valid {noun}: {plain_text(reason, 200)}", hint) from error
    return value


def _check_plain(value: Any, *, allow_nan: bool, levels: int = MOST_LEVELS) -> None:
    """Check nesting, numbers and texts.

    Raises:
        RecursionError: The nesting is too deep.
        ValueError: A number or text that nothing else can hold.
    """
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # halves of surrogate pairs have no UTF-8
    elif isinstance(value, int):
        if value.bit_length() > MOST_BITS:
            raise ValueError(f"an integer of more than {MOST_BITS} bits")
    elif isinstance(value, float):
        if not (allow_nan or math.isfinite(value)):
            raise ValueError("a number that is not finite")
    elif isinstance(value, Mapping | list):
        if not levels:
            raise RecursionError
        if isinstance(value, Mapping):
            for key in value:
                _check_plain(key, allow_nan=allow_nan)
            value = value.values()
        for item in value:
            _check_plain(item, allow_nan=allow_nan, levels=levels - 1)


def _in_words(message: str) -> str:
    """Return msgspec's message with the place in front: `files[0].size: expected int, got str`."""
    what, _, place = message.partition(" - at ")
    place = place.strip("`").removeprefix("$").removeprefix(".")
    for json_name, name in (("`", ""), ("Object missing", "missing"), ("array", "list")):
        what = what.replace(json_name, name)
    what = what[:1].lower() + what[1:]
    return plain_text(f"{place}: {what}" if place else what, 300)


def _unknown(values: Any, known: Any, place: str = "") -> str:
    """Return the place of a key that a record does not have, or ""."""
    if isinstance(values, Mapping) and isinstance(known, Mapping):
        pairs = ((f"{place}.{key}", values[key], known.get(key, _MISSING)) for key in values)
    elif isinstance(values, list) and isinstance(known, list | tuple):
        pairs = ((f"{place}[{n}]", *pair) for n, pair in enumerate(zip(values, known, strict=True)))
    else:
        return ""
    for here, value, found in pairs:
        if found is _MISSING:
            return here.removeprefix(".")
        if isinstance(value, dict | list) and (inner := _unknown(value, found, here)):
            return inner
    return ""


_MISSING = object()
