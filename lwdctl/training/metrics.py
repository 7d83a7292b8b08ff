"""The training log: `metrics.jsonl` for programs, `log.txt` for people, TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

FILE = "metrics.jsonl"
TEXT = "log.txt"


class MetricLog:
    """Appends numbers per training step; a resumed run drops rows after its checkpoint.

    The text log keeps them, because it records interruptions too.

    Args:
        directory: The run's directory.
        done: Training steps that the run has already made.
    """

    def __init__(self, directory: Path, done: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = directory / FILE
        rows = [line for line in _rows(path) if json.loads(line)["update"] <= done]
        path.write_text("".join(rows))
        self._file = path.open("a")
        self._text = (directory / TEXT).open("a", encoding="utf-8")
        if done:
            self._write_line(f"resuming from update {done}")
        self._events = SummaryWriter(directory / "tensorboard", purge_step=done + 1)

    def write(self, update: int, values: Mapping[str, float], planned: int) -> None:
        """Write one row.

        Args:
            update: Training steps made so far.
            values: Numbers by name; `seconds` is the training time so far.
            planned: Training steps in all.
        """
        self._write_line(_line(update, values, planned))
        self._file.write(json.dumps({"update": update, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, update)

    def __enter__(self) -> MetricLog:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close all logs; the text log records an error that ended training."""
        _, error, _ = exception
        if error is not None:
            self._write_line(f"ended by {type(error).__name__}: {error}".rstrip(": "))
        self._file.close()
        self._text.close()
        self._events.close()

    def _write_line(self, line: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        self._text.write(f"{now} UTC  {line}\n")
        self._text.flush()


def _line(update: int, values: Mapping[str, float], planned: int) -> str:
    """Format a row for people: `update 50/8000 (1 %), 0:02:10 left: kl 1.5, seconds 0.8`."""
    left = timedelta(seconds=round((planned - update) * values["seconds"] / max(update, 1)))
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    percent = 100 * update / max(planned, 1)
    return f"update {update}/{planned} ({percent:.0f} %), {left} left: {numbers}"


def _rows(path: Path) -> list[str]:
    """Return the complete lines of a log; a killed process may have left half a line."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]
