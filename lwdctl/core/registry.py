"""Tables of named implementations, imported only when one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lwdctl.core.errors import ConfigError, MissingExtraError
from lwdctl.core.suggest import did_you_mean


@dataclass(frozen=True)
class Row:
    """One table row.

    Attributes:
        target: `package.module:attribute`, imported on first use.
        summary: One line for help texts.
        extra: The pip extra that brings its dependencies, or an empty string.
    """

    target: str
    summary: str
    extra: str = ""


@dataclass(frozen=True)
class Registry:
    """A table from name to implementation; adding a row adds the thing.

    Attributes:
        noun: What the rows are, as error messages say it (`"environment"`).
        rows: Name to row.
        outsiders: Whether `package.module:attribute` is a name too: it stands for itself.
    """

    noun: str
    rows: Mapping[str, Row]
    outsiders: bool = False

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in table order."""
        return iter(self.rows)

    def __contains__(self, name: object) -> bool:
        """Tell whether a row has this name."""
        return name in self.rows

    def check(self, name: str) -> None:
        """Raise a ConfigError where `load` would not find the name."""
        if name not in self.rows and not (self.outsiders and is_outsider(name)):
            raise ConfigError(f"no {self.noun} is called '{name}'", did_you_mean(name, self.rows))

    def load(self, name: str) -> Any:
        """Import and return the implementation called `name`.

        Raises:
            ConfigError: No row has that name, or what it stands for cannot be imported.
            MissingExtraError: The row needs a package that is not installed.
        """
        self.check(name)
        row = self.rows.get(name)
        if row is None:
            return _import_outsider(self.noun, name)
        module, _, attribute = row.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if not row.extra or (error.name or "").startswith("lwdctl"):
                raise
            raise MissingExtraError(
                f"{self.noun} '{name}' needs the package '{error.name}', which is not installed",
                f"pip install 'lwdctl[{row.extra}]'",
            ) from error


def is_outsider(name: str) -> bool:
    """Tell whether a name has the form `package.module:attribute`."""
    return ":" in name


def _import_outsider(noun: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{noun} '{name}': no module is called '{error.name}'",
            f"run where Python finds it, for example with PYTHONPATH=DIRECTORY of {module}.py",
        ) from error
    except AttributeError as error:
        raise ConfigError(f"{noun} '{name}': {error}") from error
    except (ValueError, TypeError) as error:  # an empty or a relative module name
        raise ConfigError(f"'{name}' names no {noun}", "write package.module:Class") from error
