import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lwdctl.cli.main import main
from lwdctl.core.config import to_mapping
from lwdctl.stages import STAGES
from lwdctl.stages.stage import LOST

RECIPE = """
[recipe]
title = "A year"

[stage.sow]
field_kind = "wheat"

[stage.grow]

[stage.reap]

[[expected]]
stage = "reap"
metric = "success"
where = { task = "all" }
at_least = 0.75
source = "toy"

[[expected]]
stage = "reap"
metric = "days"
value = 12
source = "wrong on purpose"

[smoke.grow]
days = 1
"""


@pytest.fixture
def recipe(tmp_path, toy_stages, workspace_path):
    path = tmp_path / "year.toml"
    path.write_text(RECIPE)
    return path


def run(capfd, *words):
    assert main(["run", *map(str, words), "--json", "-q"]) == 0
    return json.loads(capfd.readouterr().out)


def states(answer):
    return [stage["state"] for stage in answer["summary"]["stages"]]


def test_second_run_does_nothing(recipe, capfd, workspace_path):
    first = run(capfd, recipe)
    assert states(first) == ["ran"] * 3
    assert first["artifact"] == "crop/year:v1"
    assert first["schema_version"] == 2
    assert states(run(capfd, recipe)) == ["up to date"] * 3
    assert len(list(workspace_path.glob("*/*/v*"))) == 3


def test_a_changed_setting_runs_the_stage_and_what_follows(recipe, capfd):
    run(capfd, recipe)
    answer = run(capfd, recipe, "--set", "grow.days=11")
    assert states(answer) == ["up to date", "ran", "ran"]
    assert answer["artifact"] == "crop/year:v2"
    assert states(run(capfd, recipe)) == ["up to date"] * 3


def test_from_runs_again(recipe, capfd):
    run(capfd, recipe)
    assert states(run(capfd, recipe, "--from", "grow")) == ["up to date", "ran", "ran"]


def test_a_damaged_artifact_is_not_up_to_date(recipe, capfd, workspace_path):
    run(capfd, recipe)
    path = workspace_path / "plant/year/v0001/manifest.json"
    path.write_text(path.read_text().replace('"days": 10', '"days": 99'))
    assert states(run(capfd, recipe)) == ["up to date", "ran", "ran"]


def test_what_lacks_episodes_is_made_again(recipe, capfd, monkeypatch, toy_stages):
    def losing(config, inputs, context):
        with context.workspace.begin(
            "plant", context.name, config=to_mapping(config), inputs=list(inputs.values())
        ) as draft:
            return draft.publish({"days": config.days, LOST: {"sampled": 1}}, seed=0)

    whole = toy_stages["grow"]
    monkeypatch.setitem(STAGES, "grow", dataclasses.replace(whole, run=losing))
    run(capfd, recipe)
    assert states(run(capfd, recipe)) == ["up to date", "ran", "ran"]
    monkeypatch.setitem(STAGES, "grow", whole)
    assert states(run(capfd, recipe)) == ["up to date", "ran", "ran"]
    assert states(run(capfd, recipe)) == ["up to date"] * 3


def test_result_rows_name_the_stage_that_measured_them(recipe, capfd):
    cells = run(capfd, recipe)["summary"]["results"]
    assert [cell["stage"] for cell in cells] == ["reap", "reap"]


def test_dry_run_shows_the_plan_and_runs_nothing(recipe, capfd, workspace_path):
    assert states(run(capfd, recipe, "--dry-run")) == ["to run"] * 3
    assert not workspace_path.exists()
    run(capfd, recipe)
    answer = run(capfd, recipe, "--dry-run", "--set", "grow.days=11")
    assert states(answer) == ["up to date", "to run", "to run"]
    assert main(["run", str(recipe), "--dry-run"]) == 0
    assert "field_kind=wheat" in capfd.readouterr().out


