"""Tables of named implementations, each imported only when it is asked for.

A name stands in the table itself, comes with an installed package (its entry points), or, where
the table allows it, is an import path `package.module:attribute`.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from lwdctl.core.errors import (
    ConfigError,
    LwdctlError,
    MissingExtraError,
    described,
    first_line,
    install_extra,
)
from lwdctl.core.suggest import did_you_mean

OUTSIDE: set[str] = set()
"""Packages and modules of others that a table has loaded something from."""


@dataclass(frozen=True)
class Row:
    """One table row.

    Attributes:
        target: `package.module:attribute`, imported on first use.
        summary: One line for help texts.
        extra: The pip extra that brings its dependencies, or an empty string.
        plugin: The installed package that adds the row, or an empty string for lwdctl's own.
    """

    target: str
    summary: str
    extra: str = ""
    plugin: str = ""


@dataclass(frozen=True)
class Registry:
    """A table from name to implementation; adding a row adds the thing.

    Attributes:
        noun: What the rows are, for error messages (`"environment"`).
        rows: Name to row, lwdctl's own.
        import_paths: Whether `package.module:attribute` is accepted as a name.
        entry_points: Group of entry points by which installed packages add rows
            (`"lwdctl.readers"`), or an empty string.
    """

    noun: str
    rows: Mapping[str, Row]
    import_paths: bool = False
    entry_points: str = ""

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names: lwdctl's own in table order, then those of plug-ins."""
        return iter(self.all_rows())

    def __contains__(self, name: object) -> bool:
        """Tell whether a row has this name."""
        return name in self.rows or name in self.all_rows()

    def all_rows(self) -> dict[str, Row]:
        """Return name to row, those of installed plug-ins included."""
        return {
            **self.rows,
            **{name: row for name, row in self.plugins().items() if name not in self.rows},
        }

    def plugins(self) -> dict[str, Row]:
        """Return name to row of what installed plug-ins add, names of lwdctl's own included."""
        return dict(_entry_points(self.entry_points)) if self.entry_points else {}

    def check(self, name: str) -> None:
        """Check that `load` would find the name.

        Raises:
            ConfigError: No row has it, a plug-in uses the name of one of lwdctl's own rows, or two
                plug-ins use the same name.
        """
        if self.import_paths and is_import_path(name):
            return
        if name not in self:
            raise ConfigError(
                f"no {self.noun} is called '{name}'", did_you_mean(name, self.all_rows())
            )
        points = _entry_points(self.entry_points) if self.entry_points else ()
        packages = sorted({row.plugin for other, row in points if other == name})
        others = ["lwdctl"] if name in self.rows else packages[:-1]
        if packages and others:
            raise ConfigError(
                f"the plug-in {packages[-1]} adds a {self.noun} named '{name}', a name that"
                f" {others[0]} already uses",
                f"pip uninstall {packages[-1]}",
            )

    def load(self, name: str) -> Any:
        """Import and return the implementation called `name`.

        Raises:
            ConfigError: No row has that name, or what it stands for cannot be imported.
            MissingExtraError: The row needs a package that is not installed.
        """
        self.check(name)
        row = self.all_rows().get(name)
        module, _, attribute = (row.target if row else name).partition(":")
        if row is None or row.plugin:
            OUTSIDE.add(module.rpartition(".")[0] or module)
        if row is None:
            return _import_path(self.noun, name)
        try:
            return getattr(importlib.import_module(module), attribute)
        except LwdctlError:
            raise
        except (Exception, SystemExit) as error:
            if row.plugin:
                raise _broken(self.noun, name, row, error) from error
            if not isinstance(error, ImportError):
                raise
            missing = (isinstance(error, ModuleNotFoundError) and error.name) or "lwdctl"
            if not row.extra or missing.startswith("lwdctl"):
                raise
            raise MissingExtraError(
                f"{self.noun} '{name}' needs the package '{missing}', which is not installed",
                install_extra(row.extra),
            ) from error


def _broken(noun: str, name: str, row: Row, error: BaseException) -> ConfigError:
    """Return the error of an entry point that raised one; its author needs the traceback."""
    module, _, attribute = row.target.partition(":")
    statement = f"from {module} import {attribute}" if attribute else f"import {module}"
    return ConfigError(
        f"{noun} '{name}' of the plug-in {row.plugin} cannot be imported ({row.target}):"
        f" {type(error).__name__}: {first_line(error)}",
        f"python -c {shlex.quote(statement)} shows where it fails; where the package is not"
        f" yours: pip install --upgrade {row.plugin}",
    )


def is_import_path(name: str) -> bool:
    """Tell whether a name has the form `package.module:attribute`."""
    return ":" in name


@cache
def _entry_points(group: str) -> tuple[tuple[str, Row], ...]:
    """Return the names and rows that installed packages add to a group of entry points."""
    return tuple(
        (point.name, Row(point.value, f"from the plug-in {package}", plugin=package))
        for point in metadata.entry_points(group=group)
        for package in [(point.dist and point.dist.name) or point.module]
    )


def _import_path(noun: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not all((*module.split("."), attribute)):
        raise ConfigError(f"'{name}' names no {noun}", "write package.module:Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except LwdctlError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{noun} '{name}': no module is called '{error.name}'",
            f"run where Python finds it, for example with PYTHONPATH=DIRECTORY of {module}.py",
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{noun} '{name}' cannot be imported: {described(error)}",
            f"python -c \"import importlib; importlib.import_module('{module}').{attribute}\""
            " shows where it fails",
        ) from error
