"""A repository of the Hugging Face Hub: its name, its state, and what its errors mean."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import lwdctl
from lwdctl.artifacts.references import HUB_PREFIX
from lwdctl.core.errors import WRITE_ERRNOS, ConfigError, DataError, LwdctlError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.progress import Progress
from lwdctl.data.fetch import reason
from lwdctl.data.readers.lerobot_hub import hub_endpoint

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
TIMEOUT_SECONDS = 60.0
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,250}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Address:
    """A repository, and the revision that is meant ("" for the newest)."""

    repository: str
    revision: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `user/name` or `user/name@revision`, also after `hf:`.

        Raises:
            ConfigError: It has neither form.
        """
        repository, mark, revision = text.removeprefix(HUB_PREFIX).partition("@")
        odd = ".." in text or "--" in repository or repository.endswith(".git")
        if odd or not _REPOSITORY.fullmatch(repository):
            raise ConfigError(
                f"'{text}' is not the name of a repository of the Hugging Face Hub",
                "write USER/NAME, or USER/NAME@REVISION for a branch, tag or commit of it",
            )
        if mark and not _REVISION.fullmatch(revision):
            raise ConfigError(
                f"'{revision}' cannot be a revision of {repository}",
                "write a branch, a tag or a commit behind the @",
            )
        return cls(repository, revision)

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a full commit, which never changes."""
        return bool(_COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


@dataclass(frozen=True)
class Remote:
    """The state of a repository at one commit.

    Attributes:
        repository: `user/name`.
        commit: The commit, 40 hexadecimal digits; "" for a repository without one.
        private: Whether only its members can see it.
        files: Path to size in bytes, None where the Hub does not say it.
    """

    repository: str
    commit: str
    private: bool
    files: dict[str, int | None]


def endpoint() -> str:
    """Return the address of the Hub: `$HF_ENDPOINT`, else the public one."""
    from huggingface_hub import constants

    return str(hub_endpoint() or constants.ENDPOINT).rstrip("/")


def connect() -> Any:
    """Return the Hub's client, which finds the user's token by itself."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), library_name="lwdctl", library_version=lwdctl.__version__)


def headers() -> dict[str, str]:
    """Return the headers of a download, with the user's token where there is one."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return dict(build_hf_headers(library_name="lwdctl", library_version=lwdctl.__version__))


def has_token() -> bool:
    """Tell whether the user is logged in."""
    return bool(_token())


def state_of(address: Address) -> Remote | None:
    """Ask the Hub for a repository; None where it has none that the user may see.

    Raises:
        DataError: The Hub does not respond, refuses, or has no such revision.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    with understood(address):
        try:
            info = connect().model_info(
                address.repository,
                revision=address.revision or None,
                timeout=TIMEOUT_SECONDS,
                files_metadata=True,
            )
        except RepositoryNotFoundError as error:
            if isinstance(error, GatedRepoError):
                raise
            return None
    commit = str(info.sha or "")
    if commit and not _COMMIT.fullmatch(commit):
        raise DataError(f"the Hub names '{plain_text(commit, 60)}' as a commit of {address}")
    files = {str(item.rfilename): item.size for item in info.siblings or ()}
    return Remote(address.repository, commit, bool(info.private), files)


def not_found(address: Address) -> DataError:
    """Return the error for a repository that is not there, or is not shown to the user."""
    return DataError(*_not_found(address))


def _not_found(address: Address) -> tuple[str, str]:
    more = "" if has_token() else f"; for a private one {LOG_IN}"
    return (
        f"the Hugging Face Hub has no repository {address.repository}, or it is private",
        f"check the name{more}",
    )


@contextlib.contextmanager
def understood(address: Address, then: str = "run the same command again") -> Iterator[None]:
    """Turn what the Hub's client raises into one line with a hint; the token is in neither.

    Args:
        address: What is asked for.
        then: What to do after the Hub did not respond.

    Raises:
        DataError: Instead of any error of the client.
    """
    try:
        yield
    except LwdctlError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in WRITE_ERRNOS and error.filename:
            raise  # the disk
        failure = _in_words(error, address, then)
        if _has_secret(repr(error)):
            raise failure from None
        raise failure from error


