import json

import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main


@pytest.fixture(autouse=True)
def _chain(toy_stages, workspace_path, capfd):
    for words in (["sow", "wheat"], ["grow"], ["reap"]):
        assert main([*words, "-q"]) == 0
    capfd.readouterr()


def told(capfd):
    return json.loads(capfd.readouterr().out)


def test_list(capfd, workspace_path):
    assert main(["list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "seed/field:v1", "plant/field:v1", "crop/field:v1",
    ]  # fmt: skip
    assert lines[-1].endswith("plant/field:v1")


def test_list_as_json_and_by_artifact_type(capfd, workspace_path):
    assert main(["list", "plant", "--json"]) == 0
    answer = told(capfd)
    assert answer["schema_version"] == 2
    assert answer["path"] == str(workspace_path)
    assert [item["artifact"] for item in answer["summary"]["artifacts"]] == ["plant/field:v1"]


def test_list_names_the_method_of_baselines(capfd, workspace_path):
    for method in ("mlp", "dp"):
        with Workspace(workspace_path).begin("baseline", "field", config={"method": method}) as run:
            run.publish({})
    with Workspace(workspace_path).begin("baseline", "field", config={"method": "ldp"}) as run:
        run.keep = True
    assert main(["list"]) == 0
    rows = [line.split()[:2] for line in capfd.readouterr().out.splitlines()]
    assert rows[1] == ["seed/field:v1", "-"]
    assert rows[4:] == [
        ["baseline/field:v1", "mlp"], ["baseline/field:v2", "dp"], ["baseline/field", "ldp"],
    ]  # fmt: skip
    assert main(["list", "--json"]) == 0
    summary = told(capfd)["summary"]
    assert [item["method"] for item in summary["artifacts"]] == ["", "", "", "mlp", "dp"]
    assert [item["method"] for item in summary["unfinished"]] == ["ldp"]
    assert main(["show", "baseline/field:v2"]) == 0
    assert "  method  dp" in capfd.readouterr().out


def test_list_of_an_unknown_artifact_type(capfd):
    assert main(["list", "latent"]) == 1
    assert "did you mean 'latents'" in capfd.readouterr().err


def test_list_names_damaged_and_unfinished_work(capfd, workspace_path):
    main(["grow", "--fail", "checkpoint", "-q"])
    path = workspace_path / "crop/field/v0001/manifest.json"
    path.write_text(path.read_text().replace("sampled", "Sampled"))
    capfd.readouterr()
    assert main(["list"]) == 0
    out = capfd.readouterr().out
    assert "damaged" in out
    assert "resumable" in out


def test_list_of_an_empty_workspace(capfd, tmp_path):
    (tmp_path / "none").mkdir()
    assert main(["list", "--workspace", str(tmp_path / "none")]) == 0
    assert "none is empty" in capfd.readouterr().out


@pytest.mark.parametrize("command", ["list", "gc"])
def test_a_workspace_that_does_not_exist(capfd, tmp_path, command):
    assert main([command, "--workspace", str(tmp_path / "none")]) == 0
    assert "none does not exist: name its directory with --workspace" in capfd.readouterr().out
    assert not (tmp_path / "none").exists()


def test_show(capfd):
    assert main(["show", "crop/field"]) == 0
    out = capfd.readouterr().out
    for part in ("crop/field:v1", "horizon", "plant/field:v1", "data.json", "0.8 [0.700, 0.900]"):
        assert part in out
    assert main(["show", "plant/field:v1", "--json"]) == 0
    answer = told(capfd)
    assert answer["artifact"] == "plant/field:v1"
    assert answer["summary"]["days"] == 10
    assert answer["summary"]["manifest"]["config"] == {"days": 10, "fail": ""}


def test_show_of_something_unknown(capfd):
    assert main(["show", "plant/feild"]) == 1
    assert "did you mean 'field'?" in capfd.readouterr().err


def test_lineage(capfd):
    assert main(["lineage", "plant/field"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("plant/field:v1")
    assert lines[1].startswith("  seed/field:v1")
    assert main(["lineage", "plant/field", "--json"]) == 0
    tree = told(capfd)["summary"]["lineage"]
    assert tree["inputs"][0]["artifact"] == "seed/field:v1"


def test_verify_all(capfd):
    assert main(["verify", "-q"]) == 0
    assert capfd.readouterr().out.count(" ok, ") == 3


def test_verify_finds_one_changed_byte(capfd, workspace_path):
    path = workspace_path / "plant/field/v0001/data.json"
    path.write_text(path.read_text().replace("10", "11"))
    assert main(["verify", "--json", "-q"]) == 1
    out, err = capfd.readouterr()
    summary = json.loads(out)["summary"]
    assert len(summary["verified"]) == 2
    assert "data.json" in summary["problems"][0]
    assert "data.json" in err


def test_gc_lists_what_is_left_behind_and_removes_it_only_when_told(capfd, workspace_path):
    main(["grow", "--fail", "checkpoint", "-q"])
    (half,) = workspace_path.glob("plant/field/.partial-*")
    left = half.with_name(".removed-1")
    half.rename(left)
    capfd.readouterr()
    assert main(["list", "-q"]) == 0
    assert str(left) in capfd.readouterr().out
    assert main(["gc"]) == 0
    out = capfd.readouterr().out
    assert str(left) in out
    assert "lwdctl gc --delete" in out
    assert left.exists()
    assert main(["gc", "--delete", "--json"]) == 0
    (entry,) = told(capfd)["summary"]["leftovers"]
    assert (entry["path"], entry["removed"]) == (str(left), True)
    assert not left.exists()
    assert main(["list", "plant"]) == 0  # what is finished stays
    assert "plant/field:v1" in capfd.readouterr().out
    assert main(["gc"]) == 0
    assert "nothing is left behind" in capfd.readouterr().out


def test_gc_removes_what_could_be_resumed_only_when_asked(capfd, workspace_path):
    main(["grow", "--fail", "checkpoint", "-q"])
    (half,) = workspace_path.glob("plant/field/.partial-*")
    capfd.readouterr()
    assert main(["gc", "--delete"]) == 0
    out = capfd.readouterr().out
    assert "nothing is left behind" in out
    assert "because they can be resumed: 1, " in out
    assert "lwdctl gc --resumable" in out
    assert half.exists()
    assert main(["gc", "--json"]) == 0
    summary = told(capfd)["summary"]
    assert (summary["leftovers"], summary["kept"][0]["path"]) == ([], str(half))
    assert main(["gc", "--resumable"]) == 0
    out = capfd.readouterr().out
    assert "can be freed with: lwdctl gc --resumable --delete" in out
    assert "because they" not in out
    assert main(["gc", "--delete", "--resumable"]) == 0
    assert not half.exists()
