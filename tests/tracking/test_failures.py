"""Trackers that fail: the run goes on, one line says how to send it later.

Packages called `wandb` that stand on the path before the real one fail in every way.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lwdctl.core.errors import (
    ArtifactError,
    ConfigError,
    LwdctlError,
    MissingExtraError,
    install_extra,
)
from lwdctl.tracking import session, worker
from lwdctl.tracking.replay import replay
from lwdctl.tracking.run import run_in_memory
from lwdctl.tracking.tensorboard_tracker import TensorBoardTracker
from lwdctl.tracking.tracking import Tracking

sys.path.insert(0, str(Path(__file__).parent))
from event_files import curves, expected, only_run, read
from toy_runs import ROWS, write_log

sys.path.pop(0)

FAKE = """
import os, sys, time, types, builtins
SECRET = os.environ.get("WANDB_API_KEY", "")
def fails(where):
    if where != {where!r}:
        return
    {what}
class Run:
    dir, step, summary = {folder!r}, 0, {{}}
    def log(self, values, step):
        fails("log")
        with open(os.path.join(self.dir, "log"), "a") as file:
            file.write(f"{{step}}\\n")
    def finish(self, exit_code):
        fails("finish")
def init(**settings):
    fails("init")
    return Run()
"""
RAISES = 'raise RuntimeError(f"401 for key {SECRET} at https://me:hunter22@host.org/x\\nmore")'
HANGS = "time.sleep(3600)"
DIES = "os._exit(7)"
IS_FULL = 'raise OSError(28, "No space left on device", "/tmp/x")'
KILLED = "os.kill(os.getpid(), 9)"


@pytest.fixture
def fake(runs, tmp_path, monkeypatch):
    """Return a function that puts a package `wandb` before the real one."""
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))

    def make(what="pass", where=""):
        if what.endswith(HANGS):
            monkeypatch.setattr(session, "SILENT_SECONDS", 1.5)
            monkeypatch.setattr(session, "INTERRUPTED_SECONDS", 1.5)
        (tmp_path / "fake").mkdir(exist_ok=True)
        text = FAKE.format(where=where, what=what, folder=str(tmp_path))
        (tmp_path / "fake" / "wandb.py").write_text(text)
        return Tracking.of("wandb")

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "where"),
    [
        (RAISES, "init"),
        (RAISES, "log"),
        (RAISES, "finish"),
        (HANGS, "init"),
        (HANGS, "finish"),
        (DIES, "log"),
    ],
)
def test_a_tracker_that_fails_never_ends_a_run(runs, fake, monkeypatch, where, what):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789secret")
    tracking = fake(what, where)
    artifact = runs.train(tracking)
    artifact.check()
    (warning,) = runs.progress.messages
    assert "\n" not in warning
    assert "0123456789secret" not in warning
    assert "hunter22" not in warning
    command = shlex.split(warning.partition("ended: ")[2])
    assert command[:2] == ["lwdctl", "track"]
    assert command[3:] == ["--to", "wandb", "--workspace", str(runs.workspace.root)]
    if what != RAISES:
        return
    fake()
    sent = replay(command[2], runs.workspace, tracking, runs.progress)
    assert sent.reference == artifact.reference


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", [IS_FULL, KILLED, "raise SystemExit(0)", "raise KeyboardInterrupt"]
)
def test_however_it_fails(runs, fake, what):
    runs.train(fake(what, "log"))
    assert len(runs.progress.warnings) == 1


@pytest.mark.slow
def test_a_hung_tracker_is_dropped_while_the_run_goes_on(runs, fake):
    tracking = fake(HANGS, "init")
    with (
        runs.workspace.begin("vae", "toy", config={}, inputs=[runs.snippets]) as output,
        tracking.follow(output, runs.progress),
    ):
        write_log(output.path / "metrics.jsonl", ROWS)
        until = time.monotonic() + 60
        while not runs.progress.warnings and time.monotonic() < until:
            time.sleep(0.1)
        (warning,) = runs.progress.warnings
        output.publish({}, seed=0)
    assert runs.progress.warnings == [warning]


def test_a_tracker_of_a_long_log_answers_while_it_waits(runs, tmp_path, monkeypatch):
    """It reads a log the more rarely the longer that takes."""
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(worker, "READING_FRACTION", 1e-9)
    write_log(tmp_path / "metrics.jsonl", ROWS)
    run = run_in_memory("vae", "pusht", {})
    reading, ending = os.pipe()
    with open(reading, "rb") as pipe, (tmp_path / "said").open("w+") as out:  # noqa: PTH123
        order = worker.Order("tensorboard", run, str(tmp_path), str(tmp_path))
        shown = worker.Worker(order, TensorBoardTracker(), pipe, out)
        thread = threading.Thread(target=shown.follow, daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while (tmp_path / "said").read_text().count("alive") < 20 and time.monotonic() < until:
            time.sleep(0.05)
        os.write(ending, b'{"state": "interrupted", "directory": "%s"}\n' % os.fsencode(tmp_path))
        thread.join(60)
        os.close(ending)
    assert (tmp_path / "said").read_text().count("alive") >= 20


def test_the_others_go_on(runs, fake):
    fake(RAISES, "log")
    runs.train(Tracking.of(("wandb", "tensorboard")))
    (warning,) = runs.progress.warnings
    assert "--to wandb" in warning
    assert len(list(runs.workspace.root.glob("tensorboard/vae-toy-*/events*"))) == 1


@pytest.mark.slow
def test_the_error_of_a_run_is_its_own(runs, fake):
    tracking = fake(HANGS, "finish")

    def diverge():
        with (
            runs.workspace.begin("vae", "toy", config={}, inputs=[runs.snippets]) as output,
            tracking.follow(output, runs.progress),
        ):
            write_log(output.path / "metrics.jsonl", ROWS)
            raise LwdctlError("training diverged")

    with pytest.raises(LwdctlError, match="training diverged"):
        diverge()


@pytest.mark.slow
def test_a_replay_that_fails_is_an_error(runs, fake):
    runs.train()
    with pytest.raises(LwdctlError, match=r"wandb: OSError: .* No space left"):
        replay("vae/toy", runs.workspace, fake(IS_FULL, "finish"), runs.progress)
    with pytest.raises(LwdctlError, match="not answered"):
        replay("vae/toy", runs.workspace, fake(HANGS, "init"), runs.progress, timeout=1.0)
    assert runs.progress.warnings == []


@pytest.mark.slow
def test_what_was_killed_leaves_no_process(runs, fake, tmp_path, monkeypatch):
    note = "open(os.path.join(Run.dir, 'pid'), 'w').write(str(os.getpid()))"
    tracking = fake(f"{note}; {HANGS}", "finish")
    monkeypatch.setattr(session, "SILENT_SECONDS", 5.0)
    runs.train(tracking)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_wandb_does_not_wait_for_answers(runs, fake, tmp_path):
    look = (
        "open(os.path.join(Run.dir, 'seen'), 'w').write(repr((sys.stdin.isatty(),"
        " sys.stdout.isatty(), sys.stdin.read())))"
    )
    runs.train(fake(look, "init"))
    assert (tmp_path / "seen").read_text() == "(False, False, '')"


def test_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError) as caught:
        Tracking.of("tensorboard, trackio")
    assert caught.value.hint == install_extra("trackio")


def test_a_folder_that_wandb_left_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingExtraError):
        Tracking.of("wandb")


def test_names():
    with pytest.raises(ConfigError, match="no tracker is called 'wandbb'"):
        Tracking.of("wandbb")
    assert Tracking.of(["tensorboard,tensorboard", "tensorboard"]).names == ("tensorboard",)
    assert Tracking.of("").names == ()


def test_a_run_that_goes_on_is_not_replayed(runs):
    with (
        runs.workspace.begin("vae", "toy", config={}, inputs=[runs.snippets]) as output,
        pytest.raises(ArtifactError, match="still going on"),
    ):
        replay(str(output.path), runs.workspace, Tracking.of("tensorboard"), runs.progress)


def test_only_the_first_of_several_processes_reports(runs, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    runs.train(Tracking.of("tensorboard"))
    assert not (runs.workspace.root / "tensorboard").exists()


def test_a_tracker_that_nobody_listens_to_shows_what_was_logged(runs, tmp_path, monkeypatch):
    """The run's process died while the tracker read the log."""
    monkeypatch.setattr(worker.signal, "alarm", lambda seconds: None)
    write_log(tmp_path / "metrics.jsonl", ROWS)
    order = worker.Order("tensorboard", run_in_memory("vae", "", {}), str(tmp_path), str(tmp_path))
    (heard, saying), (reading, ending) = os.pipe(), os.pipe()
    os.close(heard)
    os.close(ending)
    with open(reading, "rb") as pipe, open(saying, "w", buffering=1) as out:  # noqa: PTH123
        worker.Worker(order, TensorBoardTracker(), pipe, out).follow()
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # what is left can be written
    assert curves(read(only_run(tmp_path))) == expected(ROWS)


@pytest.mark.slow
def test_a_killed_training_ends_its_trackers(runs, fake, tmp_path):
    note = "open(os.path.join(Run.dir, 'ended'), 'w').write('yes')"
    fake(note, "finish")
    script = f"""
import os, sys, time
sys.path.insert(0, {str(tmp_path / "fake")!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
from toy_runs import Runs, write_log, ROWS
from lwdctl.tracking.tracking import Tracking
from pathlib import Path
runs = Runs(Path({str(tmp_path / "other")!r}))
with runs.workspace.begin("vae", "toy", config={{}}) as output:
    with Tracking.of("wandb").follow(output, runs.progress):
        write_log(output.path / "metrics.jsonl", ROWS)
        while not os.path.exists({str(tmp_path / "log")!r}):
            time.sleep(0.1)
        os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    ended, until = tmp_path / "ended", time.monotonic() + 60
    while not (ended.exists() and ended.read_text()) and time.monotonic() < until:
        time.sleep(0.1)  # it is there before it is written
    assert ended.read_text() == "yes"
    assert (tmp_path / "log").read_text().split() == ["50", "100", "120"]
