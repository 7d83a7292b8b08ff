"""The group of all commands, each loaded only when it is called."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from lwdctl.cli.failures import CommandLineError
from lwdctl.core.registry import Registry, Row
from lwdctl.core.suggest import did_you_mean
from lwdctl.stages import STAGES
from lwdctl.stages.stage import Stage

COMMANDS = Registry(
    "command",
    {
        "run": Row("lwdctl.cli.run:command", "Run a recipe: a whole experiment from a TOML file."),
        "list": Row("lwdctl.cli.workspace:list_command", "List the artifacts of the workspace."),
        "show": Row("lwdctl.cli.workspace:show_command", "Show one artifact in full."),
        "lineage": Row(
            "lwdctl.cli.workspace:lineage_command", "Show what an artifact derives from."
        ),
        "verify": Row(
            "lwdctl.cli.workspace:verify_command", "Re-read artifacts and compare every digest."
        ),
        "download": Row("lwdctl.cli.download:command", "Fetch public demonstrations."),
        "export": Row(
            "lwdctl.cli.export:command", "Write for other programs: a policy, or a data set."
        ),
        "doctor": Row("lwdctl.cli.doctor:command", "Check what is installed and what works."),
        "compare": Row(
            "lwdctl.cli.compare:command", "Compare policies: intervals, paired tests, figures."
        ),
        "report": Row("lwdctl.cli.report:command", "Write an experiment as one HTML file."),
        "bench": Row("lwdctl.cli.bench:command", "Benchmark against library code; count FLOPs."),
    },
)
"""Commands that are not stages."""

FAMILIES = {
    "analyze": "Look into latents and behaviors: latents, behavior, diversity, reconstruction.",
}
"""First word to summary, for stages whose names have two words."""


def command_names() -> list[str]:
    """Return every command, stages first; stages of one family (`analyze ...`) as one."""
    return list(dict.fromkeys([name.partition(" ")[0] for name in STAGES] + [*COMMANDS]))


class Family(TyperGroup):
    """The stages whose names share their first word: `analyze latents`, `analyze behavior`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the second words in table order."""
        del ctx
        return [name.partition(" ")[2] for name in _family(self.name or "")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and build one command.

        Raises:
            CommandLineError: There is none of that name.
        """
        if cmd_name not in self.list_commands(ctx):
            hint = did_you_mean(cmd_name, self.list_commands(ctx))
            raise CommandLineError(f"there is no command '{self.name} {cmd_name}'", hint)
        return _stage_command(f"{self.name} {cmd_name}")

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the help's list from the table alone."""
        del ctx
        with formatter.section("Commands"):
            rows = _family(self.name or "").items()
            formatter.write_dl([(name.partition(" ")[2], row.summary) for name, row in rows])


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
        if _family(cmd_name):
            return Family(name=cmd_name, help=FAMILIES[cmd_name], rich_markup_mode=None)
        if cmd_name in COMMANDS:
            return _as_command(cmd_name, COMMANDS.load(cmd_name))
        if cmd_name.startswith("-"):
            return None
        hint = did_you_mean(cmd_name, command_names())
        raise CommandLineError(f"there is no command '{cmd_name}'", hint)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the help's command lists from the tables alone."""
        del ctx
        stages = {name: row.summary for name, row in STAGES.items() if " " not in name}
        with formatter.section("Stages"):
            formatter.write_dl(list((stages | FAMILIES).items()))
        with formatter.section("Workspace and recipes"):
            formatter.write_dl([(name, row.summary) for name, row in COMMANDS.rows.items()])


def _family(word: str) -> dict[str, Stage]:
    return {name: row for name, row in STAGES.items() if name.startswith(f"{word} ")}


def _stage_command(name: str) -> Any:
    from lwdctl.cli.generate import stage_function
    from lwdctl.cli.stage import run_stage

    function = stage_function(STAGES[name], run_stage)
    return _as_command(name, function)


def _as_command(name: str, function: Any) -> Any:
    if isinstance(function, typer.Typer):  # a command whose first word chooses what it does
        return typer.main.get_command(function)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name.rpartition(" ")[2])(function)
    return typer.main.get_command(app)
