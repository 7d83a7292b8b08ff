import json

import pytest

from lwdctl.cli.main import main

pytestmark = pytest.mark.usefixtures("toy_stages", "workspace_path")


def manifest(workspace_path, kind, name, version=1):
    return json.loads((workspace_path / kind / name / f"v{version:04d}/manifest.json").read_text())


def answer(capfd):
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert len(lines) == 1, out
    return json.loads(lines[0]), err


def test_defaults_come_from_the_dataclass(workspace_path):
    assert main(["sow", "wheat", "--quiet"]) == 0
    config = manifest(workspace_path, "seed", "field")["config"]
    assert config == {
        "field_kind": "wheat", "plots": [], "rows": 3, "sizes": [4, 5], "depth": 0.5,
        "tool": "hand", "limit": None, "water": True, "fail": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "own", "shared"),
    [(["train-vae"], "--snippet-length", "--learning-rate"),
     (["analyze", "diversity"], "--draws", "--num-envs")],
)  # fmt: skip
def test_a_stages_own_settings_come_first_in_its_help(capfd, command, own, shared):
    assert main([*command, "--help"]) == 0
    out = capfd.readouterr().out
    assert 0 < out.index(own) < out.index(shared)


@pytest.mark.parametrize(
    "words", [[], ["list"], ["sow"], ["analyze"], ["analyze", "latents"], ["export", "policy"]]
)
def test_the_short_option_shows_the_help_of_every_command(capfd, words):
    assert main([*words, "-h"]) == 0
    short = capfd.readouterr().out
    assert main([*words, "--help"]) == 0
    assert capfd.readouterr().out == short
    assert short.startswith("Usage: lwdctl")


def test_every_option_form_arrives(workspace_path):
    words = ["sow", "rye", "a,b", "c", "--rows", "5", "--sizes", "7,8", "--sizes", "9"]
    words += ["--depth", "2", "--tool", "plough", "--limit", "6", "--no-water", "--name", "far"]
    assert main([*words, "-q"]) == 0
    config = manifest(workspace_path, "seed", "far")["config"]
    assert config == {
        "field_kind": "rye", "plots": ["a,b", "c"], "rows": 5, "sizes": [7, 8, 9], "depth": 2.0,
        "tool": "plough", "limit": 6, "water": False, "fail": "",
    }  # fmt: skip


def test_help_shows_defaults_choices_bounds_and_inputs(capfd):
    assert main(["sow", "--help"]) == 0
    text = capfd.readouterr().out
    assert "FIELD_KIND" in text
    assert "[hand|plough]" in text
    assert "[default: 0.5]" in text
    assert ">= 1 and <= 9" in text
    assert "--water" in text
    assert "--no-water" in text
    assert "--resume" not in text
    assert main(["reap", "--help"]) == 0
    text = capfd.readouterr().out
    assert "--seed REF" in text
    assert "--plant REF" in text
    assert main(["grow", "--help"]) == 0
    assert "--resume" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sow"], "missing argument 'FIELD_KIND'"),
        (["sow", "x", "--rows", "many"], "'rows' takes int, not 'many'"),
        (["sow", "x", "--rows", "0"], "'rows' must be at least 1"),
        (["sow", "x", "--sizes", "1,b"], "'sizes' takes int, not 'b'"),
        (["sow", "x", "--tool", "plow"], "did you mean 'plough'?"),
        (["sow", "x", "--rose", "2"], "no such option: --rose\nhint: did you mean --rows"),
        (["sew", "x"], "did you mean 'sow'?"),
    ],
)
def test_bad_arguments_are_usage_errors(words, said, capfd, workspace_path):
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said.lower() in err.lower()
    assert "hint: " in err
    assert not workspace_path.exists()


def test_json_is_the_only_thing_on_stdout(capfd, workspace_path):
    assert main(["sow", "wheat", "--json"]) == 0
    told, err = answer(capfd)
    assert told == {
        "schema_version": 2,
        "artifact": "seed/field:v1",
        "path": str(workspace_path / "seed/field/v0001"),
        "summary": {"rows": 3, "tool": "hand"},
    }
    assert "a banner that a library prints" in err


def test_an_unnamed_input_is_the_newest_and_is_named_on_stderr(capfd):
    main(["sow", "wheat", "-q"])
    main(["sow", "wheat", "-q", "--rows", "5"])
    capfd.readouterr()
    assert main(["grow"]) == 0
    out, err = capfd.readouterr()
    assert "reading seed/field:v2 (the newest)" in err
    assert "plant/field:v1" in out
    assert "days" in out


def test_other_inputs_come_from_the_lineage(capfd):
    main(["sow", "wheat", "-q"])
    main(["grow", "-q"])
    main(["sow", "wheat", "-q", "--rows", "5"])
    capfd.readouterr()
    assert main(["reap"]) == 0
    err = capfd.readouterr().err
    assert "reading seed/field:v1 (in the lineage of plant/field:v1)" in err


def test_an_input_of_another_lineage_is_refused(capfd):
    main(["sow", "wheat", "-q"])
    main(["grow", "-q"])
    main(["sow", "wheat", "-q", "--rows", "5"])
    capfd.readouterr()
    assert main(["reap", "--seed", "field:v2"]) == 1
    err = capfd.readouterr().err
    assert "no finished plant in " in err
    assert " derives from seed/field:v2" in err
    assert main(["reap", "--seed", "field:v2", "--plant", "field:v1"]) == 1
    err = capfd.readouterr().err
    assert "plant/field:v1 derives from seed/field:v1, not from seed/field:v2" in err
    assert main(["reap", "--seed", "field:v1", "-q"]) == 0


def test_the_newest_is_looked_for_among_what_derives_from_a_named_input(capfd):
    for name in ("north", "south"):
        main(["sow", "wheat", "-q", "--name", name])
        main(["grow", "-q", "--seed", name, "--name", name])
    capfd.readouterr()
    assert main(["reap", "--seed", "north"]) == 0
    err = capfd.readouterr().err
    assert "reading plant/north:v1 (the newest that derives from seed/north:v1)" in err


def test_two_lineages_need_a_choice(capfd):
    for name in ("north", "south"):
        main(["sow", "wheat", "-q", "--name", name])
    capfd.readouterr()
    assert main(["grow"]) == 1
    err = capfd.readouterr().err
    assert "north" in err
    assert "south" in err
    assert "--run" in err
    assert main(["grow", "--run", "north"]) == 0
    assert "reading seed/north:v1" in capfd.readouterr().err


def test_nothing_to_read(capfd, workspace_path):
    assert main(["grow"]) == 1
    err = capfd.readouterr().err
    assert f"no finished seed in {workspace_path}: there is no such directory" in err
    workspace_path.mkdir()
    assert main(["grow"]) == 1
    assert "no such directory" not in capfd.readouterr().err


def test_results_are_printed_as_a_table(capfd):
    for words in (["sow", "wheat"], ["grow"], ["reap"]):
        assert main([*words, "-q"]) == 0
    out = capfd.readouterr().out
    row = next(line for line in out.splitlines() if " all " in line)
    assert "0.8 [0.700, 0.900]" in row
    assert "max_overlap" in out
