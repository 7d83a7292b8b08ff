"""What a stage is: configuration and inputs in, one artifact out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.manifest import recording
from lwdctl.artifacts.run_in_progress import RunInProgress
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.trust import trusting
from lwdctl.tracking.tracking import NO_TRACKING, Tracking

REST: Final = "rest"
Part: TypeAlias = tuple[int, int] | Literal["rest"]
"""A part of a stage's work: which one, from 0, and the number of parts; or, while another process
does the work, what nobody has begun."""
LOST = "episodes_lost_to_simulators"
"""Summary key of an artifact that lacks episodes, with their number; the artifact is not final."""


@dataclass(frozen=True)
class StageContext:
    """Where a stage runs.

    Attributes:
        workspace: Where inputs stand and the artifact goes.
        progress: Where it reports.
        name: Name of the artifact to make, or "" for the stage's own choice
            (as a rule the name of its last input).
        resume: Go on from the newest unfinished run of the same configuration.
        candidates: The artifacts that a stage may choose among, the preferred ones last; None
            for all of the workspace.
        trust: Environments (`package.module:Class`) that may be imported where the data name them.
        tracking: Trackers that follow the run, where the stage is `tracked`.
    """

    workspace: Workspace
    progress: Progress = field(default_factory=TqdmProgress)
    name: str = ""
    resume: bool = False
    candidates: tuple[Artifact, ...] | None = None
    trust: tuple[str, ...] = ()
    tracking: Tracking = NO_TRACKING

    def followed(self, output: RunInProgress) -> AbstractContextManager[None]:
        """Let the trackers follow a run until the block ends; see `Tracking.follow`."""
        return self.tracking.follow(output, self.progress)


RunFunction = Callable[[Any, Mapping[str, Artifact], StageContext], Artifact]


@dataclass(frozen=True)
class Stage:
    """One row of the stage table.

    A configuration with a method `reads(named)` decides which of `inputs` are read.

    Attributes:
        command: Name on the command line (`"train-vae"`).
        artifact_type: Type of the artifact it makes (`"vae"`).
        config: Frozen dataclass of `core.config.option` fields.
        inputs: Artifact types it reads, the most specific one last; the others must be among
            its ancestors or are taken from them.
        run: `run(config, inputs by type, context)`, or its name `"package.module:function"`,
            imported on use.
        summary: One line for help texts.
        resumable: Whether an interrupted run can go on from its last checkpoint.
        simulates: Whether it runs or asks the environment that the data name.
        tracked: Whether trackers can follow it.
        distributed: Whether several processes, which a launcher starts, can do its work together.
        choices: Name of the module of a stage that chooses among several models, imported on
            use: `types_read(config, named)`, `candidate_types(config)`,
            `distinguished_settings(config)`, and `chosen_models(config, inputs, context)`, the
            inputs that a run would record.
        parts: Name of the function `(config, inputs, context, part)` of a stage whose work can be
            done in parts, by other processes before or while the stage itself runs; "" for none.
    """

    command: str
    artifact_type: str
    config: type
    inputs: tuple[str, ...]
    run: RunFunction | str
    summary: str = ""
    resumable: bool = False
    simulates: bool = False
    tracked: bool = False
    distributed: bool = False
    choices: str = ""
    parts: str = ""

    def execute(
        self, config: Any, inputs: Mapping[str, Artifact], context: StageContext
    ) -> Artifact:
        """Run the stage and return the artifact it made."""
        with recording(stage=self.command), trusting(context.trust):
            artifact: Artifact = _load(self.run)(config, inputs, context)
        return artifact

    def execute_part(
        self,
        config: Any,
        inputs: Mapping[str, Artifact],
        context: StageContext,
        part: Part,
    ) -> None:
        """Do a part of the stage's work, for `execute` to take."""
        with recording(stage=self.command), trusting(context.trust):
            _load(self.parts)(config, inputs, context, part)

    def reads(self, config: Any, named: Collection[str] = ()) -> tuple[str, ...]:
        """Return the artifact types that are read under a configuration.

        Args:
            config: The stage's configuration.
            named: Artifact types of which one artifact was named.
        """
        if self.choices:
            types: tuple[str, ...] = _load(f"{self.choices}:types_read")(config, named)
            return types
        found: tuple[str, ...] = config.reads(named) if hasattr(config, "reads") else self.inputs
        return found

    def candidates(self, config: Any) -> tuple[str, ...]:
        """Return the artifact types among several of which the stage chooses."""
        if not self.choices:
            return ()
        found: tuple[str, ...] = _load(f"{self.choices}:candidate_types")(config)
        return found

    def distinguishes(self, config: Any) -> tuple[str, ...]:
        """Return the settings of training by which the stage tells models apart that it chooses."""
        if not self.choices:
            return ()
        found: tuple[str, ...] = _load(f"{self.choices}:distinguished_settings")(config)
        return found

    def choose(
        self, config: Any, inputs: Mapping[str, Artifact], context: StageContext
    ) -> list[Artifact] | None:
        """Return the inputs that a run would record; None where the stage chooses none."""
        if not self.choices:
            return None
        models: list[Artifact] = _load(f"{self.choices}:chosen_models")(config, inputs, context)
        return models


def _load(function: Callable[..., Any] | str) -> Callable[..., Any]:
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return loaded
