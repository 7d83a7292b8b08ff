"""The entry point of `lwdctl`.

Importing it takes a few milliseconds; whatever takes longer is imported when signals are caught.
"""

from __future__ import annotations

import atexit
import sys

from lwdctl.cli.signals import Signals, Terminated

TYPE_CHECKING = False  # see `lwdctl.cli.signals`
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line after `lwdctl`; the process's own when None.

    Returns:
        The exit code: 0 done, 1 the user can fix it, 2 usage, 3 a bug, 129, 130 or 143 ended by
        a signal, 141 the reader of a pipe gone.
    """
    signals = Signals()
    try:
        signals.catch()
        if arguments is None:
            atexit.register(signals.ignore)
        signals.working = True
        return signals.end(_run(list(sys.argv[1:] if arguments is None else arguments), signals))
    except (KeyboardInterrupt, Terminated):  # before the work began or while an error is reported
        return signals.end_interrupted()
    finally:
        if arguments is not None:  # the process goes on
            signals.restore()


def _run(given: list[str], signals: Signals) -> int:
    import gc
    import os

    from lwdctl.cli.streams import safe_streams

    # pygame greets on stdout, which belongs to the result.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    # The memory of a process that ends needs no collection, which would take a fifth of a second.
    atexit.register(gc.freeze)
    with safe_streams():
        from lwdctl.cli.failures import report, report_threads

        report_threads()
        try:
            return _run_command(given, signals)
        except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - the last resort
            return report(error, given)


def _run_command(given: list[str], signals: Signals) -> int:
    from lwdctl.artifacts.manifest import recording
    from lwdctl.cli.commands import make_app
    from lwdctl.cli.failures import command_line, hint_after_two_signals
    from lwdctl.core.errors import EXIT_INTERRUPTED, EXIT_OK

    signals.hint = hint_after_two_signals(given)
    with recording(command=command_line(given)):
        code = make_app().main(given or ["--help"], prog_name="lwdctl", standalone_mode=False)
    sys.stdout.flush()
    if code == EXIT_INTERRUPTED:  # Typer turns Ctrl-C into this number
        raise KeyboardInterrupt
    return code if isinstance(code, int) else EXIT_OK
