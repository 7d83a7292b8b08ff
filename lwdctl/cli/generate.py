"""Commands of the stages: options made from the configuration dataclass, and running them."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.bars import make_progress
from lwdctl.cli.failures import CommandLineError
from lwdctl.cli.output import print_artifact, reserved_stdout
from lwdctl.core.config import FieldType, field_type, from_mapping, parse_assignments, registry_of
from lwdctl.core.errors import ConfigError
from lwdctl.core.launch import leads
from lwdctl.core.progress import Progress
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.stages.stage import Stage
from lwdctl.tracking.trackers import TRACKERS
from lwdctl.tracking.tracking import Tracking

_INPUT_PREFIX = "input_"
"""Prefix of the parameters that name input artifacts."""


def bare_option(text: str, *names: str, metavar: str | None = None) -> Any:
    """Return an option whose help text names the default itself, if there is one."""
    return typer.Option(*names, help=text, metavar=metavar, show_default=False)


def bare_argument(text: str, metavar: str) -> Any:
    """Return an argument that may be given any number of times."""
    return typer.Argument(help=text, metavar=metavar, show_default=False)


_WORKSPACE_HELP = "Workspace directory  [default: $LWDCTL_WORKSPACE, else ./lwd-runs]"
WORKSPACE = Annotated[str, bare_option(_WORKSPACE_HELP, "--workspace", metavar="DIR")]
JSON = Annotated[bool, bare_option("Print one JSON object instead of text.", "--json")]
QUIET = Annotated[
    bool, bare_option("Write errors only to stderr: no progress, no log.", "--quiet", "-q")
]
_TRACK_HELP = (
    "Experiment trackers that follow this run, separated by commas. None of their failures ends the"
    " run; `lwdctl track` sends a run that was not followed."
)
TRACK = Annotated[
    list[str] | None,
    bare_option(_TRACK_HELP, "--track", metavar=f"[{'|'.join(TRACKERS)}],..."),
]
_TRACK_PROJECT_HELP = "Trackers' project to file the run under  [default: the workspace's name]"
TRACK_PROJECT = Annotated[str, bare_option(_TRACK_PROJECT_HELP, "--track-project", metavar="NAME")]
DEBUG = Annotated[bool, bare_option("Print the traceback of an unexpected error.", "--debug")]


@dataclasses.dataclass(frozen=True)
class Shared:
    """The options that every command has.

    Attributes:
        workspace: `--workspace`.
        as_json: `--json`.
        progress: Where to report; silent under `--quiet`.
    """

    workspace: Workspace
    as_json: bool
    progress: Progress

    @classmethod
    def take(cls, values: dict[str, Any]) -> Shared:
        """Remove the shared options from the values of a command's parameters."""
        del values["debug_mode"]  # `main` looks for it
        workspace = Workspace.locate(values.pop("workspace_path", None) or None)
        as_json, quiet = values.pop("as_json"), values.pop("be_quiet")
        return cls(workspace, as_json, make_progress(quiet=quiet))


@dataclasses.dataclass(frozen=True)
class Options:
    """Stands in the annotation of a command's parameter whose value is a configuration.

    The command gets an option for each of these fields; the others keep their defaults.

    Attributes:
        command: The command, for hints (`"inspect"`).
        names: Fields of the configuration, arguments first.
        texts: Help texts that differ from those of the fields, by field name.
    """

    command: str
    names: tuple[str, ...]
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def command_function(function: Callable[..., None]) -> Any:
    """Return the function that Typer makes a command from.

    Args:
        function: One whose first parameter is `shared: Shared` gets the options for it, and
            those of a parameter that is annotated with `Options`.
    """
    own = list(inspect.signature(function, eval_str=True).parameters.values())
    if not own or own[0].annotation is not Shared:
        return function
    parameters: list[inspect.Parameter] = []
    configurations: dict[str, tuple[type, Options]] = {}
    for item in own[1:]:
        config, *marks = typing.get_args(item.annotation) or (item.annotation,)
        if marks and isinstance(marks[0], Options):
            configurations[item.name] = (config, marks[0])
            fields = {field.name: field for field in dataclasses.fields(config)}
            texts = marks[0].texts
            parameters += [
                _setting(config, fields[name], texts.get(name, "")) for name in marks[0].names
            ]
        else:
            parameters.append(item.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**values: Any) -> None:
        shared = Shared.take(values)
        for name, (config, options) in configurations.items():
            given = {field: values.pop(field) for field in options.names}
            values[name] = configuration(config, given, options.command)
        function(shared, **values)

    return _declare(run, [*parameters, *_shared_parameters()], function.__name__, function.__doc__)


