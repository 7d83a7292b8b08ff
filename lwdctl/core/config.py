"""Strict configuration: frozen dataclasses filled from TOML, JSON or the command line.

A stage's configuration is one frozen dataclass whose fields are made with `option`. Its defaults
stand there and nowhere else; the command line, recipes and manifests are read and written through
the functions below. Supported field types are `bool`, `int`, `float`, `str`, `Literal` of texts,
`X | Literal[...]`, `X | None`, and `tuple[X, ...]` of these. Text and TOML write None as `none`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from lwdctl.core.errors import ConfigError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.registry import Registry
from lwdctl.core.suggest import did_you_mean

C = TypeVar("C")

_NONE = "none"
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclasses.dataclass(frozen=True)
class FieldType:
    """A field's declared type, taken apart.

    Attributes:
        scalar: `bool`, `int`, `float` or `str`; None where only `literals` are accepted.
        literals: The texts accepted beside the scalar.
        optional: Whether None is accepted.
        many: Whether the field is a tuple of such values.
    """

    scalar: type | None
    literals: tuple[str, ...] = ()
    optional: bool = False
    many: bool = False

    def __str__(self) -> str:
        """Name what one value may be, as error messages do."""
        names = [self.scalar.__name__] if self.scalar else []
        return " or ".join([*names, *(f"'{item}'" for item in self.literals)])


@dataclasses.dataclass(frozen=True)
class Bound:
    """The largest number that any machine could serve.

    Attributes:
        most: The number.
        why: What one more would take, for the hint of the error.
    """

    most: int
    why: str


_ANY_INTEGER = Bound(2**63 - 1, "larger integers have more than 64 bits")
_SHOWN = 60


class Settings:
    """Base of a configuration: checks every field, however the object is made.

    Attributes:
        bounds: Field name to the largest integer that a machine could serve; help texts leave it
            out.

    Raises:
        ConfigError: A value of a wrong type, an unknown name, or a value out of range.
    """

    bounds: typing.ClassVar[Mapping[str, Bound]] = {}

    def __new__(cls, *_: Any, **values: Any) -> typing.Self:
        """Check the names of the fields before the dataclass's own constructor does."""
        fields = {field.name for field in dataclasses.fields(typing.cast(Any, cls))}
        for name in values:
            if name not in fields:
                raise ConfigError(
                    f"{cls.__name__}: unknown setting '{plain_text(name, _SHOWN)}'",
                    did_you_mean(name, fields),
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check and normalize the fields (a list becomes a tuple, an int a float)."""
        for field in dataclasses.fields(typing.cast(Any, self)):
            value = _check(getattr(self, field.name), field, type(self), "")
            object.__setattr__(self, field.name, value)


def option(
    default: Any,
    help: str,  # noqa: A002 - the name the command line uses
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    argument: bool = False,
    registry: str = "",
    example: str = "",
) -> Any:
    """Declare a configuration field.

    Args:
        default: The value of a field that is not given.
        help: One line for `--help`.
        minimum: Smallest number accepted.
        maximum: Largest number that has a meaning.
        argument: A positional argument of the command line instead of an `--option`.
        registry: `package.module:ATTRIBUTE` of the `Registry` that lists the accepted names,
            imported on use.
        example: A value as Python and TOML write it, for the hint where another type is given.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "argument": argument,
        "registry": registry,
        "example": example,
    }
    return dataclasses.field(default=default, metadata=metadata)


def field_type(config: type, name: str) -> FieldType:
    """Take apart the declared type of a field of `config`."""
    return _field_types(config)[name]


def registry_of(field: dataclasses.Field[Any]) -> Registry | None:
    """Import the table of the names that a field accepts; None where it has no such table."""
    module, _, attribute = field.metadata["registry"].partition(":")
    if not module:
        return None
    return typing.cast(Registry, getattr(importlib.import_module(module), attribute))


def from_mapping(config: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Build `config` from plain values; unknown keys and wrong types are errors.

    Args:
        config: A frozen dataclass whose fields were made with `option`.
        values: Field name to value, as read from TOML or JSON. Dashes in keys are accepted for
            underscores.
        where: Name of the source in error messages (`"[stage.train_vae]"`).

    Raises:
        ConfigError: An unknown key, a wrong type, or a value out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, config))}
    prefix = f"{where}: " if where else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix}a table of settings is expected, not {_shown(values)}")
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise ConfigError(
                f"{prefix}unknown setting '{plain_text(key, _SHOWN)}'", did_you_mean(name, fields)
            )
        checked[name] = _check(value, fields[name], config, prefix)
    return config(**checked)


def to_mapping(config: Any) -> dict[str, Any]:
    """Return the configuration as JSON-ready values, every default written out."""
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in dataclasses.fields(config)
        for value in [getattr(config, field.name)]
    }


