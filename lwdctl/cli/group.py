"""The group of all commands, each loaded only when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from lwdctl.cli.failures import CommandLineError
from lwdctl.core.registry import Registry, Row
from lwdctl.core.suggest import did_you_mean
from lwdctl.stages import STAGES

COMMANDS = Registry(
    "command",
    {
        "run": Row("lwdctl.cli.run:command", "Run a recipe: a whole experiment from a TOML file."),
        "list": Row("lwdctl.cli.list:command", "List the artifacts of the workspace."),
        "show": Row("lwdctl.cli.show:command", "Show one artifact in full."),
        "lineage": Row("lwdctl.cli.lineage:command", "Show what an artifact was made from."),
        "verify": Row("lwdctl.cli.verify:command", "Re-read artifacts and compare every digest."),
        "download": Row("lwdctl.cli.download:command", "Fetch public demonstrations."),
        "export": Row("lwdctl.cli.export:command", "Write a snippet store in another format."),
        "doctor": Row("lwdctl.cli.doctor:command", "Check what is installed and what works."),
        "compare": Row(
            "lwdctl.cli.compare:command", "Compare policies: intervals, paired tests, figures."
        ),
        "bench": Row("lwdctl.cli.bench:command", "Time ours beside the library it could use."),
    },
)
"""Commands that are not stages."""


def command_names() -> list[str]:
    """Return every command, stages first."""
    return [*STAGES, *COMMANDS]


class Commands(TyperGroup):
    """Looks commands up in the tables; `--help` lists them without importing any."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in table order."""
        del ctx
        return command_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and build one command.

        Raises:
            CommandLineError: There is none of that name.
        """
        del ctx
        if cmd_name in STAGES:
            return _stage_command(cmd_name)
        if cmd_name in COMMANDS:
            return _as_command(cmd_name, COMMANDS.load(cmd_name))
        if cmd_name.startswith("-"):
            return None
        hint = did_you_mean(cmd_name, command_names())
        raise CommandLineError(f"there is no command '{cmd_name}'", hint)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the help's command lists from the tables alone."""
        del ctx
        for title, rows in (("Stages", STAGES.rows), ("Workspace and recipes", COMMANDS.rows)):
            with formatter.section(title):
                formatter.write_dl(_lines(rows))


def _lines(rows: Mapping[str, Row]) -> list[tuple[str, str]]:
    return [(name, row.summary) for name, row in rows.items()]


def _stage_command(name: str) -> Any:
    from lwdctl.cli.generate import stage_function
    from lwdctl.cli.stage import run_stage

    function = stage_function(STAGES.load(name), STAGES.rows[name].summary, run_stage)
    return _as_command(name, function)


def _as_command(name: str, function: Any) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(function)
    return typer.main.get_command(app)
