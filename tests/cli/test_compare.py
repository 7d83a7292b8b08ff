import csv
import json
import sys
from pathlib import Path

import matplotlib.image
import pytest

from lwdctl.analysis import resample
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from evaluation_grid import episode, grid_records, publish, record

sys.path.pop(0)

pytestmark = pytest.mark.usefixtures("few_resamples")

FIGURES = ("success-by-horizon", "overlap-by-horizon", "success-by-flops", "success-by-time")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A 2 x 2 x 2 grid in two evaluations; the working directory is empty."""
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    workspace = Workspace(tmp_path / "runs")
    publish(workspace, "method", grid_records(policies=("lwd",)))
    publish(workspace, "baseline", grid_records(policies=("dp",)))
    return workspace


def test_an_interrupted_comparison_leaves_and_changes_nothing(runs, capfd, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lwdctl.analysis.comparison.save_figures", interrupt)
    assert main(["compare", "method", "--output", "new"]) == 130
    assert "nothing was kept" in capfd.readouterr().err
    Path("old").mkdir()
    Path("old/comparison.csv").write_text("before")
    assert main(["compare", "method", "--output", "old"]) == 130
    assert [str(path) for path in Path().rglob("*")] == ["old", "old/comparison.csv"]
    assert Path("old/comparison.csv").read_text() == "before"


def told(capfd):
    return json.loads(capfd.readouterr().out)


@pytest.mark.slow
def test_the_table_and_the_files_it_leaves(runs, capfd, tmp_path):
    assert main(["compare", "method", "baseline"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:6] == [
        "policy", "latent", "horizon", "perturbation", "seeds", "episodes",
    ]  # fmt: skip
    assert lines[1].split()[:6] == ["lwd", "sampled", "16", "0", "0", "20"]
    assert lines[1].endswith("6.25e+04")
    assert len(lines[: lines.index("")]) == 1 + 8
    assert "minus lwd on the same initial states" in out
    assert "corrected for all 4 tests of the column" in out
    assert "Perturbed minus unperturbed" in out
    assert "What equal success costs" in out
    assert lines[-2].split()[-2:] == ["solves", "less"]
    assert "reading evaluation/method:v1, evaluation/baseline:v1" in err
    folder = tmp_path / "here/comparison"
    wanted = {f"comparison{part}.csv" for part in ("", "-tests", "-controls", "-costs")}
    wanted |= {"comparison.json", *(f"{name}.{end}" for name in FIGURES for end in ("png", "pdf"))}
    assert {path.name for path in folder.iterdir()} == wanted
    for name in FIGURES:
        picture = matplotlib.image.imread(folder / f"{name}.png")
        assert min(picture.shape[:2]) > 300
        assert picture[..., :3].std() > 0.02
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    with (folder / "comparison-tests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["dp"] * 4
    with (folder / "comparison-controls.csv").open(newline="") as file:
        assert [row["perturbation"] for row in csv.DictReader(file)] == ["10.0"] * 4


def test_json_carries_everything_and_the_sources(runs, capfd, tmp_path):
    assert main(["compare", "method", "baseline", "--json"]) == 0
    answer = told(capfd)
    assert answer["schema_version"] == 2
    assert (answer["artifact"], answer["path"]) == (None, None)
    assert list((tmp_path / "here").iterdir()) == []
    summary = answer["summary"]
    artifact = runs.resolve("evaluation", "method")
    assert summary["evaluations"][1] == {
        "reference": "evaluation/method:v1", "path": str(artifact.path), "digest": artifact.digest,
    }  # fmt: skip
    assert (summary["env"], summary["metric"], summary["against"]) == ("toyland", "overlap", "lwd")
    assert len(summary["results"]) == 8
    assert len(summary["tests"]) == len(summary["controls"]) == 4
    assert "McNemar" in summary["methods"]["success_p"]


def test_p_values_are_those_of_the_episodes(runs, capfd):
    assert main(["compare", "method", "baseline", "--format", "json"]) == 0
    for pair in told(capfd)["summary"]["tests"]:
        folders = [
            runs.resolve("evaluation", name).path / "episodes" for name in ("method", "baseline")
        ]
        key = (pair["horizon"], pair["perturbation"])
        lwd, dp = (episodes_of(folder, key) for folder in folders)
        better = sum(b["success"] > a["success"] for a, b in zip(lwd, dp, strict=True))
        worse = sum(b["success"] < a["success"] for a, b in zip(lwd, dp, strict=True))
        assert (pair["better"], pair["worse"]) == (better, worse)
        assert pair["success_p"] == pytest.approx(resample.mcnemar(better, worse))
        assert pair["success_p_holm"] >= pair["success_p"]


def episodes_of(folder, key):
    for path in folder.glob("*.json"):
        found = json.loads(path.read_text())
        if (found["results"][0]["horizon"], found["results"][0]["perturbation"]) == key:
            return found["episodes"]
    raise AssertionError(key)


def test_csv(runs, capfd, tmp_path):
    assert main(["compare", "method", "baseline", "--format", "csv", "-q"]) == 0
    rows = list(csv.DictReader(capfd.readouterr().out.splitlines()))
    assert [(row["label"], row["horizon"], row["perturbation"]) for row in rows[:3]] == [
        ("lwd", "16", "0.0"), ("dp", "16", "0.0"), ("lwd", "32", "0.0"),
    ]  # fmt: skip
    assert all(float(row["success_low"]) <= float(row["success"]) for row in rows)
    assert list((tmp_path / "here").iterdir()) == []


def test_the_order_of_arguments_changes_nothing(runs, capfd):
    answers = []
    for order in (("method", "baseline"), ("baseline", "method")):
        assert main(["compare", *order, "-q", "--json"]) == 0
        answers.append(capfd.readouterr().out)
    assert answers[0] == answers[1]


def test_the_newest_evaluation_is_taken(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    workspace = Workspace(tmp_path / "runs")
    for _ in range(2):
        publish(workspace, "grid", grid_records(perturbations=(0.0,)))
    assert main(["compare", "--json"]) == 0
    assert told(capfd)["summary"]["evaluations"][0]["reference"] == "evaluation/grid:v2"


def test_unrelated_lineages_need_a_choice(runs, capfd):
    assert main(["compare"]) == 1
    err = capfd.readouterr().err
    assert "--run" in err
    assert "lwdctl compare NAME" in err
    assert main(["compare", "--run", "method", "--json"]) == 0


@pytest.mark.slow
def test_what_is_not_recorded_is_reported_and_left_out(runs, capfd, tmp_path):
    plain = [record("lwd", [episode(i, i % 2, 0.5) for i in range(8)], seconds={})]
    publish(runs, "plain", plain)
    assert main(["compare", "plain", "--output", str(tmp_path / "out")]) == 0
    err = capfd.readouterr().err
    assert "no figure of FLOPs per environment step" in err
    assert "no figure of wall time per episode" in err
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {"success-by-horizon", "overlap-by-horizon"}


@pytest.mark.slow
def test_a_cost_that_some_result_rows_lack_is_drawn_for_the_others(runs, capfd, tmp_path):
    episodes = [episode(i, i % 2, 0.5) for i in range(8)]
    cells = [record("lwd", episodes, cost={"flops_per_step": 3.0}, seconds={})]
    cells.append(record("lwd", episodes, perturbation=5.0, seconds={}))
    publish(runs, "half", cells)
    assert main(["compare", "half", "--output", str(tmp_path / "out")]) == 0
    assert "FLOPs per environment step: 1 condition lacks it (lwd)" in capfd.readouterr().err
    assert (tmp_path / "out/success-by-flops.png").is_file()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--format", "tabel"], 2, "did you mean 'table'?"),
        (["--metric", "overlop"], 1, "did you mean 'overlap'"),
        (["--against", "mlp"], 1, "no evaluated policy is 'mlp'"),
    ],
)
def test_bad_arguments(words, code, said, runs, capfd):
    assert main(["compare", "method", *words]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err


def test_an_unknown_evaluation(runs, capfd):
    assert main(["compare", "methode"]) == 1
    assert "did you mean 'method'?" in capfd.readouterr().err
