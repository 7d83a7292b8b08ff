"""The interface through which library code reports progress.

The command line draws bars with rich, the Python API with tqdm; tests draw nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from lwdctl.core.plain_text import visible


class Task(Protocol):
    """One piece of work of known or unknown length."""

    def advance(self, amount: int = 1, **fields: float | str) -> None:
        """Advance by `amount`; `fields` are the latest numbers to show beside the bar."""


class Progress(Protocol):
    """Where long work reports; implementations must be cheap to call once per training step."""

    def message(self, text: str) -> None:
        """Show one line (on stderr or in a log, never on stdout)."""

    def task(self, title: str, total: int | None, unit: str = "it", start: int = 0) -> Any:
        """Return a context manager that yields a `Task`; `start` of `total` units are done."""


class _SilentTask:
    def advance(self, amount: int = 1, **fields: float | str) -> None:
        del amount, fields


class SilentProgress:
    """Reports nothing."""

    def message(self, text: str) -> None:
        """Drop the line."""
        del text

    @contextmanager
    def task(
        self, title: str, total: int | None, unit: str = "it", start: int = 0
    ) -> Iterator[Task]:
        """Yield a task that shows nothing."""
        del title, total, unit, start
        yield _SilentTask()


class TqdmProgress:
    """Draws bars with tqdm; the default of the Python API."""

    def message(self, text: str) -> None:
        """Print the line above the bars, on stderr as they are."""
        from tqdm import tqdm

        tqdm.write(visible(text), file=sys.stderr)

    @contextmanager
    def task(
        self, title: str, total: int | None, unit: str = "it", start: int = 0
    ) -> Iterator[Task]:
        """Yield a task drawn as one tqdm bar."""
        from tqdm.auto import tqdm

        with tqdm(desc=visible(title), total=total, unit=unit, initial=start) as bar:
            yield _TqdmTask(bar)


class _TqdmTask:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, amount: int = 1, **fields: float | str) -> None:
        if fields:
            shown = {key: visible(v) if isinstance(v, str) else v for key, v in fields.items()}
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(amount)
