"""How commands end when they fail or are interrupted."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from lwdctl.artifacts.manifest import recording
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli import commands
from lwdctl.cli.failures import report_threads
from lwdctl.cli.main import main
from lwdctl.core.registry import Registry


@pytest.fixture(autouse=True)
def _toys(toy_stages, workspace_path):
    pass


def test_user_error(capfd, workspace_path):
    assert main(["sow", "x", "--fail", "user", "-q"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith("error: plot 3 is a lake\nhint: drain it\n")
    assert not list(workspace_path.rglob("*.json"))


def test_bug(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["sow", "x", "--fail", "bug", "-q"]) == 3
    err = capfd.readouterr().err
    assert "error: unexpected RuntimeError: impossible" in err
    assert "this is a bug in lwdctl" in err
    assert "Traceback" not in err
    (file,) = Path(tmp_path).glob("lwdctl-traceback-*.txt")
    assert str(file) in err
    text = file.read_text()
    assert "lwdctl sow x --fail bug" in text
    assert "RuntimeError: impossible" in text


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("seen['obs']", 1, "error: KeyError: 'obs' (in act of {file}, line 2)\nhint: this is code"),
        ("json.loads('{')", 1, "error: JSONDecodeError: Expecting"),
        ("registry.is_import_path(5)", 3, "hint: this is a bug in lwdctl"),
    ],
)  # fmt: skip
def test_an_error_of_code_outside_says_where_it_was_raised(
    capfd, monkeypatch, tmp_path, body, code, says
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = tmp_path / "robots.py"
    head = "import json; from lwdctl.core import registry"
    file.write_text(f"{head}\ndef act(seen): return {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "robots", raising=False)

    def command():
        Registry("policy", {}, import_paths=True).load("robots:act")({})

    monkeypatch.setitem(sys.modules, "toy", types.ModuleType("toy"))
    command.__module__, sys.modules["toy"].command = "toy", command
    monkeypatch.setitem(commands.COMMANDS.rows, "toy", commands.Row("toy:command", ""))
    assert main(["toy"]) == code
    assert says.format(file=file) in capfd.readouterr().err


def test_bug_with_debug_prints_the_traceback(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["sow", "x", "--fail", "bug", "--debug"]) == 3
    assert "Traceback" in capfd.readouterr().err


def test_interrupt_of_a_plain_stage(capfd):
    assert main(["sow", "x", "--fail", "interrupt"]) == 130
    err = capfd.readouterr().err
    assert "error: interrupted" in err
    assert "run it again: lwdctl sow x --fail interrupt" in err


def test_interrupt_of_a_resumable_stage_and_its_resumption(capfd, workspace_path):
    main(["sow", "x", "-q"])
    assert main(["grow", "--fail", "checkpoint"]) == 130
    hint = "resume from the last checkpoint with: lwdctl grow --fail checkpoint --resume\n"
    assert hint in capfd.readouterr().err
    assert len(list(workspace_path.glob("plant/field/.partial-*"))) == 1
    assert main(["grow", "--fail", "checkpoint", "--resume"]) == 0
    assert not list(workspace_path.glob("plant/field/.partial-*"))
    assert (workspace_path / "plant/field/v0001/manifest.json").is_file()


def test_interrupt_before_the_first_checkpoint_says_that_nothing_is_kept(capfd, workspace_path):
    main(["sow", "x", "-q"])
    main(["grow", "--fail", "checkpoint", "-q"])  # another run, which is kept
    capfd.readouterr()
    words = ["grow", "--fail", "early", "--workspace", str(workspace_path)]
    assert main(words) == 130
    hint = "no checkpoint was written yet, so nothing is kept; run it again: lwdctl grow --fail "
    assert hint in (err := capfd.readouterr().err)
    assert "--resume" not in err


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_interrupt_of_a_run_that_was_resumed(capfd, workspace_path, has_checkpoint):
    main(["sow", "x", "-q"])
    workspace = Workspace(workspace_path)
    with (
        recording(command="lwdctl grow --fail early"),
        workspace.begin(
            "plant", "field", config={"days": 10, "fail": "early"}, inputs=workspace.artifacts()
        ) as run,
    ):
        run.keep = True
        if has_checkpoint:
            (run.checkpoints / "1").write_text("half way")
    capfd.readouterr()
    assert main(["grow", "--resume", "--fail", "early"]) == 130
    said = "resume from the last checkpoint with" if has_checkpoint else "is kept; continue with"
    assert f"{said}: lwdctl grow --fail early --resume\n" in capfd.readouterr().err


def test_interrupt_of_a_resumption_of_nothing(capfd, monkeypatch, workspace_path):
    """It ended before it could say that there is nothing to resume."""

    def interrupt(**settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("lwdctl.cli.generate.make_progress", interrupt)
    assert main(["grow", "--resume"]) == 130
    assert capfd.readouterr().err.endswith("nothing is kept; run it again: lwdctl grow\n")
    other = Workspace(workspace_path).begin("plant", "other", config={})
    with other:
        assert main(["grow", "--resume"]) == 130
    assert "if there is one, continue with: lwdctl grow --resume\n" in capfd.readouterr().err


def test_resuming_with_other_settings_names_the_command_that_resumes(capfd):
    main(["sow", "x", "-q"])
    main(["grow", "--fail", "checkpoint", "-q"])
    capfd.readouterr()
    assert main(["grow", "--fail", "checkpoint", "--days", "3", "--resume"]) == 1
    error, hint = capfd.readouterr().err.splitlines()[-2:]
    assert "differs in days (10, now 3)" in error
    assert hint.endswith("resume this one: lwdctl grow --fail checkpoint -q --resume")


def test_a_full_disk_is_the_users_to_mend(capfd, monkeypatch):
    def full(**settings):
        raise OSError(28, "No space left on device", "/data/x")

    monkeypatch.setattr("lwdctl.cli.generate.make_progress", full)
    assert main(["sow", "x"]) == 1
    assert "No space left on device" in capfd.readouterr().err


def out_of_memory(how):
    """Fail as Python, NumPy, and torch on a CPU and on a GPU do."""
    if how == "numpy":
        np.zeros(2**60, np.uint8)
    if how == "torch":
        torch.zeros(2**60, dtype=torch.uint8)
    if how == "cuda":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    return bytearray(2**62)


@pytest.mark.parametrize("how", ["python", "numpy", "torch", "cuda"])
def test_too_little_memory_is_the_users_to_mend(capfd, monkeypatch, how):
    monkeypatch.setattr("lwdctl.cli.generate.make_progress", lambda **_: out_of_memory(how))
    assert main(["sow", "x"]) == 1
    error, hint = capfd.readouterr().err.splitlines()
    assert error.startswith("error: not enough memory: ")
    assert "smaller sizes" in hint


def test_a_thread_that_cannot_write_is_not_reported_beside_the_command(capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # restored at the end
    report_threads()

    def run(error):
        def fail():
            raise error

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return capfd.readouterr().err

    assert run(OSError(28, "No space left on device")) == ""
    assert "RuntimeError: other" in run(RuntimeError("other"))


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR])
def test_a_path_that_the_system_refuses_is_the_users_to_mend(capfd, monkeypatch, number):
    def refused(**settings):
        raise OSError(number, os.strerror(number), "/data/\x1b[2J" + "v" * 5000)

    monkeypatch.setattr("lwdctl.cli.generate.make_progress", refused)
    assert main(["sow", "x"]) == 1
    error, hint = capfd.readouterr().err.splitlines()
    assert error.startswith("error: cannot use the path /data/\\x1b[2Jvvv")
    assert error.endswith(os.strerror(number))
    assert len(error) < 500
    assert hint == "hint: give another path"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(number, code, tmp_path):
    program = textwrap.dedent("""
        import sys, time
        from lwdctl.cli import commands
        from lwdctl.cli.main import main
        def command():
            try:
                print("ready", flush=True)
                time.sleep(60)
            finally:
                print("cleaned up", flush=True)
        command.__module__ = "sleepy"
        sys.modules["sleepy"] = type(sys)("sleepy")
        sys.modules["sleepy"].command = command
        commands.COMMANDS.rows["sleep"] = commands.Row("sleepy:command", "sleeps")
        sys.exit(main(["sleep"]))
    """)
    environment = {**os.environ, "LWDCTL_WORKSPACE": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "cleaned up" in out
    assert "hint: nothing was kept; run it again" in err
    assert "Traceback" not in err


def test_reader_that_goes_away_makes_no_noise():
    program = "import sys; from lwdctl.cli.main import main; sys.exit(main(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert err == b""