def _in_words(error: Exception, address: Address, then: str) -> DataError:
    from huggingface_hub import errors

    name, page = address.repository, f"{endpoint()}/{address.repository}"
    status, server = _answer(error)
    settings = "https://huggingface.co/settings/tokens"
    known: tuple[tuple[bool, str, str], ...] = (
        (isinstance(error, errors.OfflineModeIsEnabled),
         f"cannot ask the Hub for {name}: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"),
        (isinstance(error, errors.GatedRepoError),
         f"{name} is gated: access to it must be asked for", f"ask at {page}, and {LOG_IN}"),
        (isinstance(error, errors.RevisionNotFoundError),
         f"{name} has no revision '{address.revision}'", f"see {page}/commits/main"),
        (isinstance(error, errors.RepositoryNotFoundError), *_not_found(address)),
        (isinstance(error, errors.LocalTokenNotFoundError) or status == HTTPStatus.UNAUTHORIZED,
         f"the Hub does not accept the token for {name}", LOG_IN),
        (status == HTTPStatus.FORBIDDEN, f"the token does not allow this for {name}{server}",
         f"make a token that may write at {settings}, and {LOG_IN}"),
        (status == HTTPStatus.TOO_MANY_REQUESTS,
         f"the Hub refuses for now: too many requests{_wait(error)}", f"wait, then {then}"),
        (status > 0, f"the Hugging Face Hub responds {status}{server} for {name}", then),
        (isinstance(error, ValueError), f"the Hub refuses {name}: {_lines(str(error))}", then),
    )  # fmt: skip
    for applies, message, hint in known:
        if applies:
            return DataError(message, hint)
    return DataError(
        f"the Hugging Face Hub does not respond for {name} ({_lines(reason(_cause(error)))})",
        f"check the connection, then {then}",
    )


def _answer(error: BaseException) -> tuple[int, str]:
    """Return the status with which the Hub answered, 0 for none, and what it said."""
    while True:
        response = getattr(error, "response", None)
        if response is not None:
            said = getattr(error, "server_message", None)
            return int(response.status_code), f" ({_lines(str(said))})" if said else ""
        if error.__cause__ is None:
            return 0, ""
        error = error.__cause__


def _cause(error: BaseException) -> BaseException:
    """Return the innermost error; the client wraps those of transfers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _wait(error: BaseException) -> str:
    response = getattr(error, "response", None)
    seconds = response.headers.get("retry-after", "") if response is not None else ""
    return f" (it names {int(seconds)} seconds)" if seconds.isdecimal() else ""


def _lines(text: str) -> str:
    """Return a text of the Hub or its client as one line without the token."""
    token = _token()
    if token:
        text = text.replace(token, "***")
    return plain_text(" ".join(text.split()), 300)


def _has_secret(text: str) -> bool:
    token = _token()
    return bool(token) and token in text


def _token() -> str:
    from huggingface_hub import get_token

    try:
        return get_token() or ""
    except Exception:  # noqa: BLE001 - an OAuth exchange of the client's that failed
        return ""


class _Forwarding(logging.Handler):
    """Passes the client's warnings on: that it waits and tries again."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Show one warning."""
        self._progress.message(f"note: {_lines(record.getMessage())}")


@contextlib.contextmanager
def quiet_client(progress: Progress) -> Iterator[None]:
    """Keep the Hub's client from printing: its warnings become messages, its bars are ours."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    log, had_bars = logging.getLogger("huggingface_hub"), not are_progress_bars_disabled()
    level, handlers = log.level, log.handlers
    log.setLevel(logging.WARNING)
    log.handlers = [_Forwarding(progress)]
    disable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            yield
        for item in found:
            if issubclass(item.category, UserWarning):
                progress.message(f"note: {_lines(str(item.message))}")
    finally:
        log.setLevel(level)
        log.handlers = handlers
        if had_bars:
            enable_progress_bars()
