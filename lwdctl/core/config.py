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
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from lwdctl.core.errors import ConfigError
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


class Settings:
    """Base of a configuration: checks every field, however the object is made.

    Raises:
        ConfigError: A value of a wrong type, an unknown name, or a value out of range.
    """

    def __post_init__(self) -> None:
        """Check and normalize the fields (a list becomes a tuple, an int a float)."""
        for field in dataclasses.fields(typing.cast(Any, self)):
            kind = field_type(type(self), field.name)
            value = _check(getattr(self, field.name), field, kind, "")
            object.__setattr__(self, field.name, value)


def option(
    default: Any,
    help: str,  # noqa: A002 - the name the command line uses
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    argument: bool = False,
    registry: str = "",
) -> Any:
    """Declare a configuration field.

    Args:
        default: The value of a field that is not given.
        help: One line for `--help`.
        minimum: Smallest number accepted.
        maximum: Largest number accepted.
        argument: A positional argument of the command line instead of an `--option`.
        registry: `package.module:ATTRIBUTE` of the `Registry` that lists the accepted names,
            imported on use.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "argument": argument,
        "registry": registry,
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
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise ConfigError(f"{prefix}unknown setting '{key}'", did_you_mean(name, fields))
        checked[name] = _check(value, fields[name], field_type(config, name), prefix)
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
    if kind.optional and (not text or _is_none(text, kind)):
        return None
    if kind.many:
        one = FieldType(kind.scalar, kind.literals)
        return tuple(_parse_text(part.strip(), one, name) for part in text.split(",") if part)
    if kind.scalar is None or text in kind.literals:
        return text
    if kind.scalar is bool:
        if text.lower() not in _BOOLEANS:
            raise ConfigError(f"'{name}' takes true or false, not '{text}'")
        return _BOOLEANS[text.lower()]
    try:
        return kind.scalar(text)
    except ValueError:
        raise ConfigError(f"'{name}' takes {kind}, not '{text}'") from None


def _is_none(value: Any, kind: FieldType) -> bool:
    return isinstance(value, str) and value.lower() == _NONE and _NONE not in kind.literals


def _check(value: Any, field: dataclasses.Field[Any], kind: FieldType, prefix: str) -> Any:
    if value is None or (kind.optional and _is_none(value, kind)):
        if kind.optional:
            return None
        raise ConfigError(f"{prefix}'{field.name}' may not be empty")
    if kind.many:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_check_one(item, field, kind, prefix) for item in items)
    return _check_one(value, field, kind, prefix)


def _check_one(value: Any, field: dataclasses.Field[Any], kind: FieldType, prefix: str) -> Any:
    scalar = kind.scalar
    if isinstance(value, str) and value in kind.literals:
        return value
    if scalar is None:
        hint = did_you_mean(str(value), kind.literals)
        raise ConfigError(f"{prefix}'{field.name}' cannot be '{value}'", hint)
    if scalar is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, scalar) or (scalar is not bool and isinstance(value, bool)):
        raise ConfigError(f"{prefix}'{field.name}' takes {kind}, not {value!r}")
    low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
    if low is not None and not value >= low:
        raise ConfigError(f"{prefix}'{field.name}' must be at least {low:g}, not {value:g}")
    if high is not None and not value <= high:
        raise ConfigError(f"{prefix}'{field.name}' must be at most {high:g}, not {value:g}")
    registry = registry_of(field)
    if registry is not None:
        registry.check(str(value))
    return value