def stage_function(stage: Stage) -> Any:
    """Return a function whose signature holds every option of `stage` and that runs it."""

    def run(**values: Any) -> None:
        _run(stage, Shared.take(values), values)

    reads = f"Reads: {', '.join(stage.inputs)}. " if stage.inputs else ""
    summary = f"{stage.summary}\n\n{reads}Makes: {stage.artifact_type}."
    return _declare(run, stage_parameters(stage), re.sub(r"\W", "_", stage.command), summary)


def _declare(
    function: Any, parameters: list[inspect.Parameter], name: str, summary: str | None
) -> Any:
    """Give a function the signature, name and docstring that Typer reads."""
    # Annotations are objects: Typer would evaluate texts in a module that does not know them.
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {item.name: item.annotation for item in parameters}
    function.__name__, function.__doc__ = name, summary
    return function


def _run(stage: Stage, shared: Shared, values: Mapping[str, Any]) -> None:
    config = configuration(stage.config, values, stage.command)
    tracking = trackers(values.get("trackers"), values.get("track_project", ""), stage.command)
    named = {kind: values[_INPUT_PREFIX + kind] for kind in stage.inputs}
    with reserved_stdout():
        artifact = run_stage(
            stage.command,
            config,
            inputs={kind: reference for kind, reference in named.items() if reference},
            run=values["run_name"],
            name=values["artifact_name"],
            resume=values.get("do_resume", False),
            trust=values.get("trusted") or (),
            track=tracking,
            workspace=shared.workspace,
            progress=shared.progress,
        )
    if leads():
        print_artifact(artifact, as_json=shared.as_json)


def stage_parameters(stage: Stage) -> list[inspect.Parameter]:
    """Return the parameters of a stage's command: settings, inputs, and those of every command."""
    # A stage's own settings come before those that it shares with others.
    own = inspect.get_annotations(stage.config)
    fields = sorted(dataclasses.fields(stage.config), key=lambda field: field.name not in own)
    settings = [_setting(stage.config, field) for field in fields]
    settings.sort(key=lambda item: item.default is not inspect.Parameter.empty)
    return [
        *settings,
        *(_keyword(_INPUT_PREFIX + kind, _input(kind), "") for kind in stage.inputs),
        *(
            [_keyword("do_resume", Annotated[bool, bare_option(_RESUME, "--resume")], False)]
            if stage.resumable
            else []
        ),
        *(
            [_keyword("trusted", Annotated[list[str] | None, _TRUST], None)]
            if stage.simulates
            else []
        ),
        *(_tracking_parameters() if stage.tracked else []),
        _keyword("run_name", Annotated[str, bare_option(_RUN, "--run", metavar="NAME")], ""),
        _keyword("artifact_name", Annotated[str, bare_option(_NAME, "--name", metavar="NAME")], ""),
        *_shared_parameters(),
    ]


def _tracking_parameters() -> list[inspect.Parameter]:
    return [_keyword("trackers", TRACK, None), _keyword("track_project", TRACK_PROJECT, "")]


def trackers(names: Sequence[str] | None, project: str, command: str) -> Tracking:
    """Return the trackers that `--track` names.

    Raises:
        CommandLineError: No tracker has one of the names.
        MissingExtraError: The package of one is not installed.
    """
    try:
        return Tracking.of(names or (), project)
    except ConfigError as error:
        hint = error.hint or f"see: lwdctl {command} --help"
        raise CommandLineError(error.message, hint) from error


def _shared_parameters() -> list[inspect.Parameter]:
    flags = {"as_json": JSON, "be_quiet": QUIET, "debug_mode": DEBUG}
    return [
        _keyword("workspace_path", WORKSPACE, ""),
        *(_keyword(name, annotation, False) for name, annotation in flags.items()),
    ]


