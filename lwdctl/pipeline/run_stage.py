"""Run one stage by name, from the command line or from Python: find its inputs, run it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.manifest import recording
from lwdctl.artifacts.workspace import Place, Workspace
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.launch import check_one_process, launched, leads
from lwdctl.core.progress import Progress, SilentProgress, TqdmProgress
from lwdctl.core.suggest import did_you_mean
from lwdctl.stages import find_stage
from lwdctl.stages.stage import Stage, StageContext
from lwdctl.tracking.tracking import Names, Tracking


def run_stage(  # noqa: PLR0913 - the options that all stages have, by keyword only
    command: str,
    settings: Any = None,
    *,
    inputs: Mapping[str, str] | None = None,
    run: str = "",
    name: str = "",
    resume: bool = False,
    trust: Collection[str] = (),
    track: Names | Tracking = (),
    track_project: str = "",
    workspace: Place = None,
    progress: Progress | None = None,
) -> Artifact:
    """Run a stage on the newest artifacts of a workspace, or on those named, as its command does.

    Args:
        command: Name of the stage as on the command line (`"train-vae"`, `"eval"`,
            `"analyze latents"`).
        settings: The stage's configuration (`lwdctl.EvalConfig(horizon=(64, 16))`), or a mapping
            of the settings that differ from the defaults, with underscores
            (`{"horizon": [64, 16]}`).
        inputs: Artifact type to reference (`{"diffusion": "lift_mh"}`), for inputs other than the
            newest.
        run: Name of one artifact of the lineage to read from, where there are several.
        name: Name of the artifact; "" takes that of its input, the files or the task.
        resume: Go on from the newest unfinished run of the same settings: trainings from their
            last checkpoint, `"eval"` and `"collect"` after the episodes that were finished.
        trust: Environments outside of lwdctl (`package.module:Class`), one or several, that may be
            imported where the data name them.
        track: Trackers that follow a training or an evaluation, one or several: `"wandb"`,
            `"trackio"`, `"tensorboard"`.
        track_project: Project that they file it under; "" takes the workspace's name.
        workspace: Where inputs stand and the artifact goes.
        progress: Where to report; None draws bars with tqdm.

    Returns:
        The artifact; `manifest.summary` holds its numbers.

    Raises:
        ConfigError: An unknown stage or setting, or a stage that cannot be resumed or followed.
        ArtifactError: An input is missing or damaged, or there is nothing to resume.
        LwdctlError: The same errors as on the command line.
    """
    stage, inputs, progress = find_stage(command), inputs or {}, progress or TqdmProgress()
    if isinstance(settings, stage.config):
        config = settings
    elif settings is None or isinstance(settings, Mapping):
        config = from_mapping(stage.config, settings or {})
    else:
        raise ConfigError(
            f"settings is an object of the type {type(settings).__name__}, expected a"
            f" {stage.config.__name__} or a mapping"
        )
    if resume and not stage.resumable:
        raise ConfigError(f"{command} cannot be resumed", "run it without resume")
    tracking = track if isinstance(track, Tracking) else Tracking.of(track, track_project)
    place = Workspace.locate(workspace)
    if tracking.names and not stage.tracked:
        raise ConfigError(f"{command} cannot be tracked", "run it without trackers")
    call = [repr(command), repr(settings), f"inputs={inputs!r}", f"name={name!r}"]
    call += [f"run={run!r}"] if run else []
    call += [f"workspace={str(place.root)!r}"]
    with (
        recording(command=f"run_stage({', '.join(call)})"),
        _with_other_processes(stage, progress) as shown,
    ):
        found = resolve_inputs(stage, config, place, inputs, run)
        for line in _announcements(found, inputs, stage.candidates(config)):
            shown.message(line)
        trusted = (trust,) if isinstance(trust, str) else tuple(trust)
        context = StageContext(place, shown, name, resume, trust=trusted, tracking=tracking)
        return stage.execute(config, found, context)


@contextmanager
def _with_other_processes(stage: Stage, progress: Progress) -> Iterator[Progress]:
    """Meet the other processes that a launcher started, if any; only one of them reports.

    Raises:
        ConfigError: There are others, and the stage does its work in one process.
    """
    if not stage.distributed:
        check_one_process(stage.command)
    if launched() is None:
        yield progress
        return
    from lwdctl.training.distributed import together

    with together():
        yield progress if leads() else SilentProgress()


def resolve_inputs(
    stage: Stage,
    config: Any,
    workspace: Workspace,
    named: Mapping[str, str],
    run: str = "",
) -> dict[str, Artifact]:
    """Find the artifacts that a stage reads and check their files.

    The primary input, the last of the types that the stage reads, is looked up, among what derives
    from the others that were named; the others are taken from its lineage, so that parts of
    different models never meet.

    Args:
        stage: The stage about to run.
        config: Its configuration.
        workspace: Where to look.
        named: Artifact type to reference, for the inputs that were named.
        run: Name of one artifact of the lineage to take when several qualify, or "".

    Returns:
        Artifact type to artifact, in the order of `stage.inputs`.

    Raises:
        ArtifactError: One is missing, ambiguous, damaged, or of another lineage.
        ConfigError: An input was named that the stage does not read.
    """
    types = stage.reads(config, named)
    for artifact_type in named:
        if artifact_type not in types:
            raise ConfigError(
                f"{stage.command} does not read {artifact_type} with these settings",
                did_you_mean(artifact_type, types),
            )
    if not types:
        return {}
    others = {
        artifact_type: workspace.resolve(artifact_type, reference)
        for artifact_type, reference in named.items()
        if artifact_type != types[-1]
    }
    primary = workspace.resolve(
        types[-1], named.get(types[-1], ""), run, derived_from=list(others.values())
    )
    found = with_ancestors(types, primary, workspace)
    for artifact_type, artifact in others.items():
        _check_lineage(artifact, found[artifact_type], primary)
    return found


def with_ancestors(
    types: tuple[str, ...], primary: Artifact, workspace: Workspace
) -> dict[str, Artifact]:
    """Return `primary` and, for the other types, the artifacts that it derives from.

    Raises:
        ArtifactError: `primary` does not derive from an artifact of one of the types.
    """
    ancestors = workspace.ancestors(primary, types[:-1]) if len(types) > 1 else {}
    found: dict[str, Artifact] = {}
    for artifact_type in types[:-1]:
        if artifact_type not in ancestors:
            raise ArtifactError(
                f"{primary.reference} does not derive from any {artifact_type}",
                f"see: lwdctl lineage {primary.reference}",
            )
        found[artifact_type] = ancestors[artifact_type]
    return {**found, types[-1]: primary}


def _announcements(
    inputs: Mapping[str, Artifact], named: Mapping[str, str], candidates: Collection[str]
) -> list[str]:
    """Return which artifacts are read, and how those that were not named were chosen.

    The versions of a baseline may hold policies of several methods, so that the method is named.

    Args:
        inputs: Artifact type to artifact.
        named: The artifact types of which one was named.
        candidates: The types among whose artifacts the stage chooses: it says which baselines.
    """
    lines = []
    for artifact_type, artifact in inputs.items():
        if artifact.method and artifact_type in candidates:
            continue  # it may only lead to the data
        primary = list(inputs)[-1]
        how = [artifact.method] if artifact.method else []
        if artifact_type not in named:
            derived = " and ".join(inputs[item].reference for item in named if item in inputs)
            newest = f"the newest that derives from {derived}" if derived else "the newest"
            lineage = f"in the lineage of {inputs[primary].reference}"
            how.append(newest if artifact_type == primary else lineage)
        lines.append(f"reading {artifact.reference}" + (f" ({', '.join(how)})" if how else ""))
    return lines


def _check_lineage(named: Artifact, used: Artifact, primary: Artifact) -> None:
    if named.path.resolve() != used.path.resolve():
        raise ArtifactError(
            f"{primary.reference} derives from {used.reference}, not from {named.reference}",
            f"name a {primary.type} that derives from {named.reference}, "
            f"or leave out --{named.type}",
        )
