"""Every recipe under pipelines/ fits the stages as they are now."""

import re
from pathlib import Path

import pytest

from lwdctl.pipeline.plan import make_plan
from lwdctl.pipeline.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "pipelines").glob("*.toml"))


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {"quickstart", "metaworld10", "pusht"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("smoke", [False, True])
def test_recipe_makes_a_plan(path, smoke):
    recipe = read_recipe(path)
    plan = make_plan(recipe, smoke=smoke)
    assert plan
    assert recipe.expected
    assert all(item.source for item in recipe.expected)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_header_is_filled_in(path):
    header = read_recipe(path).header
    assert header.title
    assert header.command == f"lwdctl run pipelines/{path.name}"
    assert header.device


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_training_and_evaluation_has_a_toy_size(path):
    recipe = read_recipe(path)
    heavy = [s for s in recipe.stages if re.match(r"collect|train-|eval", s.command)]
    assert [stage.id for stage in heavy if not stage.smoke] == []


def test_the_readme_lists_every_recipe():
    text = (ROOT / "pipelines/README.md").read_text()
    assert [path.name for path in RECIPES if f"`{path.name}`" not in text] == []
