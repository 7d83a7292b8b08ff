"""Which trackers follow a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwdctl.core.launch import leads
from lwdctl.tracking.trackers import check_installed

if TYPE_CHECKING:
    from lwdctl.artifacts.run_in_progress import RunInProgress
    from lwdctl.core.progress import Progress

Names = str | Iterable[str]


@dataclass(frozen=True)
class Tracking:
    """The trackers that follow a run.

    Attributes:
        names: Rows of `TRACKERS`; () follows nothing.
        project: Project that the run is filed under; "" takes the workspace's name.
    """

    names: tuple[str, ...] = ()
    project: str = ""

    @classmethod
    def of(cls, track: Names = (), project: str = "") -> Tracking:
        """Return the trackers that are named, after checking that each one is installed.

        Args:
            track: Names, one or several, also separated by commas (`"wandb,tensorboard"`).
            project: Project that the run is filed under; "" takes the workspace's name.

        Raises:
            ConfigError: No tracker has one of the names.
            MissingExtraError: The package of one is not installed.
        """
        texts = [track] if isinstance(track, str) else track
        parts = [part.strip() for text in texts for part in text.split(",")]
        names = tuple(dict.fromkeys(part for part in parts if part))
        for name in names:
            check_installed(name)
        return cls(names, project)

    def arguments(self) -> list[str]:
        """Return the options of a command that name them."""
        words = ["--track", ",".join(self.names)] if self.names else []
        return [*words, "--track-project", self.project] if words and self.project else words

    @contextmanager
    def follow(self, output: RunInProgress, progress: Progress) -> Iterator[None]:
        """Let the trackers follow a run until the block ends; none of their failures ends it.

        Args:
            output: The run; what the block has published then is what the trackers show at last.
            progress: Where to warn.
        """
        if not self._is_active:
            yield
            return
        from lwdctl.tracking.run import run_of_record
        from lwdctl.tracking.session import followed

        root = output.path.parents[2]
        run = run_of_record(output.record, root)
        with followed(self.names, self.project, run, output.path, root, progress) as outcome:
            yield
            if output.artifact is not None:
                outcome.directory = output.artifact.path

    @contextmanager
    def follow_in_memory(
        self,
        kind: str,
        environment: str,
        config: Mapping[str, Any],
        directory: Path,
        progress: Progress,
    ) -> Iterator[None]:
        """Let the trackers follow a run that makes no artifact and can thus not be sent later.

        Args:
            kind: Type of the artifact that it would make (`"vae"`).
            environment: Name of the environment.
            config: Its settings.
            directory: Where it writes `metrics.jsonl` and what `history.write_summary` writes.
            progress: Where to warn.
        """
        if not self._is_active:
            yield
            return
        from lwdctl.tracking.run import run_in_memory
        from lwdctl.tracking.session import followed

        run = run_in_memory(kind, environment, config)
        with followed(self.names, self.project, run, directory, None, progress) as outcome:
            yield
            outcome.directory = directory

    @property
    def _is_active(self) -> bool:
        # Of several processes that train one model, the first reports.
        return bool(self.names) and leads()


NO_TRACKING = Tracking()
