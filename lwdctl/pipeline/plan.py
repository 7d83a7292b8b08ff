"""A recipe's stages with their configurations and inputs, in the order they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lwdctl.core.config import from_mapping, parse_assignments
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.pipeline.recipe import Recipe, RecipeStage
from lwdctl.stages import find_stage
from lwdctl.stages.stage import Stage

SMOKE_SUFFIX = "-smoke"
"""Added to artifact names in a toy run, so that toys and results never mix."""


@dataclass(frozen=True)
class Step:
    """One stage of a plan.

    Attributes:
        id: Its name within the recipe.
        stage: What runs.
        config: Its full configuration.
        name: Name of the artifact it makes.
        parents: Kind to the id of the earlier step that makes it.
        choices: Ids of the earlier steps whose artifacts it chooses from, in plan order.
        forced: Run even when an equal artifact exists.
    """

    id: str
    stage: Stage
    config: Any
    name: str
    parents: Mapping[str, str]
    choices: tuple[str, ...] = ()
    forced: bool = False


def make_plan(
    recipe: Recipe,
    *,
    assignments: Sequence[str] = (),
    smoke: bool = False,
    start: str = "",
) -> tuple[Step, ...]:
    """Turn a recipe into steps, checking every setting before anything runs.

    Args:
        recipe: What was read from the file.
        assignments: `stage.key=value` words that change settings, of one stage or of all
            stages of a command.
        smoke: Toy size: apply the `[smoke.*]` tables.
        start: Id of the first step that runs even when up to date, or "".

    Raises:
        ConfigError: An unknown stage or setting, a wrong value, or a missing input.
    """
    ids = [stage.id for stage in recipe.stages]
    changes = _split_assignments(assignments, recipe.stages)
    if start and start not in ids:
        raise ConfigError(f"{recipe.path.name} has no stage '{start}'", did_you_mean(start, ids))
    steps: list[Step] = []
    for index, entry in enumerate(recipe.stages):
        stage = find_stage(entry.command)
        config = _configure(recipe, entry, stage, changes[entry.id], smoke)
        parents, choices = _find_parents(recipe, entry, stage, config, steps)
        steps.append(
            Step(
                id=entry.id,
                stage=stage,
                config=config,
                name=entry.name + (SMOKE_SUFFIX if smoke else ""),
                parents=parents,
                choices=choices,
                forced=bool(start) and index >= ids.index(start),
            )
        )
    return tuple(steps)


def _split_assignments(
    assignments: Sequence[str], stages: Sequence[RecipeStage]
) -> dict[str, list[str]]:
    """Sort the words by stage; a command's name means all its stages but one of that id."""
    changes: dict[str, list[str]] = {stage.id: [] for stage in stages}
    known = list(dict.fromkeys([*changes, *(stage.command for stage in stages)]))
    for word in assignments:
        said, dot, rest = word.partition(".")
        if not dot or "=" in said:
            raise ConfigError(
                f"'{word}' is not of the form stage.key=value",
                f"example: --set {stages[0].id}.seed=1",
            )
        if said not in known:
            raise ConfigError(f"the recipe has no stage '{said}'", did_you_mean(said, known))
        for stage in stages:
            if stage.id == said or (said not in changes and stage.command == said):
                changes[stage.id].append(rest)
    return changes


def _configure(
    recipe: Recipe, entry: RecipeStage, stage: Stage, words: Sequence[str], smoke: bool
) -> Any:
    where = f"{recipe.path.name} [stage.{entry.id}]"
    values = _underscored(entry.settings)
    from_mapping(stage.config, values, where)
    toy = _underscored(entry.smoke)
    from_mapping(stage.config, toy, f"{recipe.path.name} [smoke.{entry.id}]")
    if smoke:
        values.update(toy)
    values.update(parse_assignments(stage.config, words))
    return from_mapping(stage.config, values, where)


def _underscored(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in settings.items()}


def _find_parents(
    recipe: Recipe, entry: RecipeStage, stage: Stage, config: Any, earlier: Sequence[Step]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Find the earlier steps a stage reads one each of, and those it chooses from.

    Those it names, else the latest that makes the kind, and all of them to choose from.
    """
    where = f"{recipe.path.name} [stage.{entry.id}]"
    made = {step.id: step.stage.artifact_type for step in earlier}
    kinds = stage.reads(config, {made[need] for need in entry.needs})
    several = stage.candidates(config)
    parents: dict[str, str] = {}
    for need in entry.needs:
        kind = made[need]
        if kind not in (*kinds, *several) or (kind in parents and kind not in several):
            raise ConfigError(
                f"{where} needs '{need}', which makes {kind}",
                f"'{entry.command}' reads one each of: {', '.join(kinds) or 'nothing'}",
            )
        parents[kind] = need
    if kinds and kinds[-1] not in parents:
        makers = [step.id for step in earlier if step.stage.artifact_type == kinds[-1]]
        if not makers:
            raise ConfigError(
                f"{where} reads {kinds[-1]}, which no earlier stage makes",
                "put the stage that makes it before this one",
            )
        parents[kinds[-1]] = makers[-1]
    choices = tuple(
        step
        for step, kind in made.items()
        if kind in several and (step in entry.needs or kind not in {made[n] for n in entry.needs})
    )
    return {kind: step for kind, step in parents.items() if kind in kinds}, choices
