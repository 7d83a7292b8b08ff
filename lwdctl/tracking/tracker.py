"""What a tracker does: one class per program, used by `tracking.worker` in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lwdctl.tracking.history import Outcome, Point
from lwdctl.tracking.run import TrackedRun


class Tracker(Protocol):
    """Shows one run. Whatever its methods raise ends the tracking, never the run."""

    def begin(self, run: TrackedRun, root: Path, say: Callable[[str], None]) -> None:
        """Begin to show a run, or go on with the one of the same id.

        Args:
            run: The run.
            root: Folder for local files: the workspace, as a rule.
            say: Shows a line to the user.
        """

    def log(self, point: Point) -> None:
        """Show one row of the log; steps increase. One that is shown already changes nothing."""

    def conclude(self, outcome: Outcome, step: int) -> None:
        """Show the summary, result rows and media of a finished run behind its last step."""

    def finish(self, *, finished: bool) -> None:
        """Send what is left, and say whether the run was finished or interrupted."""