def test_a_dry_run_of_one_stage_names_a_stage_of_the_recipe(recipe, capfd, tmp_path):
    assert states(run(capfd, recipe, "--dry-run", "--only", "grow")) == ["to run"]
    for words in ([], ["--json"]):
        assert main(["run", str(recipe), "--dry-run", "--only", "gro", *words]) == 1
        assert "has no stage 'gro'" in capfd.readouterr().err
    scripts = tmp_path / "scripts"
    assert states(run(capfd, recipe, "--dry-run", "--slurm-script", scripts)) == ["to run"] * 3
    assert not scripts.exists()


def test_measured_stands_beside_expected(recipe, capfd):
    expected = run(capfd, recipe)["summary"]["expected"]
    assert [(item["measured"], item["met"]) for item in expected] == [(0.8, True), (10.0, False)]
    assert main(["run", str(recipe), "-q"]) == 0
    out = capfd.readouterr().out
    assert "0.8 [0.700, 0.900]" in out
    assert "≥ 0.75" in out
    assert "MISSED" in out
    assert main(["run", str(recipe), "-q", "--check"]) == 1
    assert "1 of 2 expected numbers were missed" in capfd.readouterr().err


@pytest.mark.parametrize("options", ["--smoke", "--until grow", "--only sow"])
def test_nothing_is_as_expected_where_nothing_is_compared(recipe, capfd, workspace_path, options):
    assert main(["run", str(recipe), "-q", "--check", *options.split()]) == 1
    assert "no expected number is compared" in capfd.readouterr().err
    assert not workspace_path.exists()


def test_an_ambiguous_expected_number_does_not_hide_the_results(recipe, capfd):
    recipe.write_text(RECIPE.replace('task = "all"', 'policy = "lwd"'))
    assert main(["run", str(recipe), "-q", "--check"]) == 1
    printed = capfd.readouterr()
    assert "2 result rows match: add a key to 'where'" in printed.out
    assert "0.8 [0.700, 0.900]" in printed.out
    assert "2 of 2 expected numbers were missed" in printed.err
    assert run(capfd, recipe)["summary"]["expected"][0]["rows"] == 2


def test_smoke_keeps_toys_apart_and_judges_nothing(recipe, capfd):
    answer = run(capfd, recipe, "--smoke")
    assert answer["artifact"] == "crop/year-smoke:v1"
    assert answer["summary"]["stages"][1]["config"]["days"] == 1
    assert answer["summary"]["expected"] == []
    assert states(run(capfd, recipe)) == ["ran"] * 3


def test_an_interrupted_stage_is_resumed(recipe, capfd, workspace_path):
    words = ["run", str(recipe), "--set", "grow.fail=checkpoint", "-q"]
    assert main(words) == 130
    assert "finished stages are kept; continue with: lwdctl run" in capfd.readouterr().err
    assert len(list(workspace_path.glob("plant/year/.partial-*"))) == 1
    assert main(words) == 0
    assert not list(workspace_path.glob("plant/year/.partial-*"))


@pytest.mark.parametrize("option", ["--from sow", "--from=sow"])
def test_an_interruption_of_a_run_from_a_stage_says_from_where_to_go_on(recipe, capfd, option):
    run(capfd, recipe)
    words = ["run", str(recipe), *option.split(), "--json", "-q", "--set", "grow.fail=checkpoint"]
    assert main(words) == 130
    again = capfd.readouterr().err.strip().rpartition("continue with: lwdctl ")[2].split()
    assert again == [word.replace("sow", "grow") for word in words]
    assert states(run(capfd, *again[1:])) == ["up to date", "ran", "ran"]


@pytest.mark.parametrize(
    ("made", "left", "ran"),
    [
        ("crop/year", [], ["up to date"] * 3),
        ("plant/year", ["--from", "reap"], ["up to date", "up to date", "ran"]),
        ("seed/year", ["--from", "grow"], ["up to date", "ran", "ran"]),
    ],
)
def test_an_interruption_between_two_stages_names_the_next_one(recipe, capfd, made, left, ran):
    run(capfd, recipe)

    def message(self, text):
        if f": made {made}" in text:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lwdctl.core.progress.SilentProgress.message", message)
        assert main(["run", str(recipe), "--from", "sow", "-q"]) == 130
    again = capfd.readouterr().err.strip().rpartition("continue with: lwdctl ")[2].split()
    assert again == ["run", str(recipe), *left, "-q"]
    assert states(run(capfd, *again[1:])) == ran


