"""Sweeps: which stages they make, what is made once, and the table of their evaluations."""

from __future__ import annotations

import json

import pytest

import lwdctl
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.core.errors import ConfigError
from lwdctl.pipeline.plan import RecipeRun, plan_stages
from lwdctl.pipeline.recipe import make_plan, read_recipe

TOY = """
[sweep]
"sow.rows" = [1, 2]
grow.days = [5, 10]

[stage.well]
uses = "sow"
name = "well"
field_kind = "water"
rows = 9

[stage.sow]
field_kind = "wheat"

[stage.grow]

[stage.reap]

[[expected]]
stage = "reap"
metric = "days"
at_least = 7
source = "toy"

[[expected]]
stage = "reap"
sweep = { days = 10 }
metric = "days"
value = 10
source = "toy"

[smoke.sow]
depth = 0.1

[smoke.grow]
days = 1
"""

MODELS = """
[sweep]
seeds = [0, 1]
"train-vae.snippet_length" = [8, 16]

[stage.ingest]
format = "pusht"
paths = ["FILE"]

[stage.train-vae]
updates = 2
batch_size = 4
policy_width = 16
threads = 1

[stage.encode]
stride = 20

[stage.train-diffusion]
updates = 2
batch_size = 4
width = 16
threads = 1

[stage.mlp]
uses = "train-baseline"
name = "mlp"
method = "mlp"
updates = 2

[stage.each]
uses = "eval"
name = "each"
latent = ["sampled"]
episodes = 2
max_steps = 4
workers = 0
num_envs = 1

[stage.all]
like = "each"
name = "all"
policy = ["lwd", "mlp"]
seeds = 2
horizon = [8, 16]
"""


@pytest.fixture
def toy(tmp_path, toy_stages, workspace_path):
    path = tmp_path / "year.toml"
    path.write_text(TOY)
    return path


def test_stages_are_made_for_the_combinations_that_they_depend_on(toy):
    plan = {step.id: step for step in make_plan(read_recipe(toy))}
    assert list(plan) == [
        "well",
        "sow-rows1", "sow-rows2",
        "grow-rows1-days5", "grow-rows1-days10", "grow-rows2-days5", "grow-rows2-days10",
        "reap-rows1-days5", "reap-rows1-days10", "reap-rows2-days5", "reap-rows2-days10",
    ]  # fmt: skip
    assert plan["grow-rows2-days5"].parents == {"seed": "sow-rows2"}
    assert plan["reap-rows1-days10"].parents == {"plant": "grow-rows1-days10"}
    assert plan["reap-rows1-days10"].name == "year-rows1-days10"
    assert (plan["sow-rows2"].config.rows, plan["grow-rows2-days5"].config.days) == (2, 5)
    assert plan["sow-rows2"].combination == {"rows": 2}


def test_a_toy_run_sweeps_the_same_values(toy):
    plan = {step.id: step for step in make_plan(read_recipe(toy), smoke=True)}
    assert len(plan) == 11
    assert plan["sow-rows2"].config.depth == 0.1
    assert plan["grow-rows2-days5"].config.days == 5


def test_a_table_stands_for_all_that_it_was_expanded_into(toy, capfd):
    recipe = read_recipe(toy)
    assert [item.stage for item in recipe.expected] == [
        "reap-rows1-days5", "reap-rows1-days10", "reap-rows2-days5", "reap-rows2-days10",
        "reap-rows1-days10", "reap-rows2-days10",
    ]  # fmt: skip
    deep = make_plan(recipe, assignments=["sow.depth=3"])
    assert [step.config.depth for step in deep[1:3]] == [3, 3]
    one = make_plan(recipe, assignments=["sow-rows2.depth=3"])
    assert [step.config.depth for step in one[1:3]] == [0.5, 3]
    again = make_plan(recipe, start="grow", until="grow")
    assert [step.id for step in again if step.forced] == [step.id for step in again[3:]]
    assert again[-1].id == "grow-rows2-days10"
    assert main(["run", str(toy), "--json", "-q"]) == 0
    answer = json.loads(capfd.readouterr().out)["summary"]
    assert [item["met"] for item in answer["expected"]] == [False, True, False, True, True, True]


