"""A stage that chooses among several artifacts of one type: which, and when it is up to date."""

import dataclasses
import json
import sys
import types

import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.core.config import option, to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.pipeline.recipe import make_plan, read_recipe
from lwdctl.stages import STAGES
from lwdctl.stages.stage import Stage

RECIPE = """
[stage.sow]

[stage.early]
uses = "grow"
name = "early"
days = 5

[stage.late]
like = "early"
name = "late"
days = 20

[stage.later]
like = "early"
name = "later"
days = 30

[stage.judge]
days = [5, 20]
"""


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    days: tuple[int, ...] = option((), "Ages to judge.")


def chosen(config, inputs, context):
    known = (
        context.workspace.artifacts("plant") if context.candidates is None else context.candidates
    )
    by_age = {plant.manifest.config["days"]: plant for plant in known}
    return [by_age[days] for days in config.days]


def judge(config, inputs, context):
    plants = chosen(config, inputs, context)
    with context.workspace.begin(
        "prize", context.name, config=to_mapping(config), inputs=plants
    ) as draft:
        (draft.path / "prize.txt").write_text("first")
        return draft.publish({"plants": [plant.reference for plant in plants]})


@pytest.fixture
def recipe(tmp_path, toy_stages, workspace_path, monkeypatch):
    choosing = types.ModuleType("choosing")
    choosing.types_read = lambda config, named: ("seed",)
    choosing.candidate_types = lambda config: ("plant",)
    choosing.chosen_models = chosen
    monkeypatch.setitem(sys.modules, "choosing", choosing)
    stage = Stage("judge", "prize", JudgeConfig, ("seed",), judge, choices="choosing")
    monkeypatch.setitem(STAGES, "judge", stage)
    path = tmp_path / "fair.toml"
    path.write_text(RECIPE)
    return path


def run(capfd, *words):
    assert main(["run", *map(str, words), "--json", "-q"]) == 0
    stages = json.loads(capfd.readouterr().out)["summary"]["stages"]
    return {stage["id"]: stage["state"] for stage in stages}


def judged(workspace_path):
    newest = Workspace(workspace_path).artifacts("prize")[-1]
    return newest.manifest.summary["plants"]


def test_it_takes_what_fits_and_is_up_to_date_then(recipe, capfd, workspace_path):
    assert run(capfd, recipe)["judge"] == "ran"
    assert judged(workspace_path) == ["plant/early:v1", "plant/late:v1"]
    assert set(run(capfd, recipe).values()) == {"up to date"}


def test_only_a_change_of_what_it_took_runs_it_again(recipe, capfd, workspace_path):
    run(capfd, recipe)
    assert run(capfd, recipe, "--set", "later.fail=x")["judge"] == "up to date"
    assert run(capfd, recipe, "--set", "early.fail=x")["judge"] == "ran"
    assert judged(workspace_path) == ["plant/early:v2", "plant/late:v1"]
    assert set(run(capfd, recipe).values()) == {"up to date"}


def test_what_the_plan_did_not_make_is_not_taken(recipe, capfd, workspace_path):
    run(capfd, recipe, "--set", "late.fail=x")
    run(capfd, recipe)  # the plant made first stands there as well, and so does a stranger
    words = ["grow", "--days", "5", "--name", "stranger", "--quiet"]
    assert main(words) == 0
    capfd.readouterr()
    assert set(run(capfd, recipe).values()) == {"up to date"}
    assert run(capfd, recipe, "--from", "judge")["judge"] == "ran"
    assert judged(workspace_path) == ["plant/early:v1", "plant/late:v2"]


def test_needs_narrow_the_choice(recipe):
    def choices(text):
        recipe.write_text(text)
        return make_plan(read_recipe(recipe))[-1].candidates

    assert choices(RECIPE) == ("early", "late", "later")
    assert choices(RECIPE + 'needs = ["late", "early"]\n') == ("early", "late")
    assert choices(RECIPE + 'needs = "sow"\n') == ("early", "late", "later")
    with pytest.raises(ConfigError, match="needs 'sow'"):
        choices(RECIPE + 'needs = ["sow", "sow"]\n')


def test_a_dry_run_waits_for_what_it_would_choose_from(recipe, capfd):
    run(capfd, recipe)
    changed = run(capfd, recipe, "--dry-run", "--set", "early.fail=x")
    assert changed["judge"] == "to run"
    assert set(run(capfd, recipe, "--dry-run").values()) == {"up to date"}


def test_what_was_made_before_a_setting_existed_had_its_default(recipe, capfd, workspace_path):
    config = to_mapping(STAGES["sow"].config())
    del config["depth"]
    with Workspace(workspace_path).begin("seed", "fair", config=config) as draft:
        (draft.path / "data.json").write_text("{}")
        draft.publish({"rows": 3})
    assert run(capfd, recipe)["sow"] == "up to date"
    assert run(capfd, recipe, "--set", "sow.depth=0.6")["sow"] == "ran"
