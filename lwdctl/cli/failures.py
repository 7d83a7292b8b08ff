"""Reporting failures: `error:` and `hint:` on stderr, and an exit code."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from types import FrameType

import typer

from lwdctl.core.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    EXIT_USER,
    WRITE_ERRNOS,
    LwdctlError,
)
from lwdctl.core.plain_text import plain_text

_EXIT_BROKEN_PIPE = 141


class CommandLineError(LwdctlError):
    """A command line that cannot be understood."""

    exit_code = EXIT_USAGE


class Terminated(BaseException):
    """SIGTERM arrived; raised so that unfinished runs are cleaned up."""


def catch_sigterm() -> None:
    """Turn SIGTERM into `Terminated`, in the main thread of this process."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


def report_threads() -> None:
    """Print no traceback where a thread of a library cannot write.

    TensorBoard writes in a thread of its own; the main thread meets the same full disk and reports
    it.
    """

    def hook(failed: threading.ExceptHookArgs) -> None:
        error = failed.exc_value
        if not (isinstance(error, OSError) and error.errno in WRITE_ERRNOS):
            threading.__excepthook__(failed)

    threading.excepthook = hook


def report(error: BaseException, arguments: list[str], resume_hint: str) -> int:
    """Report on stderr what went wrong and return the exit code.

    Args:
        error: What ended the run.
        arguments: The command line after `lwdctl`.
        resume_hint: What to do after an interruption.
    """
    if isinstance(error, KeyboardInterrupt | Terminated):
        is_interrupt = isinstance(error, KeyboardInterrupt)
        _print_error("interrupted" if is_interrupt else "terminated", resume_hint)
        return EXIT_INTERRUPTED if is_interrupt else EXIT_TERMINATED
    if isinstance(error, LwdctlError):
        _print_error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, typer.TyperException):
        return _report_usage(error, arguments)
    if isinstance(error, BrokenPipeError):
        # The reader went away (`| head`); nothing more can be printed on stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _EXIT_BROKEN_PIPE
    if isinstance(error, OSError) and error.errno in WRITE_ERRNOS:
        _print_error(
            str(error), "free disk space or change the permissions, then run the same command again"
        )
        return EXIT_USER
    return _report_bug(error, arguments)


def command_line(arguments: list[str]) -> str:
    """Return the command line as it can be pasted."""
    return shlex.join(["lwdctl", *arguments])


def _report_usage(error: typer.TyperException, arguments: list[str]) -> int:
    is_command = bool(arguments) and not arguments[0].startswith("-")
    hint = f"see: lwdctl {arguments[0]} --help" if is_command else "see: lwdctl --help"
    message = error.format_message()
    close = getattr(error, "possibilities", None)
    if close:  # an unknown option; Typer would write these into the message
        message, hint = error.message, "did you mean " + " or ".join(sorted(close)) + "?"
    message = message.rstrip(".")
    _print_error(message[:1].lower() + message[1:], hint)
    return error.exit_code


def _report_bug(error: BaseException, arguments: list[str]) -> int:
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="lwdctl-traceback-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(f"{command_line(arguments)}\n\n{text}")
        where = f"the traceback in {file.name} (--debug prints it)"
    except OSError:  # no room for a file either
        where = "the traceback that --debug prints"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    _print_error(
        f"unexpected {what}",
        f"this is a bug in lwdctl; please report it with {where}",
    )
    return EXIT_BUG


def _print_error(message: str, hint: str) -> None:
    for head, text in (("error", message), ("hint", hint)):
        if text:
            # Both may name what a file holds; lines are kept.
            shown = "\n".join(plain_text(line) for line in text.split("\n"))
            sys.stderr.write(f"{head}: {shown}\n")
    sys.stderr.flush()
