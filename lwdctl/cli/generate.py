"""Commands of the stages: options made from the configuration dataclass, and running them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.bars import make_progress
from lwdctl.cli.failures import CommandLineError
from lwdctl.cli.output import print_artifact, reserved_stdout
from lwdctl.core.config import (
    FieldType,
    field_type,
    from_mapping,
    parse_assignments,
    registry_of,
)
from lwdctl.core.errors import ConfigError
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.stages.stage import Stage

_INPUT_PREFIX = "input_"
"""Prefix of the parameters that name input artifacts."""


def flag(text: str, *names: str) -> Any:
    """Return the annotation of a flag."""
    return Annotated[bool, typer.Option(*names, help=text, show_default=False)]


def text_option(text: str, *names: str, metavar: str) -> Any:
    """Return the annotation of an option that takes a text."""
    return Annotated[str, typer.Option(*names, help=text, metavar=metavar, show_default=False)]


WORKSPACE = text_option(
    "Workspace directory  [default: $LWDCTL_WORKSPACE, else ./lwd-runs]",
    "--workspace",
    metavar="DIR",
)
JSON = flag("Print one JSON object instead of text.", "--json")
QUIET = flag("Write errors only to stderr: no progress, no log.", "--quiet", "-q")
DEBUG = flag("Print the traceback of an unexpected error.", "--debug")


def stage_function(stage: Stage) -> Any:
    """Return a function whose signature holds every option of `stage` and that runs it.

    The annotations are objects, not texts: Typer would evaluate texts in a module that does not
    know them.
    """

    def function(**values: Any) -> None:
        _run(stage, values)

    parameters = stage_parameters(stage)
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {item.name: item.annotation for item in parameters}
    function.__name__ = re.sub(r"\W", "_", stage.command)
    reads = f"Reads: {', '.join(stage.inputs)}. " if stage.inputs else ""
    function.__doc__ = f"{stage.summary}\n\n{reads}Makes: {stage.artifact_type}."
    return function


def _run(stage: Stage, values: Mapping[str, Any]) -> None:
    """Run `stage` with the options of the command line and print the artifact it made."""
    config = configuration(stage, values)
    named = {kind: values[_INPUT_PREFIX + kind] for kind in stage.inputs}
    with reserved_stdout():
        artifact = run_stage(
            stage.command,
            Workspace.locate(values["workspace_path"] or None),
            config,
            inputs={kind: reference for kind, reference in named.items() if reference},
            run=values["run_name"],
            name=values["artifact_name"],
            resume=values.get("do_resume", False),
            progress=make_progress(quiet=values["be_quiet"]),
        )
    print_artifact(artifact, as_json=values["as_json"])


def stage_parameters(stage: Stage) -> list[inspect.Parameter]:
    """Return the parameters of a stage's command: settings, inputs, and those of every command."""
    # A stage's own settings come before those that it shares with others.
    own = inspect.get_annotations(stage.config)
    fields = sorted(dataclasses.fields(stage.config), key=lambda field: field.name not in own)
    settings = [_setting(stage.config, field) for field in fields]
    settings.sort(key=lambda item: item.default is not inspect.Parameter.empty)
    inputs = [_keyword(_INPUT_PREFIX + kind, _input(kind), "") for kind in stage.inputs]
    common = [
        _keyword("run_name", text_option(_RUN_HELP, "--run", metavar="NAME"), ""),
        _keyword("artifact_name", text_option(_NAME_HELP, "--name", metavar="NAME"), ""),
        _keyword("workspace_path", WORKSPACE, ""),
        _keyword("as_json", JSON, default=False),
        _keyword("be_quiet", QUIET, default=False),
        _keyword("debug_mode", DEBUG, default=False),
    ]
    if stage.resumable:
        help_text = "Resume the newest unfinished run with the same settings."
        common.insert(0, _keyword("do_resume", flag(help_text, "--resume"), default=False))
    return [*settings, *inputs, *common]


def configuration(stage: Stage, values: Mapping[str, Any]) -> Any:
    """Build a stage's configuration from the options of the command line.

    Raises:
        CommandLineError: A value that the configuration does not accept.
    """
    given: dict[str, Any] = {}
    try:
        for field in dataclasses.fields(stage.config):
            value = values[field.name]
            if value is not None:
                given[field.name] = _parse(stage.config, field, value)
        return from_mapping(stage.config, given)
    except ConfigError as error:
        hint = error.hint or f"see: lwdctl {stage.command} --help"
        raise CommandLineError(error.message, hint) from error


def _parse(config: type, field: dataclasses.Field[Any], value: Any) -> Any:
    kind = field_type(config, field.name)
    if kind.many and field.metadata["argument"]:
        return tuple(value)
    if isinstance(value, bool):
        return value
    text = ",".join(value) if kind.many else value
    return parse_assignments(config, [f"{field.name}={text}"])[field.name]


def _setting(config: type, field: dataclasses.Field[Any]) -> inspect.Parameter:
    """Declare one configuration field; values stay text, `core.config` parses them."""
    kind = field_type(config, field.name)
    default = _default(field, kind)
    show = default not in ("", None)
    if field.metadata["argument"]:
        info = typer.Argument(help=_help(field), metavar=_metavar(field, kind), show_default=show)
        if default == "":
            default = inspect.Parameter.empty
    else:
        name = f"--{field.name.replace('_', '-')}"
        if kind.scalar is bool:
            name = f"{name}/--no-{name[2:]}"
        info = typer.Option(
            name, help=_help(field), metavar=_metavar(field, kind), show_default=show
        )
    return _keyword(field.name, Annotated[_annotation(kind), info], default)


def _default(field: dataclasses.Field[Any], kind: FieldType) -> Any:
    """Return the default as it would be typed; None where there is none."""
    default: Any = field.default
    if default is None or kind.scalar is bool:
        return default
    if kind.many:
        return [str(item) for item in default] or None
    return str(default)


def _annotation(kind: FieldType) -> Any:
    if kind.scalar is bool:
        return bool
    if kind.many:
        return list[str] | None
    return str | None if kind.optional else str


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
    text = f"The {kind} to read: NAME, NAME:v2 or a path  [default: the newest]"
    return text_option(text, f"--{kind}", metavar="REF")


def names_used(parameters: Sequence[inspect.Parameter]) -> list[str]:
    """Return every option name (`--x`) among the parameters, for clash checks."""
    return [
        name
        for item in parameters
        for info in item.annotation.__metadata__
        for declaration in [getattr(info, "default", ""), *(info.param_decls or ())]
        if isinstance(declaration, str)
        for name in declaration.split("/")
        if name.startswith("-")
    ]


_RUN_HELP = "Name of one artifact of the lineage to read from, where there are several."
_NAME_HELP = "Name of the artifact to make  [default: that of its input]"
