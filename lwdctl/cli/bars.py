"""Progress on stderr: bars on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from lwdctl.core.plain_text import visible
from lwdctl.core.progress import Progress, SilentProgress, Task

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

PLAIN_SECONDS = 5.0
"""Shortest time between two plain lines of one task."""
MOST_ENDED = 3
"""Bars that have ended and stay on the screen while others go on."""


def make_progress(*, quiet: bool, stream: TextIO | None = None) -> Progress:
    """Return the progress reporter: a silent one, bars, or plain lines."""
    stream = stream or sys.stderr
    if quiet:
        return SilentProgress()
    return BarProgress(stream) if stream.isatty() else PlainProgress(stream)


class PlainProgress:
    """Prints one line at the end of a task, and every few seconds before."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock

    def message(self, text: str) -> None:
        """Print the line."""
        self._stream.write(visible(text) + "\n")
        self._stream.flush()

    @contextmanager
    def task(
        self, title: str, total: int | None, unit: str = "it", start: int = 0
    ) -> Iterator[Task]:
        """Yield a task that prints its state every few seconds."""
        task = _PlainTask(self.message, self._clock, title, total, unit, start)
        yield task
        task.end()


class _PlainTask:
    def __init__(
        self,
        write: Callable[[str], None],
        clock: Callable[[], float],
        title: str,
        total: int | None,
        unit: str,
        start: int,
    ) -> None:
        self._write, self._clock = write, clock
        self._title, self._total, self._unit = title, total, unit
        self._start = self._done = start
        self._started = self._reported = clock()
        self._reported_done = -1
        self._fields: Mapping[str, float | str] = {}

    def advance(self, amount: int = 1, **fields: float | str) -> None:
        self._done += amount
        if fields:
            self._fields = fields
        if self._clock() - self._reported >= PLAIN_SECONDS:
            self.report()

    def end(self) -> None:
        """Print the final state, unless it was printed already."""
        if self._reported_done != self._done:
            self.report()

    def report(self) -> None:
        """Print the current state."""
        self._reported, self._reported_done = self._clock(), self._done
        seconds = self._reported - self._started
        rate = (self._done - self._start) / seconds if seconds > 0 else 0.0
        parts = [_count(self._done, self._total), f"{rate:.1f} {self._unit}/s"]
        if self._total is not None and rate > 0 and self._done < self._total:
            parts.append(f"{clock_text((self._total - self._done) / rate)} left")
        if self._done == self._total:
            parts.append(f"took {clock_text(seconds)}")
        if self._fields:
            parts.append(fields_text(self._fields))
        self._write(f"{self._title}: " + ", ".join(parts))


class BarProgress:
    """Bars drawn with rich: count, rate, time left, latest numbers."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False)
        self._bars: Bars | None = None
        self._open = 0
        self._ended: list[TaskID] = []

    def message(self, text: str) -> None:
        """Print the line above the bars."""
        self._console.print(visible(text), markup=False, soft_wrap=True)

    @contextmanager
    def task(
        self, title: str, total: int | None, unit: str = "it", start: int = 0
    ) -> Iterator[Task]:
        """Yield a task drawn as one bar; nested tasks have their bars below each other."""
        bars = self._start()
        identity = bars.add_task(visible(title), total=total, completed=start, unit=unit, fields="")
        try:
            yield _BarTask(bars, identity)
        finally:
            self._stop(bars, identity)

    def _start(self) -> Bars:
        if self._bars is None:
            self._bars = _make_bars(self._console)
            self._bars.start()
        self._open += 1
        return self._bars

    def _stop(self, bars: Bars, identity: TaskID) -> None:
        self._open -= 1
        if self._open == 0:
            bars.stop()
            self._bars = None
            self._ended.clear()
            return
        self._ended.append(identity)
        if len(self._ended) > MOST_ENDED:  # they would take the place of those that go on
            bars.remove_task(self._ended.pop(0))


class _BarTask:
    def __init__(self, bars: Bars, identity: TaskID) -> None:
        self._bars = bars
        self._identity = identity

    def advance(self, amount: int = 1, **fields: float | str) -> None:
        if fields:
            self._bars.update(self._identity, advance=amount, fields=fields_text(fields))
        else:
            self._bars.advance(self._identity, amount)


def fields_text(fields: Mapping[str, float | str]) -> str:
    """Format the latest numbers of a task (`loss=0.12 kl=3.4`)."""
    return visible(
        " ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in fields.items()
        )
    )


def clock_text(seconds: float) -> str:
    """Format a duration as `0:05`, `12:30` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _count(done: int, total: int | None) -> str:
    if not total:
        return str(done)
    return f"{done}/{total} ({100 * done / total:.0f} %)"


def _make_bars(console: object) -> Bars:
    from collections.abc import Iterable

    from rich.console import RenderableType
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.progress import Task as BarState
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units per second over the last half minute."""

        def render(self, task: BarState) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s")

    class WithNumbers(Bars):
        """Bars, and below them the latest numbers of each: beside them 80 columns are too few."""

        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if task.fields["fields"]:
                    yield Text(f"  {task.fields['fields']}", no_wrap=True, overflow="ellipsis")

    def whole() -> Column:
        return Column(no_wrap=True)  # where a line is too long, the bar gives way

    return WithNumbers(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(table_column=whole()),
        Rate(table_column=whole()),
        TimeRemainingColumn(table_column=whole()),
        console=console,  # type: ignore[arg-type]
    )
