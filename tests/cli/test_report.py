"""`lwdctl report`: recipes and references to one file, and what keeps it from being written."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.core.config import option, to_mapping
from lwdctl.stages import STAGES
from lwdctl.stages.stage import Stage

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from report_chain import ARMS, chain, evaluation

sys.path.pop(0)

pytestmark = pytest.mark.usefixtures("few_resamples")

RECIPE = """
[recipe]
title = "Toys & games"
paper = "Table 9"

[stage.measure]
rate = 2

[[expected]]
stage = "measure"
metric = "success"
where = { policy = "lwd", latent = "sampled", task = "all" }
at_least = 0.7
source = "the goal"

[[expected]]
stage = "measure"
metric = "success"
where = { policy = "lwd", latent = "shuffled", task = "all" }
at_most = 0.05
"""


@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    rate: int = option(1, "How fast.")


def measure(config, inputs, context):
    workspace = context.workspace
    with workspace.begin("evaluation", context.name, config=to_mapping(config)) as draft:
        (draft.path / "episodes").mkdir()
        for item in ARMS:
            cell = item["results"][0]
            path = draft.path / f"episodes/{cell['policy']}-{cell['latent']}.json"
            path.write_text(json.dumps(item))
        return draft.publish({"results": [item["results"][0] for item in ARMS]}, seed=0)


@pytest.fixture
def here(workspace_path, tmp_path, monkeypatch):
    """An empty working directory; the workspace stands elsewhere."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def recipe(here, monkeypatch):
    stage = Stage("measure", "evaluation", MeasureConfig, (), measure)
    monkeypatch.setitem(STAGES, "measure", stage)
    (here / "toys.toml").write_text(RECIPE)
    return here / "toys.toml"


@pytest.mark.slow
def test_the_newest_evaluation_is_the_default(here, workspace_path, capfd):
    chain(Workspace(workspace_path))
    assert main(["report"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("report.html  0.")
    assert "reading evaluation/" in err
    assert "<h1>Evaluation of a.b+c_d-1</h1>" in (here / "report.html").read_text()
    assert [path.name for path in here.iterdir()] == ["report.html"]


def test_a_recipe_shows_measured_beside_expected(recipe, here, capfd):
    assert main(["run", "toys.toml", "-q"]) == 0
    capfd.readouterr()
    assert main(["report", "toys.toml", "--json", "-q"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["schema_version"] == 2
    assert answer["path"] == "toys.html"
    assert answer["summary"]["expected"] == 2
    assert answer["summary"]["met"] == 1
    assert answer["summary"]["sources"][0]["reference"] == "evaluation/toys:v1"
    text = (here / "toys.html").read_text()
    assert len(text.encode()) == answer["summary"]["bytes"]
    assert "<h1>Toys &amp; games</h1>" in text
    assert "MISSED" in text
    assert "0.8 [0.250, 0.750]" in text


def test_a_recipe_takes_only_what_is_up_to_date(recipe, here, workspace_path, capfd):
    assert main(["run", "toys.toml", "-q"]) == 0
    assert main(["report", "toys.toml", "--set", "measure.rate=3"]) == 1
    error = capfd.readouterr().err
    assert "no stage of toys.toml has an artifact that is up to date" in error
    assert "lwdctl run toys.toml --set measure.rate=3" in error
    assert main(["run", "toys.toml", "--smoke", "-q"]) == 0
    assert main(["report", "toys.toml", "--smoke", "--output", "toy.html"]) == 0
    text = (here / "toy.html").read_text()
    assert "a toy run (--smoke)" in text
    assert "MISSED" not in text
    assert "lwdctl run toys.toml --smoke" in text


@pytest.mark.slow
def test_the_same_input_gives_the_same_file(here, workspace_path):
    chain(Workspace(workspace_path))
    assert main(["report", "--output", "a.html", "-q"]) == 0
    assert main(["report", "--output", "b.html", "-q"]) == 0
    assert (here / "a.html").read_bytes() == (here / "b.html").read_bytes()


def test_what_cannot_be_reported_is_an_error(here, workspace_path, capfd):
    assert main(["report"]) == 1
    assert "no finished evaluation" in capfd.readouterr().err
    chain(Workspace(workspace_path))
    assert main(["report", "a.b"]) == 1
    assert "known: a.b+c_d-1" in capfd.readouterr().err
    assert main(["report", "none.toml"]) == 1
    assert "no recipe at none.toml" in capfd.readouterr().err
    assert main(["report", "--smoke"]) == 1
    assert "belong to a recipe" in capfd.readouterr().err
    assert main(["report", "--against", "nobody"]) == 1
    assert "no evaluated policy is 'nobody'" in capfd.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_several_lineages_have_to_be_distinguished(here, workspace_path, capfd):
    workspace = Workspace(workspace_path)
    chain(workspace)
    with workspace.begin("snippets", "else", config={}) as draft:
        (draft.path / "data.json").write_text("{}")
        other = draft.publish({}, seed=0)
    evaluation(workspace, other, ARMS, name="else")
    assert main(["report"]) == 1
    assert "hint: name one: lwdctl report NAME" in capfd.readouterr().err
    assert main(["report", "else", "a.b+c_d-1", "-q"]) == 0
    assert (here / "report.html").is_file()


def test_a_file_that_cannot_be_written_is_reported(here, workspace_path, capfd):
    chain(Workspace(workspace_path))
    (here / "taken").mkdir()
    assert main(["report", "--output", "taken"]) == 1
    assert "cannot write taken" in capfd.readouterr().err
    (here / "file").write_text("")
    assert main(["report", "--output", "file/report.html"]) == 1
    assert "name another file with --output FILE" in capfd.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["file", "taken"]
    assert list((here / "taken").iterdir()) == []
