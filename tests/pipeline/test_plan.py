"""The stages of a recipe as they stand in a workspace, and one of them run alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.pipeline.plan import RecipeRun, plan_stages, reserve_versions
from lwdctl.pipeline.recipe import read_recipe
from lwdctl.pipeline.records import StageRecord

RECIPE = """
[stage.sow]
field_kind = "wheat"

[stage.grow]

[stage.late]
uses = "grow"
needs = "sow"
days = 20

[stage.again]
like = "grow"

[stage.reap]
needs = "grow"

[stage.reap-late]
uses = "reap"
needs = "late"
"""


@pytest.fixture
def recipe(tmp_path, toy_stages, workspace_path):
    path = tmp_path / "year.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def planned(recipe, workspace_path):
    return RecipeRun(read_recipe(recipe), Workspace(workspace_path))


def run(capfd, *words):
    code = main(["run", *map(str, words), "--json", "-q"])
    out, err = capfd.readouterr()
    return code, json.loads(out)["summary"] if out else {}, err


def test_stages_name_what_they_depend_on_and_where_they_stand(planned, capfd):
    before = plan_stages(planned)
    assert {stage.id: stage.depends_on for stage in before} == {
        "sow": (),
        "grow": ("sow",),
        "late": ("sow",),
        "again": ("sow", "grow"),  # makes the very same artifact
        "reap": ("grow",),
        "reap-late": ("late",),
    }
    assert {stage.state for stage in before} == {"missing"}
    assert before[0].settings["field_kind"] == "wheat"
    assert run(capfd, planned.recipe.path, "--until", "grow")[0] == 0
    after = plan_stages(planned)
    assert [stage.state for stage in after] == ["done", "done", "missing", "done"] + ["missing"] * 2
    assert after[1].artifact.reference == "plant/year:v1"


def test_a_stage_with_a_checkpoint_is_resumable(recipe, workspace_path, capfd):
    change = ("--set", "late.fail=checkpoint")
    assert run(capfd, recipe, *change)[0] == 130
    stages = plan_stages(
        RecipeRun(read_recipe(recipe), Workspace(workspace_path), ("late.fail=checkpoint",))
    )
    assert [stage.state for stage in stages][:3] == ["done", "done", "resumable"]


def test_the_command_of_each_stage_makes_what_the_whole_run_makes(
    planned, recipe, workspace_path, capfd, tmp_path
):
    for stage in plan_stages(planned):
        assert main([*stage.arguments, "-q"]) == 0
    apart = RecipeRun(read_recipe(recipe), Workspace(tmp_path / "whole"))
    assert main([*apart.arguments(), "-q"]) == 0
    capfd.readouterr()
    made = [payload(item.root) for item in (Workspace(workspace_path), apart.workspace)]
    assert made[0] == made[1]
    assert len(made[0]) == 5


def payload(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.glob("*/*/v*/data.json")}


def test_a_stage_alone_needs_what_it_reads(recipe, capfd):
    code, _, err = run(capfd, recipe, "--only", "reap")
    assert code == 1
    assert "stage 'reap' reads what 'sow' makes" in err
    assert "--only sow" in err
    assert run(capfd, recipe, "--only", "raep")[0] == 1
    assert run(capfd, recipe, "--only", "sow")[1]["stages"][0]["state"] == "ran"
    assert run(capfd, recipe, "--only", "sow")[1]["stages"][0]["state"] == "up to date"


def test_a_stage_alone_that_is_to_run_again_takes_the_newest_inputs(recipe, capfd, workspace_path):
    assert run(capfd, recipe)[0] == 0
    for stage in ("grow", "reap"):
        assert run(capfd, recipe, "--from", "grow", "--only", stage)[0] == 0
    manifest = json.loads((workspace_path / "crop/year/v0003/manifest.json").read_text())
    assert [item["reference"] for item in manifest["inputs"]] == ["plant/year:v3"]


def test_versions_are_reserved_in_the_order_of_the_recipe(planned, capfd, workspace_path):
    assert main([*planned.arguments("--only", "sow"), "-q"]) == 0
    waiting = [stage for stage in plan_stages(planned) if stage.state != "done"]
    reserve_versions(waiting, planned)
    assert [planned.files.read(stage.id).version for stage in waiting] == [1, 2, 3, 1, 2]
    # Whoever is first gets its own number, and a number that others took is passed over.
    assert main([*planned.arguments("--only", "late"), "-q"]) == 0
    (workspace_path / "plant/year/v0001").mkdir()
    (workspace_path / "plant/year/v0001/taken").touch()
    assert main([*planned.arguments("--only", "grow"), "-q"]) == 0
    capfd.readouterr()
    names = sorted(path.parent.name for path in workspace_path.glob("plant/year/v*/manifest.json"))
    assert names == ["v0002", "v0003"]


def test_a_reserved_number_stays_with_its_stage(planned):
    stages = plan_stages(planned)
    reserve_versions(stages, planned)
    reserve_versions(stages[2:], planned)
    assert planned.files.read("late").version == 2


def test_a_number_is_reserved_for_one_name(planned, recipe):
    reserve_versions(plan_stages(planned), planned)
    recipe.write_text(RECIPE.replace("days = 20", 'name = "late"\ndays = 20'))
    renamed = RecipeRun(read_recipe(recipe), planned.workspace)
    reserve_versions(plan_stages(renamed), renamed)
    assert [planned.files.read(stage).version for stage in ("grow", "late", "again")] == [1, 1, 3]


def test_a_damaged_record_says_nothing(planned):
    planned.files.write("sow", StageRecord(version=7))
    assert planned.files.read("sow").version == 7
    planned.files.path("sow").write_text('{"version": "seven"}')
    assert planned.files.read("sow") == StageRecord()
