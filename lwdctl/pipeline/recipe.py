"""Recipes: one experiment as a TOML file, read strictly, and the plan of steps that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lwdctl.artifacts.files import user_path
from lwdctl.artifacts.references import check_name, sanitize_name
from lwdctl.core.config import from_mapping, option, parse_assignments
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.plain_text import encodable, listed, plain_text
from lwdctl.core.suggest import did_you_mean
from lwdctl.core.untrusted import read_toml
from lwdctl.pipeline.expected import Expectation, read_expectation
from lwdctl.pipeline.sweep import Combination, expand, read_axes
from lwdctl.stages import find_stage
from lwdctl.stages.stage import Stage

SECTIONS = ("recipe", "stage", "sweep", "expected", "smoke")
SMOKE_SUFFIX = "-smoke"
"""Added to artifact names in a toy run, so that toys and results never mix."""

_STAGE_KEYS = ("uses", "like", "name", "needs")


@dataclass(frozen=True)
class Header:
    """The `[recipe]` table: what the experiment is and what it costs."""

    title: str = option("", "What the experiment shows.")
    name: str = option("", "Name of the artifacts; default: the file's name.")
    paper: str = option("", "Table or figure of the paper that it stands for.")
    command: str = option("", "The line that runs it.")
    time: str = option("", "Measured wall time.")
    device: str = option("", "Machine the time was measured on.")


@dataclass(frozen=True)
class RecipeStage:
    """One `[stage.ID]` table.

    Attributes:
        id: Its name within the recipe.
        command: Stage command it runs (`"train-vae"`).
        name: Name of the artifact it makes.
        needs: Ids of the stages whose artifacts it reads; empty for the latest ones.
        settings: Configuration keys that differ from the stage's defaults, including those of
            the stage it is `like`; with underscores, as are those of `smoke`.
        smoke: Keys that differ in a toy run: those of `[smoke.COMMAND]`, unless a stage has that
            id, then those of `[smoke.ID]`.
        base: Id of the table that it was expanded from by a sweep, or "".
        combination: Label to value of the axes of the sweep that it depends on.
        swept: Those of its own settings that are swept, to the name of the axis.
    """

    id: str
    command: str
    name: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    smoke: Mapping[str, Any]
    base: str = ""
    combination: Combination = field(default_factory=dict)
    swept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """One recipe file; what it sweeps is expanded.

    Attributes:
        path: The file.
        header: Its `[recipe]` table.
        name: Name of its artifacts.
        stages: Its stages, those of all combinations of a sweep.
        expected: Its expected numbers, for every stage that they stand for.
        sweep: `KEY=VALUE,...` texts that were given beside the file.
    """

    path: Path
    header: Header
    name: str
    stages: tuple[RecipeStage, ...]
    expected: tuple[Expectation, ...]
    sweep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One stage of a plan.

    Attributes:
        id: Its name within the recipe.
        stage: What runs.
        config: Its full configuration.
        name: Name of the artifact it makes.
        parents: Artifact type to the id of the earlier step that makes it.
        candidates: Ids of the earlier steps among whose artifacts it chooses, in plan order.
        forced: Run even when an equal artifact exists.
        base: Id of the table that it was expanded from by a sweep, or "".
        combination: Label to value of the axes of the sweep that it depends on.
    """

    id: str
    stage: Stage
    config: Any
    name: str
    parents: Mapping[str, str]
    candidates: tuple[str, ...] = ()
    forced: bool = False
    base: str = ""
    combination: Combination = field(default_factory=dict)

    @property
    def reads_from(self) -> tuple[str, ...]:
        """Ids of the earlier steps whose artifacts it reads or chooses among."""
        return tuple(dict.fromkeys((*self.parents.values(), *self.candidates)))

    @property
    def parts(self) -> int:
        """In how many parts its work can be done at the same time: conditions of an evaluation."""
        if not self.stage.parts:
            return 1
        from lwdctl.stages.eval_models import count_conditions

        return count_conditions(self.config)