def test_a_setting_that_is_swept_has_no_single_value(toy):
    with pytest.raises(ConfigError, match="'days' of stage 'grow' is swept") as caught:
        make_plan(read_recipe(toy), assignments=["grow.days=3"])
    assert caught.value.hint == "--sweep grow.days=3"
    swept = read_recipe(toy, ["grow.days=3"])
    assert [step.id for step in make_plan(swept)][-2:] == ["reap-rows1-days3", "reap-rows2-days3"]


@pytest.mark.slow
def test_the_command_line_adds_and_replaces_axes(toy, workspace_path, capfd):
    words = ["--sweep", "grow.days=7", "--sweep", "sow.tool=hand,plough", "--json", "-q"]
    assert main(["run", str(toy), *words]) == 0
    summary = json.loads(capfd.readouterr().out)["summary"]
    assert [stage["id"] for stage in summary["stages"]][-1] == "reap-rows2-days7-toolplough"
    run = RecipeRun(
        read_recipe(toy, ["grow.days=7", "sow.tool=hand,plough"]), Workspace(workspace_path)
    )
    stages = plan_stages(run)
    assert {stage.state for stage in stages} == {"done"}
    assert main([*stages[-1].arguments, "-q"]) == 0
    assert {item.state for item in lwdctl.status(toy, sweep=run.recipe.sweep)} == {"done"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1, 2]", "3", "takes a list of values"),
        ("[1, 2]", "[]", "takes a list of values"),
        ("[1, 2]", "[1, 1]", "has a value twice"),
        ("[1, 2]", "[1, 'x']", "'rows' takes"),
        ("[1, 2]", "[1, 99]", "rows"),
        ('"sow.rows"', '"saw.rows"', "no stage 'saw'"),
        ('"sow.rows"', '"sow.row"', "unknown setting 'row'"),
        ('"sow.rows"', "rows", "is neither 'seeds' nor STAGE.key"),
        ('"sow.rows"', "seeds", "no stage of the recipe trains a model"),
        ("[1, 2]", f"{list(range(1, 10))}\nsow.depth = {list(range(999))}", "2000 stages"),
        ("days = 10 }", "days = 11 }", "no stage 'reap' with"),
        ("days = 10 }", "day = 10 }", "no stage 'reap' with"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept(toy, old, new, message):
    toy.write_text(toy.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_recipe(toy)


def test_two_axes_that_set_one_thing_are_refused(models):
    for stage in ("train-vae", "mlp"):
        with pytest.raises(ConfigError, match=f"sets 'seed' of stage '{stage}' twice: by 'seeds'"):
            read_recipe(models, [f"{stage}.seed=5,6"])
    with pytest.raises(ConfigError, match="'seed' of stage 'train-vae' is swept") as caught:
        make_plan(read_recipe(models), assignments=["train-vae.seed=7"])
    assert caught.value.hint == "--sweep seeds=7"


def test_a_swept_text_may_hold_a_comma(toy):
    stages = read_recipe(toy, [r"sow.field_kind=wheat\, then rye,oats"]).stages
    kinds = {stage.settings["field_kind"] for stage in stages if stage.base == "sow"}
    assert kinds == {"wheat, then rye", "oats"}


@pytest.mark.parametrize("text", ["grow.days", "grow.days=x", "grow.dayz=1", "=1", "grow.days="])
def test_a_sweep_option_that_says_nothing(toy, text):
    with pytest.raises(ConfigError):
        read_recipe(toy, [text])


@pytest.fixture
def models(tmp_path, toy_file):
    path = tmp_path / "models.toml"
    path.write_text(MODELS.replace("FILE", toy_file("pusht_sweep.zarr")))
    return path


def test_an_evaluation_takes_together_what_it_tells_apart(models):
    plan = {step.id: step for step in make_plan(read_recipe(models))}
    assert [name for name in plan if name.startswith(("each", "mlp"))] == [
        "mlp-seed0", "mlp-seed1",
        "each-seed0-snippet_length8", "each-seed0-snippet_length16",
        "each-seed1-snippet_length8", "each-seed1-snippet_length16",
    ]  # fmt: skip
    assert plan["train-diffusion-seed1-snippet_length8"].config.seed == 1
    assert plan["each-seed1-snippet_length8"].candidates == (
        "train-diffusion-seed1-snippet_length8",
    )
    assert set(plan["all"].candidates) == {
        name for name in plan if name.startswith(("train-diffusion", "mlp"))
    }
    # Without its own seeds it is one evaluation per seed, and each takes all lengths.
    text = models.read_text().replace("seeds = 2\n", "")
    models.write_text(text)
    plan = {step.id: step for step in make_plan(read_recipe(models))}
    assert [name for name in plan if name.startswith("all")] == ["all-seed0", "all-seed1"]
    assert set(plan["all-seed1"].candidates) == {
        "train-diffusion-seed1-snippet_length8", "train-diffusion-seed1-snippet_length16",
        "mlp-seed1",
    }  # fmt: skip


def test_a_seed_of_the_data_is_no_training_seed(models):
    """An evaluation that tells training seeds apart is made for each of the data."""
    plan = {step.id: step for step in make_plan(read_recipe(models, ["ingest.seed=0,1"]))}
    assert [name for name in plan if name.startswith("all")] == [
        "all-ingest.seed0", "all-ingest.seed1",
    ]  # fmt: skip
    assert set(plan["all-ingest.seed0"].candidates) == {
        name
        for name in plan
        if name.startswith(("train-diffusion", "mlp")) and "ingest.seed0" in name
    }
    assert plan["each-seed0-snippet_length8-ingest.seed0"].combination == {
        "seed": 0, "snippet_length": 8, "ingest.seed": 0,
    }  # fmt: skip
    models.write_text(models.read_text().replace("seeds = [0, 1]", ""))
    plan = {step.id: step for step in make_plan(read_recipe(models, ["ingest.seed=0,1"]))}
    assert plan["all-ingest.seed1"].combination == {"ingest.seed": 1}


def test_an_evaluation_of_seeds_that_are_not_swept(models):
    models.write_text(models.read_text().replace("seeds = [0, 1]", "seeds = [0, 2]"))
    with pytest.raises(ConfigError, match="has no seed 1") as caught:
        read_recipe(models)
    assert caught.value.hint == "write seeds = [0, 1] in [sweep]"


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(600)
def test_results_per_combination_have_intervals_over_seeds(models, tmp_path, capfd):
    words = ["run", str(models), "--workspace", str(tmp_path / "runs"), "-q"]
    assert main([*words, "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)["summary"]
    rows = summary["sweep"]
    assert [(row["stage"], row["combination"], row["label"], row["horizon"]) for row in rows] == [
        ("each", {"snippet_length": 8}, "lwd", 8),
        ("each", {"snippet_length": 16}, "lwd", 16),
        ("all", {}, "mlp", None),
        ("all", {}, "lwd", 8),
        ("all", {}, "lwd", 16),
    ]
    assert all(row["train_seeds"] == [0, 1] and row["episodes"] == 4 for row in rows)
    scores = [
        cell["metrics"]["max_overlap"]
        for cell in summary["results"]
        if cell["stage"].startswith("each-") and cell["task"] == "all" and cell["horizon"] == 8
    ]
    assert len(scores) == 2
    assert rows[0]["score"] == pytest.approx(sum(scores) / 2)
    assert rows[0]["score_low"] <= rows[0]["score"] <= rows[0]["score_high"]
    # The same models, whichever evaluation ran them.
    assert [row["score"] for row in rows[:2]] == [row["score"] for row in rows[3:]]
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "Per combination, over training seeds and initial states:" in out
    assert "snippet_length  policy" in out
