"""Errors a user can act on, each with the exit code the command line returns."""

from __future__ import annotations

import errno
import os
import shlex
import sysconfig
import traceback
from pathlib import Path

EXIT_OK = 0
EXIT_USER = 1
EXIT_USAGE = 2
EXIT_BUG = 3
EXIT_INTERRUPTED = 130


class LwdctlError(Exception):
    """An error that the user can correct.

    Args:
        message: One line that says what is wrong, where, and what was expected.
        hint: One line with what to do next, preferably a command to paste, or an empty string.
    """

    exit_code = EXIT_USER
    reported = False
    """Whether another process of the same training reports it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # shown by Python beneath the message


class ConfigError(LwdctlError):
    """A configuration value or key that a stage does not accept."""


class DataError(LwdctlError):
    """An input file that cannot be read as what it claims to be."""


class NotFiniteError(DataError):
    """An action is NaN or infinite."""


class ArtifactError(LwdctlError):
    """A missing, damaged, ambiguous or mismatched artifact."""


class SimulatorError(LwdctlError):
    """A simulator that is missing, died, or stopped answering."""


class MissingExtraError(LwdctlError):
    """An optional dependency that is not installed."""


WITHOUT_CONSTRAINTS = ("trackio",)
"""Extras that need other versions than constraints.txt pins."""


def install_extra(extra: str) -> str:
    """Return the command that installs an extra, in a checkout with the tested versions."""
    checkout = Path(__file__).parents[2]
    constraints = checkout / "constraints.txt"
    if extra in WITHOUT_CONSTRAINTS or not constraints.is_file():
        return f"pip install 'lwdctl[{extra}]'"
    target = shlex.quote(f"{checkout}[{extra}]")
    return f"pip install -c {shlex.quote(str(constraints))} -e {target}"


WRITE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)
"""What the system answers where a disk is full or must not be written."""


PATH_ERRNOS = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR})
"""What the system answers where no file or directory can have such a path."""


def cannot_write(error: BaseException | None, folder: Path, then: str) -> ArtifactError | None:
    """Return the error of a write below a folder that the system refused, or None.

    Args:
        error: What was raised. Only an `OSError` of `WRITE_ERRNOS` that names a path below
            `folder`, or none at all, is such a write.
        folder: Where was written.
        then: What to do when there is room (`"run the same command again"`).
    """
    if not isinstance(error, OSError) or error.errno not in WRITE_ERRNOS:
        return None
    where = Path(os.fsdecode(error.filename)) if error.filename else folder
    if not where.is_relative_to(folder):
        return None
    return ArtifactError(
        f"cannot write {where}: {error.strerror}",
        f"free disk space, raise the limit or change the permissions, then {then}",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether Python, NumPy or torch (on a CPU or a GPU) got no memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def described(error: BaseException) -> str:
    """Return what an error says and where code of the user's raised it.

    Code in installed packages gets no place. An error that lwdctl raises says by itself what there
    is to say, its hint included.
    """
    if isinstance(error, LwdctlError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, SyntaxError):  # it names its file and line itself
        return f"{type(error).__name__}: {error}"
    text = "".join(traceback.format_exception_only(error)).strip()
    package, places = Path(__file__).parents[1], sysconfig.get_paths()
    libraries = [Path(places[name]) for name in ("stdlib", "purelib", "platlib")]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if package in file.parents:
            break
        # Compiled modules name files that are not there.
        if file.is_absolute() and not any(place in file.parents for place in libraries):
            return f"{text} (in {frame.name} of {Path(frame.filename).name}, line {frame.lineno})"
    return text


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]
