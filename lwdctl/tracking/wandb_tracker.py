"""Weights & Biases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lwdctl.artifacts.files import matching
from lwdctl.tracking.history import Medium, Outcome, Point
from lwdctl.tracking.run import TrackedRun

INIT_SECONDS = 25.0
"""Seconds to wait for the server when a run begins."""
_SETTINGS = {
    "console": "off",
    "disable_git": True,
    "init_timeout": INIT_SECONDS,
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""What the artifact does not hold, such as the state of git, is not sent."""


class WandbTracker:
    """A wandb run with the id of the tracked run.

    On a server a run that is there goes on, and what it has is not sent again. An offline run
    always holds all of the run; when it is finished, earlier ones with the same id are removed.
    """

    def begin(self, run: TrackedRun, root: Path, say: Callable[[str], None]) -> None:
        """Begin the run: offline where there is no valid login, else as wandb's settings say."""
        self._parts = {""}
        self._id = run.id
        try:
            self._run = _init(run, root)
        except Exception as error:
            if not _is_not_logged_in(error):
                raise
            self._run = _init(run, root, mode="offline")
            say(
                "wandb: no valid login, so the run is stored offline; send it with: wandb sync"
                f" {self._folder}"
            )
        self._known = int(getattr(self._run, "step", 0) or 0)

    @property
    def _folder(self) -> Path:
        return Path(str(self._run.dir)).parent

    def log(self, point: Point) -> None:
        """Log one row; the step is the training step."""
        if point.step < self._known:
            return
        if point.part not in self._parts:
            self._parts.add(point.part)
            self._run.define_metric(f"{point.part}/*", step_metric=f"{point.part}/update")
        self._run.log(dict(point.values), step=point.step)

    def conclude(self, outcome: Outcome, step: int) -> None:
        """Log result rows as a table and media by name; set the summary."""
        import wandb

        shown: dict[str, Any] = {item.name: _medium(item) for item in outcome.media}
        if outcome.results is not None:
            rows = [list(row) for row in outcome.results.rows]
            columns = list(outcome.results.columns)
            shown["results"] = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        if shown and step >= self._known:
            self._run.log(shown, step=step)
        numbers = {name: value for name, value in outcome.summary.items() if value is not None}
        self._run.summary.update(numbers)

    def finish(self, *, finished: bool) -> None:
        """Finish the run."""
        folder = self._folder
        self._run.finish(exit_code=0 if finished else 1)
        if folder.name.startswith("offline-run-"):
            for earlier in matching(folder.parent, f"offline-run-*-{self._id}"):
                if earlier.name < folder.name:
                    shutil.rmtree(earlier, ignore_errors=True)


def _init(run: TrackedRun, root: Path, mode: Any = None) -> Any:
    import wandb

    return wandb.init(
        project=run.project,
        id=run.id,
        name=run.title,
        job_type=run.stage or None,
        tags=list(run.tags),
        config=dict(run.config),
        resume="allow",
        mode=mode,
        dir=os.environ.get("WANDB_DIR") or str(root),
        settings=dict(_SETTINGS),
    )


def _is_not_logged_in(error: Exception) -> bool:
    text = str(error).lower().replace("_", " ")
    return type(error).__name__ in ("UsageError", "AuthenticationError") and "api key" in text


def _medium(item: Medium) -> Any:
    import wandb

    if item.kind == "video":
        return wandb.Video(str(item.path), format="mp4")
    return wandb.Image(str(item.path))