def configuration(config: type, values: Mapping[str, Any], command: str) -> Any:
    """Build a configuration from the options of the command line.

    Args:
        config: Its class.
        values: Option values by field name; fields without one keep their defaults.
        command: The command, for the hint.

    Raises:
        CommandLineError: A value that the configuration does not accept.
    """
    given: dict[str, Any] = {}
    values = _with_shifted_arguments(config, values)
    try:
        for field in dataclasses.fields(config):
            value = values.get(field.name)
            if value is not None:
                given[field.name] = _parse(config, field, value)
        return from_mapping(config, given)
    except ConfigError as error:
        hint = error.hint or f"see: lwdctl {command} --help"
        raise CommandLineError(error.message, hint) from error


def _with_shifted_arguments(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Move an argument that may be left out, but names no row of its table, to the ones after it.

    `lwdctl ingest PATH` leaves out the data format: the path stands where its name would.
    """
    shifted = dict(values)
    for field, following in itertools.pairwise(dataclasses.fields(config)):
        value, registry = values.get(field.name), registry_of(field)
        if not isinstance(value, str) or registry is None or value in registry:
            continue
        if field_type(config, field.name).optional and following.metadata["argument"]:
            shifted[field.name] = None
            shifted[following.name] = [value, *(values[following.name] or ())]
    return shifted


def _parse(config: type, field: dataclasses.Field[Any], value: Any) -> Any:
    kind = field_type(config, field.name)
    if kind.many and field.metadata["argument"]:
        return tuple(value)
    if isinstance(value, bool):
        return value
    text = ",".join(value) if kind.many else value
    return parse_assignments(config, [f"{field.name}={text}"])[field.name]


def _setting(config: type, field: dataclasses.Field[Any], text: str = "") -> inspect.Parameter:
    """Declare one configuration field; values stay text, `core.config` parses them.

    `text` replaces the field's own help.
    """
    kind = field_type(config, field.name)
    annotation: Any = str | None if kind.optional else str
    default: Any = field.default
    if kind.scalar is bool:
        annotation = bool
    elif kind.many:
        annotation, default = list[str] | None, [str(item) for item in default] or None
    elif default is not None:
        default = str(default)
    show = default not in ("", None)
    if field.metadata["argument"]:
        info = typer.Argument(
            help=text or _help(field), metavar=_metavar(field, kind), show_default=show
        )
        if default == "":
            default = inspect.Parameter.empty
    else:
        name = f"--{field.name.replace('_', '-')}"
        if kind.scalar is bool:
            name = f"{name}/--no-{name[2:]}"
        info = typer.Option(
            name, help=text or _help(field), metavar=_metavar(field, kind), show_default=show
        )
    return _keyword(field.name, Annotated[annotation, info], default)


def _metavar(field: dataclasses.Field[Any], kind: FieldType) -> str | None:
    names = list(registry_of(field) or ()) if kind.scalar is str else []
    if names or kind.scalar is None:
        return "[" + "|".join([*names, *kind.literals]) + "]" + (",..." if kind.many else "")
    if field.metadata["argument"]:
        return field.name.upper() + ("..." if kind.many else "")
    if kind.scalar is bool:
        return None
    name = {int: "INTEGER", float: "NUMBER", str: "TEXT"}[kind.scalar or str]
    none = ["none"] if kind.optional and field.default is not None else []
    return "|".join([name, *kind.literals, *none]) + (",..." if kind.many else "")


def _help(field: dataclasses.Field[Any]) -> str:
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    bounds = [f">= {low:g}"] if low is not None else []
    bounds += [f"<= {high:g}"] if high is not None else []
    text: str = field.metadata["help"].rstrip(".") + "."
    return f"{text}  [{' and '.join(bounds)}]" if bounds else text


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _input(kind: str) -> Any:
    text = f"The {kind} to read: NAME, NAME:v2 or a path  [default: that of the newest lineage]"
    return Annotated[str, bare_option(text, f"--{kind}", metavar="REF")]


_RESUME = "Resume the newest unfinished run with the same settings."
_TRUST = bare_option(
    "Environment outside of lwdctl that the data name and that may be imported; may be repeated.",
    "--trust",
    metavar="MODULE:CLASS",
)
_RUN = "Name of one artifact of the lineage to read from, where there are several."
_NAME = "Name of the artifact to make  [default: that of its input, the files or the task]"
