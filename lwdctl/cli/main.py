"""Entry point: words in, exit code out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from lwdctl import __version__
from lwdctl.artifacts.manifest import recording
from lwdctl.cli.failures import Terminated, catch_sigterm, command_line, report
from lwdctl.cli.group import Commands
from lwdctl.core.errors import EXIT_INTERRUPTED, EXIT_OK
from lwdctl.stages import STAGES

_HELP = """Latent Weight Diffusion (LWD, WARPD): sample the weights of small closed-loop policies.

The five commands that make and test a policy, each reading what the last one made:

\b
  lwdctl ingest robomimic lift_mh.hdf5
  lwdctl train-vae
  lwdctl encode
  lwdctl train-diffusion
  lwdctl eval --horizon 64
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: The command line after `lwdctl`; the process's own when None.

    Returns:
        The exit code: 0 done, 1 the user can fix it, 2 usage, 3 a bug, 130 or 143 interrupted.
    """
    given = list(sys.argv[1:] if words is None else words)
    # pygame greets on stdout, which belongs to the result.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    catch_sigterm()
    try:
        with recording(command=command_line(given)):
            code = _app().main(given or ["--help"], prog_name="lwdctl", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - the last resort
        if "--debug" in given and not isinstance(error, KeyboardInterrupt | Terminated):
            sys.excepthook(type(error), error, error.__traceback__)
        return report(error, given, _how_to_resume(given))
    if code == EXIT_INTERRUPTED:  # Typer turns Ctrl-C into this number
        return report(KeyboardInterrupt(), given, _how_to_resume(given))
    return code if isinstance(code, int) else EXIT_OK


def _app() -> Commands:
    app = typer.Typer(cls=Commands, help=_HELP, add_completion=False, rich_markup_mode=None)
    app.callback()(_options)
    group = typer.main.get_command(app)
    if not isinstance(group, Commands):
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


def _how_to_resume(words: list[str]) -> str:
    """Say how an interrupted command goes on."""
    if words[:1] == ["run"]:
        return f"finished stages are kept; go on with: {command_line(words)}"
    if words[:1] == ["download"]:
        return f"what has come is kept; go on with: {command_line(words)}"
    name = next((" ".join(words[:n]) for n in (1, 2) if " ".join(words[:n]) in STAGES), "")
    if not name or not STAGES[name].resumable:
        return f"nothing half-made was left; run it again: {command_line(words)}"
    again = words if "--resume" in words else [*words, "--resume"]
    return (
        f"go on from the last checkpoint with: {command_line(again)} "
        "(nothing was kept if none had been written yet)"
    )
