"""Reporting failures: `error:` and `hint:` on stderr, and an exit code."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from types import FrameType

import typer

from lwdctl.cli.signals import SIGNALS, Terminated
from lwdctl.cli.streams import OutputError
from lwdctl.core.errors import (
    EXIT_BUG,
    EXIT_USAGE,
    EXIT_USER,
    PATH_ERRNOS,
    WRITE_ERRNOS,
    LwdctlError,
    first_line,
    is_out_of_memory,
)
from lwdctl.core.launch import launched, leads
from lwdctl.core.plain_text import plain_text, visible, visible_lines
from lwdctl.core.registry import OUTSIDE
from lwdctl.stages import STAGES

_LONGEST_PATH = 300


class CommandLineError(LwdctlError):
    """A command line that cannot be understood."""

    exit_code = EXIT_USAGE


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


def report(error: BaseException, arguments: list[str]) -> int:
    """Report on stderr what went wrong and return the exit code.

    Args:
        error: What ended the run.
        arguments: The command line after `lwdctl`.
    """
    if isinstance(error, KeyboardInterrupt | Terminated):
        ended = error if isinstance(error, Terminated) else Terminated(signal.SIGINT)
        if leads():
            hint = _how_to_resume(_from_stage(arguments, ended.go_on_from))
            _print_error(SIGNALS[signal.Signals(ended.number)], hint)
        return 128 + ended.number
    if isinstance(error, OutputError) and error.reader_is_gone:
        return error.exit_code  # as a program ends that does not catch SIGPIPE
    if isinstance(error, LwdctlError):
        # All processes of a training refuse the same command line; one says so.
        if not (error.reported or (isinstance(error, CommandLineError) and not leads())):
            _print_error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, typer.TyperException):
        return _report_usage(error, arguments)
    if isinstance(error, OSError) and error.errno in WRITE_ERRNOS:
        where = f"{error.filename}: " if error.filename else ""
        _print_error(
            f"{where}{error.strerror}",
            "free disk space or change the permissions or limits, then run the same command again",
        )
        return EXIT_USER
    if isinstance(error, OSError) and error.filename and _is_unusable(error):
        path = plain_text(os.fsdecode(error.filename), _LONGEST_PATH)
        _print_error(f"cannot use the path {path}: {error.strerror}", "give another path")
        return EXIT_USER
    if is_out_of_memory(error):
        _print_error(
            f"not enough memory: {first_line(error)}",
            "choose smaller sizes (batch size, width, snippet length), or free memory",
        )
        return EXIT_USER
    return _report_bug(error, arguments)


def _is_unusable(error: OSError) -> bool:
    """Tell whether no file or directory can have a path: it is too long, or a file is above it."""
    # Where a directory was to be made.
    in_its_place = error.errno == errno.EEXIST and not Path(os.fsdecode(error.filename)).is_dir()
    return in_its_place or error.errno in PATH_ERRNOS


def command_line(arguments: list[str]) -> str:
    """Return the command line as it can be pasted."""
    return " ".join(_quote(item) for item in ("lwdctl", *arguments))


def _from_stage(arguments: list[str], stage: str | None) -> list[str]:
    """Return a command line that runs again from another stage.

    Args:
        arguments: The command line.
        stage: The stage; "" for none, so that only what is not up to date runs, None for the same.
    """
    if stage is None:
        return arguments
    changed, before = list[str](), ""
    for item in arguments:
        if item.startswith("--from="):
            changed += [f"--from={stage}"] if stage else []
        elif item == "--from":
            changed += [item, stage] if stage else []
        elif before != "--from":
            changed.append(item)
        before = item
    return changed


def hint_after_two_signals(arguments: list[str]) -> str:
    """Return the hint that says what a second signal, which ends the process at once, may leave."""
    see = f"lwdctl gc{_workspace(arguments)}"
    return f"files of the unfinished run may be left; see what can be removed: {see}"


def _workspace(arguments: list[str]) -> str:
    """Return the `--workspace` option of a command line as it can be pasted, or ""."""
    path = _workspace_path(arguments)
    return f" --workspace {_quote(path)}" if path else ""


def _workspace_path(arguments: list[str]) -> str:
    """Return the value of `--workspace` in a command line, or ""."""
    for index, item in enumerate(arguments):
        if item == "--workspace" and arguments[index + 1 :]:
            return arguments[index + 1]
        if item.startswith("--workspace="):
            return item.partition("=")[2]
    return ""


def _quote(item: str) -> str:
    r"""Quote an argument for a shell; one that would act on a terminal as `$'\x1b'`."""
    if visible(item) == item:
        return shlex.quote(item)
    try:
        content = os.fsencode(item)
    except UnicodeEncodeError:  # no argument of a process
        content = item.encode(errors="backslashreplace")
    escaped = (
        f"\\x{byte:02x}" if not 32 <= byte < 127 or chr(byte) in "\\'" else chr(byte)
        for byte in content
    )
    return f"$'{''.join(escaped)}'"


def _how_to_resume(arguments: list[str]) -> str:
    """Return the hint that says how to go on after an interruption."""
    if arguments[:1] == ["run"]:
        return f"finished stages are kept; continue with: {command_line(arguments)}"
    if arguments[:1] == ["push"]:
        return f"files that were sent whole are kept; continue with: {command_line(arguments)}"
    if arguments[:1] in (["download"], ["pull"]):
        return f"what was downloaded is kept; continue with: {command_line(arguments)}"
    name = next((" ".join(arguments[:n]) for n in (1, 2) if " ".join(arguments[:n]) in STAGES), "")
    if not name:
        return f"nothing was kept; run it again: {command_line(arguments)}"
    if not STAGES[name].resumable:
        return f"an unfinished artifact is not kept; run it again: {command_line(arguments)}"
    return _how_to_resume_stage(STAGES[name].artifact_type, arguments)


def _how_to_resume_stage(artifact_type: str, arguments: list[str]) -> str:
    """Return the hint of a stage that can be resumed; it says what the interrupted run has left."""
    # Imported here: most commands end otherwise.
    from lwdctl.artifacts.locks import Owner
    from lwdctl.artifacts.workspace import Workspace

    resumed = "--resume" in arguments
    begun = command_line([item for item in arguments if item != "--resume"])
    again = f"{begun} --resume"
    launch = launched()
    if launch is not None:
        again = launch.command(again)
    unfinished = Workspace.locate(_workspace_path(arguments)).unfinished(artifact_type)
    own = [
        item
        for item in unfinished
        if item.command == begun and (resumed or item.owner == Owner.this())
    ]
    if any(item.resumable for item in own):
        return f"resume from the last checkpoint with: {again}"
    if own:
        return f"what is finished is kept; continue with: {again}"
    if resumed and unfinished:  # the run that was resumed may have begun with another command
        return f"a run that was begun before is kept; if there is one, continue with: {again}"
    first = launch.command(begun) if launch is not None else begun
    return f"no checkpoint was written yet, so nothing is kept; run it again: {first}"


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
    if "--debug" in arguments:
        sys.stderr.write(visible_lines(text))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="lwdctl-traceback-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(visible_lines(f"{command_line(arguments)}\n\n{text}"))
        where = f"the traceback in {file.name} (--debug prints it)"
    except OSError:  # a full disk
        where = "the traceback that --debug prints"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    outside = _raised_outside(error)
    if outside is not None:
        code = outside.f_code
        place = f"{code.co_name} of {code.co_filename}, line {outside.f_lineno}"
        _print_error(f"{what} (in {place})", f"this is code outside of lwdctl: see {where}")
        return EXIT_USER
    _print_error(f"unexpected {what}", f"this is a bug in lwdctl; please report it with {where}")
    return EXIT_BUG


def _raised_outside(error: BaseException) -> FrameType | None:
    """Return where a plug-in's code raised an error, by itself or in a library that it called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        name = f"{frame.f_globals.get('__name__', '')}."
        if name.startswith("lwdctl."):
            return None
        if any(name.startswith(f"{package}.") for package in OUTSIDE):
            return frame
    return None


def _print_error(message: str, hint: str) -> None:
    sys.stderr.write(f"error: {plain_text(message)}\n")
    if hint:
        sys.stderr.write(f"hint: {visible(hint)}\n")
    sys.stderr.flush()
