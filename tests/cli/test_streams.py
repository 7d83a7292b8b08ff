"""Standard streams that are closed, full or unread, and encodings that lack characters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lwdctl.cli.main import main

TRAINING = (
    "train-vae --updates 20 --snippet-length 8 --policy-width 8 --decoder xs --device cpu"
    " --threads 1"
)


def shell(line, **options):
    """Run a line in which `lwdctl` is this package's; return the finished process."""
    command = f'lwdctl() {{ "{sys.executable}" -m lwdctl "$@"; }}\n{line}'
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, env=environment,
        timeout=120, **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "list --json"])
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
)
def test_a_result_that_cannot_be_written_is_an_error(tmp_path, command, redirection, reason):
    done = shell(f"lwdctl {command} {redirection}", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"error: cannot write to stdout: {reason}"
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>/dev/full", "<&- 2>&-"])
def test_messages_that_cannot_be_written_change_nothing(tmp_path, redirection):
    done = shell(f"lwdctl list {redirection}", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("lwd-runs does not exist: name its directory with --workspace")
    assert shell(f"lwdctl lst {redirection}", cwd=tmp_path).returncode == 2
    assert shell(f"lwdctl verify {redirection}", cwd=tmp_path).returncode == 1


def test_all_streams_closed(tmp_path):
    done = shell("lwdctl list <&- >&- 2>&-", cwd=tmp_path)
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "list"])
def test_a_reader_that_goes_away(tmp_path, command):
    line = f"lwdctl {command} | true; echo ${{PIPESTATUS[0]}}"
    done = shell(line, cwd=tmp_path)
    assert done.stdout in ("141\n", "0\n")  # 0 where the reader left after the last write
    assert done.stderr == ""


def closed_pipe():
    """Return the writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def run(line, environment, **streams):
    return subprocess.run(
        [sys.executable, "-m", "lwdctl", *line.split()], env=environment, check=False, **streams
    ).returncode


@pytest.mark.slow
def test_a_published_artifact_whose_numbers_nobody_reads(ingested, recording, tmp_path):
    line = f"ingest {recording} --name second -q"
    assert run(line, ingested, stdout=closed_pipe(), stderr=subprocess.DEVNULL) == 141
    assert (tmp_path / "runs/snippets/second/v0001/manifest.json").is_file()
    line = f"ingest {recording} --name third -q"
    with Path("/dev/full").open("wb") as full:
        assert run(line, ingested, stdout=full, stderr=subprocess.DEVNULL) == 1
    assert (tmp_path / "runs/snippets/third/v0001/manifest.json").is_file()
    assert list(tmp_path.rglob(".partial-*")) == []


@pytest.mark.slow
def test_a_training_goes_on_when_nobody_reads_its_progress(ingested, tmp_path, monkeypatch):
    assert run(TRAINING, ingested, stdout=subprocess.DEVNULL, stderr=closed_pipe()) == 0
    (manifest,) = tmp_path.glob("runs/vae/*/v0001/manifest.json")
    assert json.loads(manifest.read_text())["summary"]["updates"] == 20


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.slow
@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "latin-1:strict"}])
def test_characters_that_an_encoding_lacks(tmp_path, environment):
    name = "r\u00e9sultats-\u4e2d"
    for command, code in (("list", 0), ("list --json", 0), ("verify", 1)):
        done = subprocess.run(
            [sys.executable, "-m", "lwdctl", *command.split(), "--workspace", name],
            env={**os.environ, **environment}, cwd=tmp_path, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
        if command == "list --json":
            path = json.loads(done.stdout)["path"]
            assert path.encode(errors="surrogateescape") == name.encode()
        else:
            assert b"sultats-" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_path_that_is_not_unicode(tmp_path):
    folder = os.fsdecode(b"\xff\xfe")
    for command, code in (("list --json", 0), ("verify", 1)):
        arguments = [*command.split(), "--workspace", folder]
        done = subprocess.run(
            [sys.executable, "-m", "lwdctl", *arguments], cwd=tmp_path, capture_output=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        if command == "list --json":
            assert json.loads(done.stdout)["path"] == folder
        else:
            assert rb"\udcff\udcfe" in done.stdout + done.stderr


def test_a_full_temporary_directory_does_not_hide_a_bug(toy_stages, capfd, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    assert main(["sow", "x", "--fail", "bug", "-q"]) == 3
    lines = capfd.readouterr().err.splitlines()
    assert lines[-2] == "error: unexpected RuntimeError: impossible"
    assert lines[-1].endswith("report it with the traceback that --debug prints")


def test_verify_of_no_workspace(tmp_path, capfd):
    assert main(["verify", "--workspace", str(tmp_path / "typo")]) == 1
    assert f"error: there is no workspace at {tmp_path / 'typo'}" in capfd.readouterr().err
    assert main(["verify", "-q", "--workspace", str(tmp_path)]) == 0
    assert capfd.readouterr().out == f"{tmp_path} is empty\n"
