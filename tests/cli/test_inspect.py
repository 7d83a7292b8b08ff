"""`lwdctl inspect`: options, text, JSON, page and exit codes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import h5py
import numpy as np
import pytest

import lwdctl
from lwdctl.cli.main import main
from lwdctl.core.progress import SilentProgress


def write_robomimic(path, episodes=6, task="Reach", extra=None):
    """Write a robomimic file of an unknown robot; actions are the steps of the position."""
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        for index in range(episodes):
            demo = file.create_group(f"data/demo_{index}")
            demo.attrs["operator"] = "ann" if index % 2 else "bob"
            demo.attrs["task"] = task
            position = np.cumsum(rng.uniform(-0.9, 0.9, size=(11 + index, 2)), axis=0)
            demo["obs/position"] = position[:-1]
            demo["obs/camera"] = np.zeros((10 + index, 32, 32, 3), np.uint8)
            demo["actions"] = np.diff(position, axis=0)
            demo["rewards"] = np.full(10 + index, float(index))
            demo["dones"] = np.arange(10 + index) == 9 + index
            for key, values in (extra or {}).items():
                demo[key] = values(10 + index)
    return path


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    return write_robomimic(tmp_path / "my robot.hdf5")


def test_the_text_says_what_is_in_the_file(file, capfd):
    assert main(["inspect", str(file), "-q"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == str(file)
    assert lines[1].startswith("format robomimic, recognized by data/demo_0/actions (HDF5 file, ")
    assert "episodes 6 with 75 steps" in lines
    assert "task Reach" in lines
    assert "bob 3 36 0 24 56 -" in lines  # returns 0, 2 * 12, 4 * 14
    assert any(line.startswith("position network input 2 ") for line in lines)
    assert "data/demo_*/actions T x 2 float64 low-dimensional action" in lines
    assert "data/demo_*/obs/camera T x 32 x 32 x 3 uint8 image left out: a picture" in lines
    assert lines[-2:] == ["Ingest it with", f"lwdctl ingest '{file}'"]
    assert main([*shlex.split(lines[-1])[1:], "-q"]) == 0


def test_progress_goes_to_stderr(file, capfd):
    assert main(["inspect", str(file)]) == 0
    out, err = capfd.readouterr()
    assert "inspect my robot.hdf5: 6/6" in err
    assert "inspect my robot.hdf5" not in out


def test_json_is_one_object(file, capfd):
    other = write_robomimic(file.with_name("other.hdf5"), task="Push")
    assert main(["inspect", str(file), str(other), "--json", "-q"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert (answer["artifact"], answer["path"]) == (None, None)
    summary = answer["summary"]
    assert (summary["agree"], summary["disagreement"]) == (True, "")
    assert summary["command"] == f"lwdctl ingest '{file}' {other}"
    first, second = summary["files"]
    assert (first["format"], first["episodes"], first["steps"]) == ("robomimic", 6, 75)
    assert second["statistics"]["tasks"] == {"Push": 6}
    assert first["observations"] == [{"name": "position", "size": 2, "network": True}]
    (camera,) = [item for item in first["arrays"] if item["key"] == "data/demo_*/obs/camera"]
    assert camera["shape"] == [None, 32, 32, 3]
    assert (camera["kind"], camera["count"]) == ("image", 6)


def test_every_documented_key_is_in_the_json(file, capfd):
    main(["inspect", str(file), "--json", "-q"])
    found = set(json.loads(capfd.readouterr().out)["summary"]["files"][0])
    main(["inspect", "--help"])
    text = capfd.readouterr().out
    described = text[text.index("one object per path") : text.index("agree")]
    assert set(re.findall(r"\w+", described.partition(":")[2])) == found


def test_options_of_ingest_are_options_of_inspect(file, capfd):
    options = ["--label", "mine", "--max-steps", "12", "--observation-keys", "position"]
    assert main(["inspect", "robomimic", str(file), *options, "-q"]) == 0
    out = capfd.readouterr().out
    assert "step limit 12" in out
    assert f"lwdctl ingest robomimic '{file}' --label mine" in out
    assert main(["inspect", str(file), "--observation-keys", "positon", "-q"]) == 1
    out, err = capfd.readouterr()
    assert "no observation 'positon'" in out
    assert "data/demo_*/obs/position" in out
    assert err.startswith(f"error: {file}: data/demo_0/obs: no observation 'positon'\nhint: ")
    assert main(["inspect", str(file), "--max-steps", "none"]) == 0
    assert main(["inspect", str(file), "--max-steps", "many"]) == 2


def test_a_refused_file_is_shown_and_the_exit_code_is_1(file, capfd):
    with h5py.File(file, "a") as content:
        del content["data/demo_3/actions"]
    assert main(["inspect", str(file), "--json", "-q"]) == 1
    out, err = capfd.readouterr()
    (found,) = json.loads(out)["summary"]["files"]
    assert not found["can_be_ingested"]
    assert "data/demo_3/actions: is missing" in found["error"]
    assert {item["key"] for item in found["arrays"]} >= {"data/demo_*/obs/position"}
    assert "data/demo_3/actions: is missing" in err


def test_one_refused_file_of_two(file, capfd):
    missing = file.with_name("none.hdf5")
    assert main(["inspect", str(file), str(missing), "-q"]) == 1
    out, err = capfd.readouterr()
    assert "episodes     6 with 75 steps" in out
    assert f"1 of 2 files cannot be ingested; the first: {missing}: no such file" in err


@pytest.mark.parametrize("command", ["inspect", "ingest"])
@pytest.mark.parametrize(
    ("words", "reference"),
    [
        (["evaluation/quickstart"], "evaluation/quickstart"),
        (["robomimic", "snippets/quickstart:v2"], "snippets/quickstart:v2"),
        (["runs/snippets/quickstart"], "snippets/quickstart --workspace runs"),
        (["runs/snippets/quickstart/v0001"], "snippets/quickstart:v1 --workspace runs"),
        (["robomimic", "runs/snippets/quickstart"], "snippets/quickstart --workspace runs"),
    ],
)
def test_artifacts_are_shown_not_read(tmp_path, monkeypatch, capfd, command, words, reference):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/snippets/quickstart/v0001").mkdir(parents=True)
    assert main([command, *words, "-q"]) == 1
    hint = f"hint: if it is an artifact of the workspace: lwdctl show {reference}\n"
    assert capfd.readouterr().err.endswith(hint)


def test_warnings_alone_are_no_failure(file, capfd):
    # Rows that jump: two episodes that lie in one.
    with h5py.File(file, "a") as content:
        content["data/demo_2/obs/position"][6:] += 500.0
    code = main(["inspect", str(file), "--json", "-q"])
    found = json.loads(capfd.readouterr().out)["summary"]["files"][0]["findings"]
    assert {item["severity"] for item in found} >= {"warning"}
    assert "error" not in {item["severity"] for item in found}
    assert code == 0


@pytest.mark.parametrize("command", ["inspect", "ingest"])
@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["robomimc"], "no data format has that name", "did you mean robomimic (a data format)?"),
        (["x"], "no data format has that name", "data formats: robomimic, d4rl"),
        (["my robt.hdf5"], "no such file or directory", "did you mean my robot.hdf5?"),
        (["robomimic", "my robt.hdf5"], "no such file or direct", "did you mean my robot.hdf5?"),
    ],
)
def test_a_word_that_is_neither_path_nor_format(
    file, monkeypatch, capfd, command, words, message, hint
):
    monkeypatch.chdir(file.parent)
    assert main([command, *words, "-q"]) == 1
    err = capfd.readouterr().err
    assert f"error: {words[-1]}: no such file or directory" in err
    assert message in err
    assert f"hint: {hint}" in err


def test_a_hint_that_is_a_command_works(file, monkeypatch, capfd):
    monkeypatch.chdir(file.parent)
    subprocess.run(["tar", "-czf", "my data.tgz", file.name], check=True)
    file.unlink()
    assert main(["inspect", "my data.tgz", "-q"]) == 1
    hint = capfd.readouterr().err.partition("hint: ")[2].strip()
    assert hint == "tar -xf 'my data.tgz'"
    subprocess.run(shlex.split(hint), check=True)
    assert main(["inspect", file.name, "-q"]) == 0


def test_names_in_a_file_cannot_write_to_the_terminal(file, capfd):
    with h5py.File(file, "a") as content:
        content["data/demo_0"].attrs["operator"] = "\x1b[31m<b>eve</b>"
        content.move("data/demo_5/obs/position", "data/demo_5/obs/\x1b[2Jx")
    assert main(["inspect", str(file), "--label", "\x1b[0m", "-q"]) == 1
    assert main(["inspect", str(file), "--json", "-q"]) == 1
    assert main(["ingest", str(file), "-q", "--observation-keys", "\x1b[2Jy"]) == 1
    for text in capfd.readouterr():
        assert "\x1b" not in text
        assert r"\x1b[" in text


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_escapes_names(file, capfd):
    write_robomimic(file, task="<script>alert(1)</script> & $x^$", extra={"obs/a<b": np.ones})
    page = file.with_name("page.html")
    assert main(["inspect", str(file), "--html", str(page), "-q"]) == 0
    out = capfd.readouterr().out
    assert out.endswith(f"\npage: {page}\n")
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x^$" in text
    assert "default-src 'none'" in text
    outside = re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:|#)[^\"']*|url\(|@import", text)
    assert outside == []
    assert text.count("<img ") == 4
    for caption in ("Episode lengths", "Returns per label", "Recorded actions", "Actions of one"):
        assert caption in text
    assert f"lwdctl ingest &#39;{file}&#39;" in text
    first = page.read_bytes()
    assert main(["inspect", str(file), "--html", str(page), "-q"]) == 0
    assert page.read_bytes() == first


@pytest.mark.slow
def test_the_page_of_refused_files_is_written_too(file, tmp_path, capfd):
    (tmp_path / "notes.txt").write_text("x")
    page = tmp_path / "page.html"
    words = ["inspect", str(file), str(tmp_path / "notes.txt"), "--html", str(page), "--json"]
    assert main([*words, "-q"]) == 1
    assert json.loads(capfd.readouterr().out)["path"] == str(page)
    text = page.read_text()
    assert "is a text file, of no data format that is known" in text
    assert "Not one store:" in text
    assert text.count("<section") == 2


def test_a_page_that_cannot_be_written_is_an_error_before_the_work(file, capfd):
    assert main(["inspect", str(file), "--html", str(file.parent), "-q"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "it is a directory" in err
    assert "hint: name another file with --html FILE" in err


def test_the_same_from_python(file):
    found = lwdctl.inspect(file, progress=SilentProgress(), max_steps=9)
    assert isinstance(found, lwdctl.Inspections)
    (one,) = found.files
    assert isinstance(one, lwdctl.Inspection)
    assert (one.format, one.episodes) == ("robomimic", 6)
    assert one.statistics["length"]["limit"] == 9
    assert "episodes     6 with 75 steps" in str(found)
    assert found.command == f"lwdctl ingest '{file}' --max-steps 9"
    assert lwdctl.inspect("d4rl", file, progress=SilentProgress()).files[0].recognized_by == ""
    with pytest.raises(lwdctl.ConfigError, match="unknown setting 'max_step'"):
        lwdctl.inspect(file, max_step=3)
    with pytest.raises(lwdctl.DataError, match="no path"):
        lwdctl.inspect()


def test_an_unknown_environment_is_refused_as_ingest_refuses_it(file, capfd):
    for command in ("inspect", "ingest"):
        assert main([command, str(file), "--env", "robosuit/Lift", "-q"]) == 1
        err = capfd.readouterr().err
        assert "no environment is called 'robosuit'" in err
        assert "did you mean 'robosuite'?" in err
