"""Recipes: one experiment as a TOML file, read strictly."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwdctl.core.config import from_mapping, option
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.pipeline.expected import Expectation, read_expectation

SECTIONS = ("recipe", "stage", "expected", "smoke")
_STAGE_WORDS = ("uses", "like", "name", "needs")


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
        needs: Ids of stages whose artifacts it reads; empty for the usual choice.
        settings: Configuration keys that differ from the stage's defaults, those of the stage
            it is `like` included.
        smoke: Keys that differ once more in a toy run: those of `[smoke.COMMAND]` where no
            stage is called like the command, then of `[smoke.ID]`.
    """

    id: str
    command: str
    name: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    smoke: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One recipe file."""

    path: Path
    header: Header
    name: str
    stages: tuple[RecipeStage, ...]
    expected: tuple[Expectation, ...]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Stage configurations are checked later, when the plan is made.

    Raises:
        ConfigError: The file is missing, not TOML, or has an unknown table or key.
    """
    tables = _load(path)
    _check_sections(path, tables)
    header = from_mapping(Header, tables.get("recipe", {}), f"{path.name} [recipe]")
    name = header.name or path.stem
    stages = _read_stages(path, tables, name)
    expected = tuple(
        read_expectation(table, tuple(stage.id for stage in stages), f"{path.name} [[expected]]")
        for table in tables.get("expected", [])
    )
    return Recipe(path, header, name, stages, expected)


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        nearby = [str(item) for item in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        hint = did_you_mean(str(path), nearby) or "give the path of a recipe, a .toml file"
        raise ConfigError(f"there is no recipe {path}", hint) from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _check_sections(path: Path, tables: Mapping[str, Any]) -> None:
    for key in tables:
        if key not in SECTIONS:
            raise ConfigError(f"{path.name}: unknown table [{key}]", did_you_mean(key, SECTIONS))
    if not tables.get("stage"):
        raise ConfigError(f"{path.name} has no [stage.*] table", "a recipe runs at least one stage")


def _read_stages(path: Path, tables: Mapping[str, Any], name: str) -> tuple[RecipeStage, ...]:
    toys = tables.get("smoke", {})
    stages: dict[str, RecipeStage] = {}
    for identity, table in tables["stage"].items():
        where = f"{path.name} [stage.{identity}]"
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where} is not a table", f"write [stage.{identity}] above its keys")
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
    words = {key: table[key] for key in _STAGE_WORDS if key in table}
    for key in ("uses", "like", "name"):
        if not isinstance(words.get(key, ""), str):
            raise ConfigError(f"{where}: '{key}' takes a text, not {words[key]!r}")
    like, needs = words.get("like", ""), words.get("needs", [])
    if like and like not in earlier:
        hint = did_you_mean(like, list(earlier)) or "the first stage can be like nothing"
        raise ConfigError(f"{where} is like '{like}', which no earlier stage is called", hint)
    if like and "uses" in words:
        raise ConfigError(f"{where}: give either 'uses' or 'like', which says it already")
    own = {key: value for key, value in table.items() if key not in _STAGE_WORDS}
    return RecipeStage(
        id=identity,
        command=earlier[like].command if like else words.get("uses", identity.replace("_", "-")),
        name=words.get("name", name),
        needs=(needs,) if isinstance(needs, str) else tuple(needs),
        settings={**earlier[like].settings, **own} if like else own,
        smoke=earlier[like].smoke if like else {},
    )


def _check_needs(stage: RecipeStage, earlier: list[str], where: str) -> None:
    for need in stage.needs:
        if need not in earlier:
            hint = did_you_mean(need, earlier) or "the first stage can need nothing"
            raise ConfigError(f"{where} needs '{need}', which no earlier stage is called", hint)
