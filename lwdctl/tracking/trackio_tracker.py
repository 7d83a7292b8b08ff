"""Trackio."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lwdctl.core.errors import LwdctlError
from lwdctl.tracking.history import Medium, Outcome, Point
from lwdctl.tracking.run import TrackedRun


class TrackioTracker:
    """A Trackio run whose name ends with the id of the tracked run, by which it is found again.

    It lies where Trackio keeps its runs: `TRACKIO_DIR`, or what its own variables name.
    """

    def begin(self, run: TrackedRun, root: Path, say: Callable[[str], None]) -> None:
        """Begin the run, or go on with that of the same name."""
        del root, say
        import trackio

        # Trackio warns where it cannot store something, and goes on.
        self._caught: Any = warnings.catch_warnings(record=True)
        self._warnings = self._caught.__enter__()
        warnings.simplefilter("always")
        config = {**run.config, "tags": list(run.tags), "stage": run.stage}
        self._run = trackio.init(
            project=run.project,
            name=f"{run.title} {run.id}",
            config=config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._known = int(getattr(self._run, "_next_step", 0) or 0)

    def log(self, point: Point) -> None:
        """Log one row; the step is the training step."""
        if point.step >= self._known:
            self._run.log(dict(point.values), step=point.step)
        self._check()

    def conclude(self, outcome: Outcome, step: int) -> None:
        """Log the result rows and the summary as tables, and media by name."""
        import trackio

        if step < self._known:
            return
        shown: dict[str, Any] = {item.name: _medium(item) for item in outcome.media}
        if outcome.results is not None:
            rows = [list(row) for row in outcome.results.rows]
            shown["results"] = trackio.Table(columns=list(outcome.results.columns), data=rows)
        summary = [list(item) for item in outcome.summary.items()]
        shown["summary"] = trackio.Table(columns=["name", "value"], data=summary)
        self._run.log(shown, step=step)
        self._check()

    def finish(self, *, finished: bool) -> None:
        """Finish the run."""
        del finished  # Trackio does not tell them apart
        self._run.finish()
        self._check()
        self._caught.__exit__(None, None, None)

    def _check(self) -> None:
        for item in self._warnings:
            if issubclass(item.category, UserWarning) and "trackio" in str(item.filename):
                raise LwdctlError(str(item.message))
        self._warnings.clear()


def _medium(item: Medium) -> Any:
    import trackio

    kind = trackio.Video if item.kind == "video" else trackio.Image
    return kind(str(item.path))
