"""Values that a demonstration carries in attributes, in fields of JSON attributes, or in arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from lwdctl.core.errors import DataError
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.checks import NUMBER_KINDS
from lwdctl.data.files.hdf5 import json_of, location, read_array, text_of

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