def parse_assignments(config: type, assignments: typing.Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` texts (`--set`) into values for `from_mapping`.

    Raises:
        ConfigError: A text without `=`, an unknown key, or a value of the wrong type.
    """
    fields = {field.name for field in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        name = key.strip().replace("-", "_")
        if not equals:
            raise ConfigError(
                f"'{assignment}' is not of the form key=value", "example: --set updates=500"
            )
        if name not in fields:
            raise ConfigError(f"unknown setting '{key}'", did_you_mean(name, fields))
        values[name] = _parse_text(text.strip(), field_type(config, name), name)
    return values


def split_list(text: str) -> list[str]:
    r"""Return the values of a list on the command line; those that hold a comma write it `\,`."""
    return re.split(r"(?<!\\),", text)


def list_text(values: typing.Iterable[object]) -> str:
    r"""Return values as a list on the command line, with `\,` for a comma within one."""
    return ",".join(str(value).replace(",", r"\,") for value in values)


@functools.cache
def _field_types(config: type) -> dict[str, FieldType]:
    hints = typing.get_type_hints(config)
    fields = dataclasses.fields(typing.cast(Any, config))
    return {field.name: _take_apart(hints[field.name]) for field in fields}


def _take_apart(hint: Any) -> FieldType:
    scalar: type | None = None
    literals: list[str] = []
    optional = False
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for member in typing.get_args(hint) if union else (hint,):
        if typing.get_origin(member) is tuple:
            one = _take_apart(typing.get_args(member)[0])
            return FieldType(one.scalar, one.literals, type(None) in typing.get_args(hint), True)
        if typing.get_origin(member) is typing.Literal:
            literals += typing.get_args(member)
        elif member is type(None):
            optional = True
        else:
            scalar = member
    return FieldType(scalar, tuple(literals), optional)


def _parse_text(text: str, kind: FieldType, name: str) -> Any:
    is_empty = not text and kind.scalar is not str  # label="" takes labels away
    if kind.optional and (is_empty or _is_none(text, kind)):
        return None
    if kind.many:
        one = FieldType(kind.scalar, kind.literals)
        parts = (part.strip().replace(r"\,", ",") for part in split_list(text) if part)
        return tuple(_parse_text(part, one, name) for part in parts)
    if kind.scalar is None or text in kind.literals:
        return text
    if kind.scalar is bool:
        if text.lower() not in _BOOLEANS:
            raise ConfigError(f"'{name}' takes true or false, not '{text}'")
        return _BOOLEANS[text.lower()]
    try:
        return kind.scalar(text)
    except ValueError:
        raise ConfigError(f"'{name}' takes {kind}, not '{plain_text(text, _SHOWN)}'") from None


def _is_none(value: Any, kind: FieldType) -> bool:
    return isinstance(value, str) and value.lower() == _NONE and _NONE not in kind.literals


def _check(value: Any, field: dataclasses.Field[Any], config: type, prefix: str) -> Any:
    kind = field_type(config, field.name)
    if value is None or (kind.optional and _is_none(value, kind)):
        if kind.optional:
            return None
        raise ConfigError(f"{prefix}'{field.name}' may not be empty")
    bound = getattr(config, "bounds", {}).get(field.name, _ANY_INTEGER)
    if kind.many:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_check_one(item, field, kind, bound, prefix) for item in items)
    return _check_one(value, field, kind, bound, prefix)


def _check_one(
    value: Any, field: dataclasses.Field[Any], kind: FieldType, bound: Bound, prefix: str
) -> Any:
    scalar = kind.scalar
    if isinstance(value, str) and value in kind.literals:
        return value
    if scalar is None:
        hint = did_you_mean(value, kind.literals) if isinstance(value, str) else ""
        raise ConfigError(f"{prefix}'{field.name}' cannot be {_shown(value)}", hint)
    if scalar is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= _ANY_INTEGER.most else math.inf
    if not isinstance(value, scalar) or (scalar is not bool and isinstance(value, bool)):
        example = field.metadata.get("example")
        hint = f"example: {field.name}={example}" if example else ""
        raise ConfigError(f"{prefix}'{field.name}' takes {kind}, not {_shown(value)}", hint)
    if isinstance(value, str):
        _check_text(value, field, prefix)
    else:
        _check_number(value, field, bound, prefix)
    return value


def _check_number(value: Any, field: dataclasses.Field[Any], bound: Bound, prefix: str) -> None:
    named = f"{prefix}'{field.name}' must be"
    low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
    if low is not None and not value >= low:
        raise ConfigError(f"{named} at least {low:g}, not {_shown(value)}")
    if high is not None and not value <= high:
        raise ConfigError(f"{named} at most {high:g}, not {_shown(value)}")
    if isinstance(value, int) and abs(value) > bound.most:
        raise ConfigError(f"{named} at most {bound.most:,}, not {_shown(value)}", bound.why)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{named} a finite number, not {value:g}")


def _check_text(value: str, field: dataclasses.Field[Any], prefix: str) -> None:
    if "\0" in value:
        raise ConfigError(f"{prefix}'{field.name}' may not hold a NUL character: {_shown(value)}")
    registry = registry_of(field)
    if registry is not None:
        registry.check(value)


def _shown(value: Any) -> str:
    """Return a value of unknown origin as a message shows it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value.bit_length() <= 256 else "a longer integer"
    if isinstance(value, str):
        return f"'{plain_text(value, _SHOWN)}'"
    return plain_text(repr(value), _SHOWN)
