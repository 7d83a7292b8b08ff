"""What a report says of recipes and commands: known above the room that draws it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.manifest import plain
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.output import format_value
from lwdctl.core.config import from_mapping, to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.pipeline.expected import Comparison
from lwdctl.pipeline.plan import make_plan
from lwdctl.pipeline.recipe import read_recipe
from lwdctl.pipeline.runner import compare_all, preview
from lwdctl.stages import STAGES
from lwdctl.stages.stage import Stage

if TYPE_CHECKING:
    from lwdctl.analysis.report.records import Expected, Making, RecipeFacts


@dataclass(frozen=True)
class RecipeWords:
    """How recipes are meant: at which size, and with which settings changed."""

    smoke: bool = False
    assignments: tuple[str, ...] = ()

    def command(self, path: Path) -> str:
        """Return the line that runs a recipe so."""
        words = ["lwdctl", "run", str(path), *(["--smoke"] if self.smoke else [])]
        for item in self.assignments:
            words += ["--set", item]
        return shlex.join(words)


def read_recipe_facts(
    path: Path, words: RecipeWords, workspace: Workspace
) -> tuple[RecipeFacts, list[Artifact]]:
    """Read a recipe and find the artifacts of its stages that are up to date.

    Raises:
        ConfigError: A bad recipe, or none of its stages is up to date.
    """
    from lwdctl.analysis.report.records import RecipeFacts

    recipe = read_recipe(path)
    plan = make_plan(recipe, assignments=words.assignments, smoke=words.smoke)
    outcomes = preview(plan, workspace)
    found = [outcome.artifact for outcome in outcomes if outcome.artifact]
    command = words.command(path)
    if not found:
        raise ConfigError(
            f"no stage of {path} has an artifact that is up to date in {workspace.root}",
            f"run it first: {command}; or name evaluations: lwdctl report NAME",
        )
    compared = () if words.smoke else compare_all(recipe.expected, outcomes)
    header = recipe.header
    facts = RecipeFacts(
        title=header.title or recipe.name,
        path=str(path),
        paper=header.paper,
        time=header.time,
        device=header.device,
        command=command,
        smoke=words.smoke,
        expected=tuple(map(_expected, compared)),
        missing=tuple(outcome.step.id for outcome in outcomes if not outcome.artifact),
    )
    for artifact in found:
        artifact.check()
    return facts, found


def _expected(item: Comparison) -> Expected:
    from lwdctl.analysis.report.records import Expected

    expectation = item.expectation
    where = [f"{key} {format_value(value)}" for key, value in expectation.where.items()]
    measured = format_value(item.measured)
    if item.interval:
        measured += f" [{item.interval[0]:.3f}, {item.interval[1]:.3f}]"
    return Expected(
        stage=expectation.stage,
        metric=expectation.metric,
        where=", ".join([*where, f"stage {expectation.stage}"]),
        measured=measured,
        expected=expectation.text,
        met=None if item.measured is None else item.met,
        source=expectation.source,
    )


def describe(artifact: Artifact) -> Making:
    """Tell how an artifact was made, as far as this version knows its stage."""
    from lwdctl.analysis.report.records import Making

    config = artifact.manifest.config
    stage = _stage_of(artifact)
    if stage is None:
        return Making("", "", {})
    defaults = plain(to_mapping(stage.config()))
    values = {key: _as_now(value, defaults.get(key)) for key, value in config.items()}
    changed = {
        key: value for key, value in values.items() if key not in defaults or value != defaults[key]
    }
    words = [*stage.command.split(), *_settings(stage, changed), *_inputs(stage, artifact)]
    line = shlex.join(["lwdctl", *words, "--name", artifact.name])
    return Making(stage.command, line, changed)


def _stage_of(artifact: Artifact) -> Stage | None:
    """Return the stage of this kind that shares the most settings with the configuration."""
    keys = set(artifact.manifest.config)
    candidates = list(STAGES.values())
    candidates = [stage for stage in candidates if stage.kind == artifact.kind]
    return max(candidates, key=lambda stage: _likeness(stage, keys), default=None)


def _likeness(stage: Stage, keys: set[str]) -> int:
    known = {field.name for field in dataclasses.fields(stage.config)}
    return len(known & keys) - len(known ^ keys)


def _as_now(value: Any, default: Any) -> Any:
    """Write a single value as a list where the setting has become one since."""
    if isinstance(default, list) and not isinstance(value, list):
        return [] if value in (None, "") else [value]
    return value


def _settings(stage: Stage, changed: Mapping[str, Any]) -> list[str]:
    fields = {field.name: field for field in dataclasses.fields(stage.config)}
    arguments: list[str] = []
    options: list[str] = []
    for key, value in changed.items():
        field = fields.get(key)
        if field is None:  # of another version; nothing to write for it
            continue
        name = f"--{key.replace('_', '-')}"
        if field.metadata["argument"]:
            arguments += [str(item) for item in (value if isinstance(value, list) else [value])]
        elif isinstance(value, bool):
            options.append(name if value else f"--no-{name[2:]}")
        else:
            items = value if isinstance(value, list) else ["none" if value is None else value]
            options += [name, ",".join(map(str, items))]
    return [*arguments, *options]


def _inputs(stage: Stage, artifact: Artifact) -> list[str]:
    """Name the input that the stage looks up; the others follow from it."""
    known = {field.name for field in dataclasses.fields(stage.config)}
    values = {key: item for key, item in artifact.manifest.config.items() if key in known}
    named = {item.kind: item.reference for item in reversed(artifact.manifest.inputs)}
    try:
        kinds: Sequence[str] = stage.reads(from_mapping(stage.config, values), named)
    except ConfigError:  # a setting whose meaning has changed since
        kinds = stage.inputs
    leading = [kind for kind in kinds if kind in named][-1:]
    return [word for kind in leading for word in (f"--{kind}", named[kind])]
