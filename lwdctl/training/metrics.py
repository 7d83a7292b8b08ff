"""The training log: `metrics.jsonl` beside TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

FILE = "metrics.jsonl"


class MetricLog:
    """Append numbers per update; a resumed run drops what came after its checkpoint.

    Args:
        directory: The run's directory.
        done: Updates that the run has already made.
    """

    def __init__(self, directory: Path, done: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = directory / FILE
        kept = [line for line in _rows(path) if json.loads(line)["update"] <= done]
        path.write_text("".join(kept))
        self._file = path.open("a")
        self._events = SummaryWriter(directory / "tensorboard", purge_step=done + 1)

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Write one row."""
        self._file.write(json.dumps({"update": update, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, update)

    def __enter__(self) -> MetricLog:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close both logs."""
        self._file.close()
        self._events.close()


def _rows(path: Path) -> list[str]:
    """Return the whole lines of a log; a killed process may have left half of one."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]