def read_recipe(path: Path, sweep: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and expand what it sweeps.

    Stage configurations are checked by `make_plan`.

    Args:
        path: The file.
        sweep: `KEY=VALUE,VALUE,...` texts beside its `[sweep]` table: `seeds=0,1,2`, or a setting
            of a stage or command (`train-vae.snippet_length=16,64`).

    Raises:
        ConfigError: The file is missing, not TOML, or has an unknown table or key.
    """
    path = user_path(path)
    tables = _load(path)
    _check_sections(path, tables)
    header = from_mapping(Header, tables.get("recipe", {}), f"{path.name} [recipe]")
    name = _checked_name(
        header.name or sanitize_name(encodable(path.stem)), f"{path.name} [recipe]"
    )
    stages = _read_stages(path, tables, name)
    where = f"{path.name} [sweep]"
    axes = read_axes(_table(tables.get("sweep", {}), where), sweep, stages, where)
    if axes:
        plain = Recipe(path, header, name, stages, ())
        stages = expand(stages, make_plan(plain), axes)
    known = [name for stage in stages for name in (stage.id, stage.base) if name]
    where = f"{path.name} [[expected]]"
    expected = [
        read_expectation(table, list(dict.fromkeys(known)), where)
        for table in tables.get("expected", [])
    ]
    each = [
        one for item in expected for one in _expected_of(item, stages, where, swept=bool(sweep))
    ]
    return Recipe(path, header, name, stages, tuple(each), tuple(sweep))


def make_plan(
    recipe: Recipe,
    *,
    assignments: Sequence[str] = (),
    smoke: bool = False,
    start: str = "",
    until: str = "",
) -> tuple[Step, ...]:
    """Turn a recipe into steps, checking every setting before anything runs.

    Args:
        recipe: The recipe.
        assignments: `stage.key=value` texts that change settings, of one stage or of all
            stages of a command.
        smoke: Toy size: apply the `[smoke.*]` tables.
        start: Id of the first step that runs even when up to date, or "".
        until: Id of the last step of the plan, or "".

    Raises:
        ConfigError: An unknown stage or setting, a wrong value, or a missing input.
    """
    changes = _split_assignments(assignments, recipe.stages)
    begin = _places(recipe, start)[0] if start else len(recipe.stages)
    end = _places(recipe, until)[-1] if until else len(recipe.stages)
    if start and begin > end:
        raise ConfigError(f"stage '{start}' comes after '{until}': nothing would run again")
    steps: list[Step] = []
    for index, entry in enumerate(recipe.stages):
        stage = find_stage(entry.command)
        config = _configure(recipe, entry, stage, changes[entry.id], smoke)
        parents, candidates = _find_parents(recipe, entry, stage, config, steps)
        steps.append(
            Step(
                id=entry.id,
                stage=stage,
                config=config,
                name=entry.name + (SMOKE_SUFFIX if smoke else ""),
                parents=parents,
                candidates=candidates,
                forced=index >= begin,
                base=entry.base,
                combination=entry.combination,
            )
        )
    return tuple(steps[: end + 1])


def ancestors(step: Step, steps: Mapping[str, Step]) -> set[str]:
    """Return the ids of all steps that a step derives from."""
    found: set[str] = set()
    for parent in step.reads_from:
        found |= {parent} | ancestors(steps[parent], steps)
    return found


def _places(recipe: Recipe, name: str) -> list[int]:
    """Return the places of the stage with an id, or of all that a table was expanded into."""
    places = [n for n, stage in enumerate(recipe.stages) if name in (stage.id, stage.base)]
    if not places:
        ids = [stage.id for stage in recipe.stages]
        raise ConfigError(f"{recipe.path.name} has no stage '{name}'", did_you_mean(name, ids))
    return places


def _expected_of(
    item: Expectation, stages: Sequence[RecipeStage], where: str, *, swept: bool
) -> list[Expectation]:
    """Return what is expected of every stage that a table was expanded into.

    Values that the command line sweeps instead of those of the file have no expected number.
    """
    meant = [one for one in stages if item.stage in (one.id, one.base)]
    found = [
        one.id for one in meant if all(one.combination.get(k) == v for k, v in item.sweep.items())
    ]
    if not found and not swept:
        raise ConfigError(
            f"{where}: no stage '{item.stage}' with {dict(item.sweep)}",
            f"it is made with: {dict(meant[0].combination)}",
        )
    return [replace(item, stage=identity) for identity in found]


def _load(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path, ConfigError)
    except ConfigError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        nearby = [str(item) for item in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        hint = did_you_mean(str(path), nearby) or "give the path of a recipe, a .toml file"
        raise ConfigError(f"no recipe at {path}", hint) from error


def _check_sections(path: Path, tables: Mapping[str, Any]) -> None:
    for key in tables:
        if key not in SECTIONS:
            raise ConfigError(f"{path.name}: unknown table [{key}]", did_you_mean(key, SECTIONS))
    for key in ("recipe", "stage", "smoke"):
        _table(tables.get(key, {}), f"{path.name} [{key}]")
    for key in ("stage", "smoke"):
        for identity, table in tables.get(key, {}).items():
            _table(table, f"{path.name} [{key}.{plain_text(identity, 60)}]")
    if not isinstance(tables.get("expected", []), list):
        raise ConfigError(f"{path.name}: 'expected' is no list of tables", "write [[expected]]")
    if not tables.get("stage"):
        raise ConfigError(f"{path.name} has no [stage.*] table", "a recipe runs at least one stage")


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where} is not a table", f"write {where.split(' ', 1)[1]} above its keys"
        )
    return value


def _read_stages(path: Path, tables: Mapping[str, Any], name: str) -> tuple[RecipeStage, ...]:
    toys = {
        key: _underscored(table, f"{path.name} [smoke.{plain_text(key, 60)}]")
        for key, table in tables.get("smoke", {}).items()
    }
    stages: dict[str, RecipeStage] = {}
    for identity, table in tables["stage"].items():
        where = f"{path.name} [stage.{identity}]"
        stage = _read_stage(identity, table, stages, name, where)
        shared = {} if stage.command in tables["stage"] else toys.get(stage.command, {})
        toy = {**shared, **stage.smoke, **toys.get(identity, {})}
        _check_needs(stage, list(stages), where)
        stages[identity] = replace(stage, smoke=toy)
    known = list(dict.fromkeys([*stages, *(stage.command for stage in stages.values())]))
    for key in toys:
        if key not in known:
            raise ConfigError(
                f"{path.name}: [smoke.{key}] belongs to no stage", did_you_mean(key, known)
            )
    return tuple(stages.values())


def _read_stage(
    identity: str,
    table: Mapping[str, Any],
    earlier: Mapping[str, RecipeStage],
    name: str,
    where: str,
) -> RecipeStage:
    own = {key: table[key] for key in _STAGE_KEYS if key in table}
    for key in ("uses", "like", "name"):
        if not isinstance(own.get(key, ""), str):
            raise ConfigError(
                f"{where}: '{key}' takes a text, not {plain_text(repr(own[key]), 60)}"
            )
    like, needs = own.get("like", ""), own.get("needs", [])
    needs = [needs] if isinstance(needs, str) else needs
    if not isinstance(needs, list) or not all(isinstance(need, str) for need in needs):
        raise ConfigError(
            f"{where}: 'needs' takes ids of stages, not {plain_text(repr(needs), 60)}"
        )
    if like and like not in earlier:
        hint = did_you_mean(like, list(earlier)) or "the first stage cannot be like another"
        raise ConfigError(f"{where} is like '{like}', but no earlier stage has that id", hint)
    if like and "uses" in own:
        raise ConfigError(f"{where}: give either 'uses' or 'like', not both")
    rest = {key: value for key, value in table.items() if key not in _STAGE_KEYS}
    settings = _underscored(rest, where)
    return RecipeStage(
        id=identity,
        command=earlier[like].command if like else own.get("uses", identity.replace("_", "-")),
        name=_checked_name(own.get("name", name), where),
        needs=tuple(needs),
        settings={**earlier[like].settings, **settings} if like else settings,
        smoke=earlier[like].smoke if like else {},
    )


def _checked_name(name: str, where: str) -> str:
    try:
        check_name(name)
    except ArtifactError as error:
        raise ConfigError(f"{where}: name: {error.message}", error.hint) from error
    return name


def _check_needs(stage: RecipeStage, earlier: list[str], where: str) -> None:
    for need in stage.needs:
        if need not in earlier:
            hint = did_you_mean(need, earlier) or "the first stage cannot need another"
            raise ConfigError(f"{where} needs '{need}', but no earlier stage has that id", hint)


def _split_assignments(
    assignments: Sequence[str], stages: Sequence[RecipeStage]
) -> dict[str, list[str]]:
    """Sort the assignments by stage; a command stands for all its stages, unless it is an id."""
    changes: dict[str, list[str]] = {stage.id: [] for stage in stages}
    bases = {stage.base for stage in stages if stage.base}
    commands = (stage.command for stage in stages)
    known = list(
        dict.fromkeys([*changes, *(stage.base for stage in stages if stage.base), *commands])
    )
    for assignment in assignments:
        target, dot, rest = assignment.partition(".")
        if not dot or "=" in target:
            raise ConfigError(
                f"'{assignment}' is not of the form stage.key=value",
                f"example: --set {stages[0].id}.seed=1",
            )
        if target not in known:
            raise ConfigError(f"the recipe has no stage '{target}'", did_you_mean(target, known))
        is_command = target not in changes and target not in bases
        for stage in stages:
            if target in (stage.id, stage.base) or (is_command and stage.command == target):
                changes[stage.id].append(rest)
    return changes


def _configure(
    recipe: Recipe, entry: RecipeStage, stage: Stage, assignments: Sequence[str], smoke: bool
) -> Any:
    where = f"{recipe.path.name} [stage.{entry.id}]"
    values = dict(entry.settings)
    from_mapping(stage.config, values, where)
    from_mapping(stage.config, entry.smoke, f"{recipe.path.name} [smoke.{entry.id}]")
    if smoke:
        values.update(entry.smoke)
    changed = parse_assignments(stage.config, assignments)
    for key in entry.swept.keys() & changed.keys():
        raise ConfigError(
            f"'{key}' of stage '{entry.base}' is swept and cannot be set to one value",
            f"--sweep {entry.swept[key]}={changed[key]}",
        )
    values.update(changed)
    return from_mapping(stage.config, values, where)


def _underscored(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings of a table with underscores in their names, however they are written."""
    settings: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in settings:
            raise ConfigError(f"{where} sets '{name}' twice", "write it once")
        settings[name] = value
    return settings


def _find_parents(
    recipe: Recipe, entry: RecipeStage, stage: Stage, config: Any, earlier: Sequence[Step]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the earlier steps whose artifacts a stage reads, by type, and its candidates.

    These are the steps that it needs by name. Its primary input, the last of the types, is the
    latest that derives from the others that it needs. All steps that make a type are candidates
    where the stage chooses among several.
    """
    where = f"{recipe.path.name} [stage.{entry.id}]"
    made = {step.id: step.stage.artifact_type for step in earlier}
    types = stage.reads(config, {made[need] for need in entry.needs})
    several = stage.candidates(config)
    parents: dict[str, str] = {}
    for need in entry.needs:
        made_type = made[need]
        if made_type not in (*types, *several) or (
            made_type in parents and made_type not in several
        ):
            raise ConfigError(
                f"{where} needs '{need}', which makes {made_type}",
                f"'{entry.command}' reads one each of: {', '.join(types) or 'nothing'}",
            )
        parents[made_type] = need
    if types:
        primary, steps = types[-1], {step.id: step for step in earlier}
        makers = [need for need in entry.needs if made[need] == primary]
        makers = makers or [step for step, made_type in made.items() if made_type == primary]
        if not makers:
            raise ConfigError(
                f"{where} reads {primary}, which no earlier stage makes",
                "put the stage that makes it before this one",
            )
        others = [need for need in entry.needs if made[need] in types[:-1]]
        fitting = (one for one in reversed(makers) if {*others} <= ancestors(steps[one], steps))
        maker = next(fitting, "")
        if not maker:
            raise ConfigError(
                f"{where} needs {listed(others)}, but the {primary} of {listed(makers)}"
                " does not derive from it",
                f"name a stage that makes {primary} from it, or leave out {listed(others)}",
            )
        parents[primary] = maker
    candidates = tuple(
        step
        for step, made_type in made.items()
        if made_type in several
        and (step in entry.needs or made_type not in {made[need] for need in entry.needs})
    )
    read = {made_type: step for made_type, step in parents.items() if made_type in types}
    return read, candidates
