"""What a stage is: configuration and inputs in, one artifact out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.progress import Progress, TqdmProgress

LOST = "episodes_lost_to_simulators"
"""Key of a summary that lacks episodes, with how many; such an artifact is made again."""


@dataclass(frozen=True)
class StageContext:
    """Where a stage runs.

    Attributes:
        workspace: Where inputs stand and the artifact goes.
        progress: Where it reports.
        name: Name of the artifact to make, or "" for the stage's own choice
            (the name of its first input).
        resume: Go on from the newest unfinished draft of the same configuration.
        among: The artifacts that a stage with `choices` may choose from, the preferred ones
            last; None for all that the workspace holds.
    """

    workspace: Workspace
    progress: Progress = field(default_factory=TqdmProgress)
    name: str = ""
    resume: bool = False
    among: tuple[Artifact, ...] | None = None


@dataclass(frozen=True)
class Stage:
    """One row of the stage table.

    Attributes:
        command: Name on the command line (`"train-vae"`).
        kind: Kind of artifact it makes (`"vae"`).
        config: Frozen dataclass of `core.config.option` fields.
        inputs: Kinds of artifact it reads, the most specific one last; the others must
            be among its ancestors or are taken from them.
        run: `run(config, inputs by kind, context)`; heavy imports inside.
        resumable: Whether `--resume` means something.
        reads: The kinds out of `inputs` that are read under a configuration, when artifacts of
            some kinds were named; None for all.
        choices: The kinds of which it chooses among several under a configuration (a grid's
            models); None where one artifact per kind is all it reads.
        chosen: What it would choose: the inputs it would record, given the same arguments as
            `run`. Goes with `choices`.
    """

    command: str
    kind: str
    config: type
    inputs: tuple[str, ...]
    run: Callable[[Any, Mapping[str, Artifact], StageContext], Artifact]
    resumable: bool = False
    reads: Callable[[Any, Collection[str]], tuple[str, ...]] | None = None
    choices: Callable[[Any], tuple[str, ...]] | None = None
    chosen: Callable[[Any, Mapping[str, Artifact], StageContext], list[Artifact]] | None = None
