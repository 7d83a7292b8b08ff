"""Sweeps: one recipe for many settings, expanded into stages before anything runs.

Each axis sets one setting to several values; all combinations are made. A stage is made once for
every combination of the axes that it depends on, through itself or through what it reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from lwdctl.artifacts.references import sanitize_name
from lwdctl.core.config import from_mapping, parse_assignments, split_list
from lwdctl.core.errors import ConfigError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.suggest import did_you_mean
from lwdctl.stages import find_stage

if TYPE_CHECKING:
    from lwdctl.pipeline.recipe import RecipeStage, Step

SEEDS = "seeds"
SEED = "seed"
TRAINED = ("vae", "diffusion", "baseline")
"""Artifact types that a training seed decides."""
MOST_STAGES = 2000
"""Stages of one recipe, all combinations counted."""

Combination = Mapping[str, Any]
"""Label of an axis to its value."""


@dataclass(frozen=True)
class Axis:
    """One setting and its values.

    Attributes:
        name: What it is called in the recipe (`"seeds"`, `"train-vae.snippet_length"`).
        label: What names it in ids and tables (`"snippet_length"`).
        key: The setting.
        stages: Ids of the stages that it sets.
        values: Its values.
        trains: Whether these stages train models.
    """

    name: str
    label: str
    key: str
    stages: frozenset[str]
    values: tuple[Any, ...]
    trains: bool


def read_axes(
    table: Mapping[str, Any], texts: Sequence[str], stages: Sequence[RecipeStage], where: str
) -> tuple[Axis, ...]:
    """Read a `[sweep]` table and the `--sweep` texts, which replace axes of the table.

    Args:
        table: `seeds`, or `"STAGE.key"`, to a list of values; STAGE is an id, or a command, which
            stands for all its stages.
        texts: `KEY=VALUE,VALUE,...`.
        stages: The stages of the recipe.
        where: Name of the table in error messages.

    Raises:
        ConfigError: An unknown stage or setting, or something other than a list of values.
    """
    found: dict[str, tuple[str, frozenset[str], tuple[Any, ...]]] = {}
    for name, values in _flat(table).items():
        key, targets = _target(name, stages, f"{where} '{plain_text(name, 60)}'")
        found[name] = key, targets, _checked(name, key, values, targets, stages, where)
    for text in texts:
        name, equals, listed = text.partition("=")
        if not equals:
            raise ConfigError(
                f"'{plain_text(text, 60)}' is not of the form KEY=VALUE,VALUE",
                "example: --sweep seeds=0,1,2",
            )
        key, targets = _target(name, stages, f"--sweep {plain_text(name, 60)}")
        config = next(find_stage(one.command).config for one in stages if one.id in targets)
        parsed = [parse_assignments(config, [f"{key}={part}"])[key] for part in split_list(listed)]
        parsed = [one.replace(r"\,", ",") if isinstance(one, str) else one for one in parsed]
        found[name] = key, targets, _checked(name, key, parsed, targets, stages, "--sweep")
    for (one, (key, targets, _)), (other, (key2, targets2, _)) in itertools.combinations(
        found.items(), 2
    ):
        if key == key2 and targets & targets2:
            raise ConfigError(
                f"the sweep sets '{key}' of stage '{min(targets & targets2)}' twice: by '{one}' and"
                f" by '{other}'",
                f"leave one of them out, or give '{one}' other values: --sweep {one}=VALUE,VALUE",
            )
    trained = {one.id for one in stages if find_stage(one.command).artifact_type in TRAINED}
    # Another seed, as that of the validation split, is no training seed.
    keys = {
        name: key if key != SEED or targets <= trained else name
        for name, (key, targets, _) in found.items()
    }
    return tuple(
        Axis(
            name,
            keys[name] if [*keys.values()].count(keys[name]) == 1 else name,
            key,
            targets,
            values,
            targets <= trained,
        )
        for name, (key, targets, values) in found.items()
    )


def expand(
    stages: Sequence[RecipeStage], plan: Sequence[Step], axes: Sequence[Axis]
) -> tuple[RecipeStage, ...]:
    """Return the stages of all combinations, in the order of the recipe.

    Args:
        stages: The stages of the recipe.
        plan: Their steps, which say what reads what.
        axes: What is swept.

    Raises:
        ConfigError: There are more than `MOST_STAGES`.
    """
    made: dict[str, list[RecipeStage]] = {}
    depends: dict[str, list[Axis]] = {}
    for stage, step in zip(stages, plan, strict=True):
        chosen = step.stage.distinguishes(step.config)
        inherited = {
            axis.label
            for parent in step.reads_from
            for axis in depends[parent]
            if not (axis.trains and axis.key in chosen)
        }
        if SEED in chosen:
            _check_seeds(stage, step, axes)
        own = [axis for axis in axes if stage.id in axis.stages]
        depends[stage.id] = [axis for axis in axes if axis in own or axis.label in inherited]
        made[stage.id] = [
            _expanded(stage, step, combination, own, made)
            for combination in _combinations(depends[stage.id])
        ]
        if sum(map(len, made.values())) > MOST_STAGES:
            raise ConfigError(
                f"the sweep makes more than {MOST_STAGES} stages", "sweep fewer values"
            )
    return tuple(itertools.chain.from_iterable(made.values()))


def _check_seeds(stage: RecipeStage, step: Step, axes: Sequence[Axis]) -> None:
    """Check that the training seeds which an evaluation takes are among those that are swept."""
    swept = [axis.values for axis in axes if axis.trains and axis.key == SEED]
    missing = set(range(step.config.seeds)) - set(itertools.chain.from_iterable(swept))
    if swept and missing:
        raise ConfigError(
            f"stage '{stage.id}' evaluates {step.config.seeds} training seeds from 0 on, but the"
            f" sweep has no seed {min(missing)}",
            f"write seeds = {list(range(step.config.seeds))} in [sweep]",
        )


def _combinations(axes: Sequence[Axis]) -> list[Combination]:
    labels = [axis.label for axis in axes]
    values = itertools.product(*(axis.values for axis in axes))
    return [dict(zip(labels, chosen, strict=True)) for chosen in values]


def _expanded(
    stage: RecipeStage,
    step: Step,
    combination: Combination,
    own: Sequence[Axis],
    made: Mapping[str, Sequence[RecipeStage]],
) -> RecipeStage:
    suffix = "".join(f"-{_text(label, value)}" for label, value in combination.items())
    swept = {axis.key: combination[axis.label] for axis in own}
    fitting = {
        parent: [one.id for one in made[parent] if _agree(one.combination, combination)]
        for parent in step.reads_from
    }
    # An evaluation that chooses reads the last of what its primary input has become.
    needs = [one for choice in step.candidates for one in fitting[choice]]
    needs = [one for one in needs if one not in {fitting[p][-1] for p in step.parents.values()}]
    needs += [fitting[parent][-1] for parent in step.parents.values()]
    return replace(
        stage,
        id=stage.id + suffix,
        name=stage.name + suffix,
        needs=tuple(needs),
        settings={**_without(stage.settings, swept), **swept},
        smoke=_without(stage.smoke, swept),
        base=stage.id,
        combination=combination,
        swept={axis.key: axis.name for axis in own},
    )


def _without(settings: Mapping[str, Any], swept: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in swept}


def _agree(one: Combination, other: Combination) -> bool:
    return all(other[label] == value for label, value in one.items() if label in other)


def _text(label: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        value = "_".join(map(str, value))
    if isinstance(value, bool):
        value = str(value).lower()
    return sanitize_name(f"{label}{value}")


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table whose keys may be written with or without quotes (`train-vae.seed = [...]`).

    TOML reads a dot outside of quotes as a table in a table.
    """
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": values for key, values in value.items()}
        else:
            flat[name] = value
    return flat


