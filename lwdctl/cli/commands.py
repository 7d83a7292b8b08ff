"""The table of commands, and the program that Typer makes of it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lwdctl import __version__
from lwdctl.cli.failures import CommandLineError
from lwdctl.core.registry import Registry, Row
from lwdctl.core.suggest import did_you_mean
from lwdctl.stages import STAGES
from lwdctl.stages.stage import Stage

_HELP = """Latent Weight Diffusion (LWD, WARPD): sample the weights of small closed-loop policies.

The five commands that train and evaluate a policy, each reading the previous one's artifact:

\b
  lwdctl ingest robomimic lift_mh.hdf5
  lwdctl train-vae
  lwdctl encode
  lwdctl train-diffusion
  lwdctl eval --horizon 64
"""


COMMANDS = Registry(
    "command",
    {
        "run": Row("lwdctl.cli.run:command", "Run a recipe: a whole experiment from a TOML file."),
        "status": Row("lwdctl.cli.status:command", "Show where the stages of a recipe stand."),
        "list": Row("lwdctl.cli.workspace:list_command", "List the artifacts of the workspace."),
        "show": Row("lwdctl.cli.workspace:show_command", "Show one artifact in full."),
        "lineage": Row(
            "lwdctl.cli.workspace:lineage_command", "Show what an artifact was derived from."
        ),
        "verify": Row(
            "lwdctl.cli.workspace:verify_command", "Re-read artifacts and compare every digest."
        ),
        "gc": Row(
            "lwdctl.cli.workspace:gc_command",
            "List or remove leftovers of interrupted commands.",
        ),
        "inspect": Row("lwdctl.cli.inspect:command", "Say what is in files of demonstrations."),
        "download": Row("lwdctl.cli.download:command", "Download public demonstrations."),
        "export": Row(
            "lwdctl.cli.export:command", "Export a policy or a dataset for other programs."
        ),
        "push": Row("lwdctl.cli.share:push_command", "Push an artifact to the Hugging Face Hub."),
        "pull": Row("lwdctl.cli.share:pull_command", "Pull an artifact from the Hugging Face Hub."),
        "doctor": Row("lwdctl.cli.doctor:command", "Check what is installed and what works."),
        "compare": Row(
            "lwdctl.cli.compare:command", "Compare policies: intervals, paired tests, figures."
        ),
        "track": Row("lwdctl.cli.track:command", "Send runs to experiment trackers."),
        "report": Row("lwdctl.cli.report:command", "Write an experiment as one HTML file."),
        "bench": Row("lwdctl.cli.bench:command", "Benchmark against library code; count FLOPs."),
    },
)
"""Commands that are not stages."""

_FAMILIES = {
    "analyze": "Analyze latents, behavior, diversity, reconstruction or convergence.",
}
"""First word of a stage's name to the summary of all stages that begin with it."""


def _command_names() -> list[str]:
    """Return every command, stages first; stages of one family (`analyze ...`) as one."""
    return list(dict.fromkeys([name.partition(" ")[0] for name in STAGES] + [*COMMANDS]))


class _Family(TyperGroup):
    """The stages whose names share their first word: `analyze latents`, `analyze behavior`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the second words in table order."""
        del ctx
        return [name.partition(" ")[2] for name in _family(self.name or "")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and build one command.

        Raises:
            CommandLineError: No command has that name.
        """
        if cmd_name not in self.list_commands(ctx):
            hint = did_you_mean(cmd_name, self.list_commands(ctx))
            raise CommandLineError(f"no command is called '{self.name} {cmd_name}'", hint)
        return _stage_command(f"{self.name} {cmd_name}")

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the help's list from the table alone."""
        del ctx
        with formatter.section("Commands"):
            rows = _family(self.name or "").items()
            formatter.write_dl([(name.partition(" ")[2], row.summary) for name, row in rows])


class _Commands(TyperGroup):
    """All commands, looked up in the tables; `--help` lists them without importing any."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in table order."""
        del ctx
        return _command_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and build one command.

        Raises:
            CommandLineError: No command has that name.
        """
        del ctx
        if cmd_name in STAGES:
            return _stage_command(cmd_name)
        if _family(cmd_name):
            return _Family(name=cmd_name, help=_FAMILIES[cmd_name], rich_markup_mode=None)
        if cmd_name in COMMANDS:
            return _as_command(cmd_name, COMMANDS.load(cmd_name))
        if cmd_name.startswith("-"):
            return None
        hint = did_you_mean(cmd_name, _command_names())
        raise CommandLineError(f"no command is called '{cmd_name}'", hint)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the help's command lists from the tables alone."""
        del ctx
        stages = {name: row.summary for name, row in STAGES.items() if " " not in name}
        with formatter.section("Stages"):
            formatter.write_dl(list((stages | _FAMILIES).items()))
        with formatter.section("Workspace and recipes"):
            formatter.write_dl([(name, row.summary) for name, row in COMMANDS.rows.items()])


def _family(first: str) -> dict[str, Stage]:
    return {name: row for name, row in STAGES.items() if name.startswith(f"{first} ")}


def _stage_command(name: str) -> Any:
    from lwdctl.cli.generate import stage_function

    return _as_command(name, stage_function(STAGES[name]))


def _as_command(name: str, function: Any) -> Any:
    from lwdctl.cli.generate import command_function

    if isinstance(function, typer.Typer):  # a command with subcommands
        return typer.main.get_command(function)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name.rpartition(" ")[2])(command_function(function))
    return typer.main.get_command(app)


def make_app() -> _Commands:
    """Return the program: a group of all commands."""
    app = typer.Typer(
        cls=_Commands,
        help=_HELP,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},  # commands inherit it
    )
    app.callback()(_options)
    group = typer.main.get_command(app)
    if not isinstance(group, _Commands):
        raise TypeError(f"typer built {type(group).__name__} instead of the command group")
    return group


def _print_version(given: bool) -> None:
    if given:
        sys.stdout.write(f"lwdctl {__version__}\n")
        raise typer.Exit


_VERSION = Annotated[
    bool,
    typer.Option(
        "--version",
        is_eager=True,
        help="Print the version and exit.",
        callback=_print_version,
        show_default=False,
    ),
]


def _options(version: _VERSION = False) -> None:
    del version