def test_what_is_damaged_is_made_again(recipe, capfd, workspace_path):
    run(capfd, recipe)
    next(workspace_path.glob("plant/year/v0001/*")).unlink()
    assert main(["run", str(recipe), "--json"]) == 0
    out, err = capfd.readouterr()
    assert states(json.loads(out)) == ["up to date", "ran", "ran"]
    assert "plant/year:v1 is passed over" in err


def test_a_name_that_no_artifact_can_have_is_found_before_anything_runs(recipe, capfd, tmp_path):
    named = tmp_path / "a year!.toml"
    named.write_text(RECIPE)
    assert run(capfd, named, "--dry-run")["summary"]["recipe"] == "a_year_"
    recipe.write_text(RECIPE.replace("[stage.grow]", '[stage.grow]\nname = "a b"'))
    assert main(["run", str(recipe), "--dry-run"]) == 1
    assert "year.toml [stage.grow]: name: 'a b' cannot name an" in capfd.readouterr().err


def test_missing_files_of_a_recipe_are_named_with_the_option_that_sets_them(
    tmp_path, workspace_path, capfd
):
    path = tmp_path / "elsewhere.toml"
    path.write_text('[stage.read]\nuses = "ingest"\nformat = "pusht"\npaths = ["pusht.zarr"]\n')
    assert main(["run", str(path), "-q"]) == 1
    err = capfd.readouterr().err
    assert "error: pusht.zarr: no such file or directory" in err
    assert "hint: name the recipe's files: --set read.paths=PATH,..." in err


def test_a_changed_source_file_is_read_again(tmp_path):
    from lwdctl.artifacts.files import fingerprint
    from lwdctl.pipeline.runner import _sources_changed

    path = tmp_path / "data.bin"
    step = SimpleNamespace(config=SimpleNamespace(paths=(str(path),)))
    path.write_bytes(b"one")
    summary = {"sources": [fingerprint(path)]}
    assert not _sources_changed(step, summary)
    path.write_bytes(b"two")
    assert _sources_changed(step, summary)
    path.unlink()
    assert not _sources_changed(step, summary)
    two = SimpleNamespace(config=SimpleNamespace(paths=(str(path), str(path))))
    assert _sources_changed(two, summary)


def test_a_changed_source_directory_is_read_again(tmp_path):
    from lwdctl.artifacts.files import fingerprint
    from lwdctl.pipeline.runner import _sources_changed

    folder = tmp_path / "data.zarr"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "chunk").write_bytes(b"one")
    step = SimpleNamespace(config=SimpleNamespace(paths=(str(folder),)))
    summary = {"sources": [fingerprint(folder)]}
    assert not _sources_changed(step, summary)
    (folder / "a" / "chunk").write_bytes(b"two")
    assert _sources_changed(step, summary)
    (folder / "a" / "chunk").write_bytes(b"one")
    (folder / "a" / "chunk").rename(folder / "a" / "other")
    assert _sources_changed(step, summary)


def test_a_path_that_now_leads_elsewhere_is_read_again(tmp_path, monkeypatch):
    from lwdctl.artifacts.files import fingerprint
    from lwdctl.pipeline.runner import _sources_changed

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "d.zip").write_text(name)
    step = SimpleNamespace(config=SimpleNamespace(paths=("d.zip",)))
    monkeypatch.chdir(tmp_path / "one")
    summary = {"sources": [fingerprint(Path("d.zip"))]}
    assert not _sources_changed(step, summary)
    monkeypatch.chdir(tmp_path / "two")
    assert _sources_changed(step, summary)