def _target(name: str, stages: Sequence[RecipeStage], where: str) -> tuple[str, frozenset[str]]:
    """Return the setting that an axis names and the ids of the stages that have it."""
    if name == SEEDS:
        found = [one.id for one in stages if find_stage(one.command).artifact_type in TRAINED]
        if not found:
            raise ConfigError(f"{where}: no stage of the recipe trains a model")
        return SEED, frozenset(found)
    target, dot, key = name.rpartition(".")
    ids = [one.id for one in stages]
    known = list(dict.fromkeys([*ids, *(one.command for one in stages)]))
    if not dot:
        raise ConfigError(
            f"{where} is neither '{SEEDS}' nor STAGE.key", f"example: {ids[0]}.KEY = [1, 2]"
        )
    if target not in known:
        raise ConfigError(f"{where}: no stage '{target}'", did_you_mean(target, known))
    meant = [
        one for one in stages if one.id == target or (target not in ids and one.command == target)
    ]
    key = key.replace("-", "_")
    names = [item.name for item in fields(find_stage(meant[0].command).config)]
    if key not in names:
        raise ConfigError(f"{where}: unknown setting '{key}'", did_you_mean(key, names))
    return key, frozenset(one.id for one in meant)


def _checked(
    name: str,
    key: str,
    values: Any,
    targets: frozenset[str],
    stages: Sequence[RecipeStage],
    where: str,
) -> tuple[Any, ...]:
    """Check the values of an axis with the configuration that they go into."""
    where = f"{where} '{plain_text(name, 60)}'"
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where} takes a list of values", "example: seeds = [0, 1, 2]")
    config = next(find_stage(one.command).config for one in stages if one.id in targets)
    checked = [getattr(from_mapping(config, {key: one}, where), key) for one in values]
    if len({_text(key, one) for one in checked}) < len(checked):
        raise ConfigError(f"{where} has a value twice")
    return tuple(values)
