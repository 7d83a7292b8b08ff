"""Strict configuration: frozen dataclasses filled from TOML, JSON or command-line words.

A stage's configuration is one frozen dataclass whose fields are made with `option`.
Its defaults stand there and nowhere else; the command line, recipes and manifests are
read and written through the functions below. Supported field types are `bool`, `int`,
`float`, `str`, `X | None`, and `tuple[X, ...]` of these.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class FieldType:
    """A field's type taken apart: its scalar, and whether it may be None or many."""

    scalar: type
    optional: bool
    many: bool


def option(
    default: Any,
    help: str,  # noqa: A002 - the word the command line uses
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    argument: bool = False,
    words: Mapping[str, int] | None = None,
) -> Any:
    """Declare a configuration field.

    Args:
        default: The value when nothing is said.
        help: One line for `--help`.
        choices: The words accepted, when only some are.
        minimum: Smallest number accepted.
        maximum: Largest number accepted.
        argument: A positional word of the command line instead of an `--option`.
        words: Words accepted for an `int` field, with the number each stands for
            (`{"episode": 0}`).
    """
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "argument": argument,
        "words": dict(words or {}),
    }
    return dataclasses.field(default=default, metadata=metadata)


def field_type(config: type, name: str) -> FieldType:
    """Take apart the declared type of a field of `config`."""
    hint = typing.get_type_hints(config)[name]
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [item for item in typing.get_args(hint) if item is not type(None)]
        optional = len(members) < len(typing.get_args(hint))
        (hint,) = members
    many = typing.get_origin(hint) is tuple
    if many:
        hint = typing.get_args(hint)[0]
    return FieldType(scalar=hint, optional=optional, many=many)


def from_mapping(config: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Build `config` from plain values, refusing unknown keys and wrong types.

    Args:
        config: A frozen dataclass whose fields were made with `option`.
        values: Field name to value, as read from TOML or JSON. Dashes in keys are
            accepted for underscores.
        where: What to call the source in errors (`"[stage.train_vae]"`).

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


def parse_words(config: type, assignments: typing.Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` words (`--set`) into values for `from_mapping`.

    Raises:
        ConfigError: A word without `=`, an unknown key, or text of the wrong type.
    """
    fields = {field.name for field in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for word in assignments:
        key, equals, text = word.partition("=")
        name = key.strip().replace("-", "_")
        if not equals:
            raise ConfigError(
                f"'{word}' is not of the form key=value", "example: --set updates=500"
            )
        if name not in fields:
            raise ConfigError(f"unknown setting '{key}'", did_you_mean(name, fields))
        spoken = {
            item.name: item.metadata.get("words") or {} for item in dataclasses.fields(config)
        }
        values[name] = _parse_text(text.strip(), field_type(config, name), name, spoken[name])
    return values


def _parse_text(text: str, kind: FieldType, name: str, words: Mapping[str, int]) -> Any:
    if kind.optional and text.lower() in ("none", ""):
        return None
    if kind.many:
        one = FieldType(kind.scalar, optional=False, many=False)
        parts = [part.strip() for part in text.split(",") if part]
        return tuple(_parse_text(part, one, name, words) for part in parts)
    if text in words:
        return words[text]
    if kind.scalar is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise ConfigError(f"'{name}' takes true or false, not '{text}'")
        return words[text.lower()]
    try:
        return kind.scalar(text)
    except ValueError:
        raise ConfigError(f"'{name}' takes {kind.scalar.__name__}, not '{text}'") from None


def _check(value: Any, field: Any, kind: FieldType, prefix: str) -> Any:
    if value is None:
        if kind.optional:
            return None
        raise ConfigError(f"{prefix}'{field.name}' may not be empty")
    if kind.many:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_check_scalar(item, field, kind.scalar, prefix) for item in items)
    return _check_scalar(value, field, kind.scalar, prefix)


def _check_scalar(value: Any, field: Any, scalar: type, prefix: str) -> Any:
    if isinstance(value, str) and value in (field.metadata.get("words") or {}):
        value = field.metadata["words"][value]
    if scalar is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, scalar) or (scalar is not bool and isinstance(value, bool)):
        raise ConfigError(f"{prefix}'{field.name}' takes {scalar.__name__}, not {value!r}")
    metadata = field.metadata
    if metadata.get("choices") and value not in metadata["choices"]:
        raise ConfigError(
            f"{prefix}'{field.name}' cannot be '{value}'",
            did_you_mean(str(value), metadata["choices"]),
        )
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if low is not None and value < low:
        raise ConfigError(f"{prefix}'{field.name}' must be at least {low:g}, not {value:g}")
    if high is not None and value > high:
        raise ConfigError(f"{prefix}'{field.name}' must be at most {high:g}, not {value:g}")
    return value
