"""A recipe as jobs of submitit on this machine: real processes, and conditions in parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.core.progress import SilentProgress
from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.recipe import read_recipe
from lwdctl.pipeline.runner import run_plan
from lwdctl.pipeline.slurm import run_as_jobs
from lwdctl.pipeline.slurm_job import StageJob
from lwdctl.pipeline.slurm_jobs import jobs_folder
from lwdctl.pipeline.slurm_systems import LocalSystem

pytest.importorskip("submitit", reason="needs the extra slurm")

RECIPE = """
[stage.ingest]
format = "pusht"
paths = ["{data}"]

[stage.eval]
policy = ["random", "still"]
episodes = 1
max_steps = 5
num_envs = 1
workers = 0
"""


@pytest.mark.slow
def test_stages_as_jobs_of_this_machine(tmp_path, toy_file, capfd):
    recipe = tmp_path / "two.toml"
    ingest = RECIPE.format(data=toy_file("pusht_cchi_v7_replay.zarr")).partition("[stage.eval]")[0]
    recipe.write_text(ingest + '[stage.again]\nlike = "ingest"\nname = "again"\n')
    words = ["run", str(recipe), "--workspace", str(tmp_path / "runs"), "--json"]
    assert main([*words, "--executor", "local"]) == 0
    made = json.loads(capfd.readouterr().out)["summary"]["stages"]
    assert [(item["state"], item["artifact"]) for item in made] == [
        ("ran", "snippets/two:v1"), ("ran", "snippets/again:v1"),
    ]  # fmt: skip
    assert main(words) == 0
    made = json.loads(capfd.readouterr().out)["summary"]["stages"]
    assert [item["state"] for item in made] == ["up to date", "up to date"]


@pytest.mark.sim
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_conditions_of_an_evaluation_as_jobs_of_this_machine(tmp_path, toy_file, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = tmp_path / "floor.toml"
    recipe.write_text(RECIPE.format(data=toy_file("pusht_cchi_v7_replay.zarr")))
    run = RecipeRun(read_recipe(recipe), Workspace(tmp_path / "runs"))
    first = RecipeRun(run.recipe, run.workspace, until="ingest")
    run_plan(first.steps, run.workspace, SilentProgress())
    outcomes = run_as_jobs(run, SilentProgress(), "local", eval_jobs=2)
    assert [outcome.state for outcome in outcomes] == ["up to date", "ran"]
    evaluation = outcomes[-1].artifact
    rows = evaluation.manifest.summary["results"]
    assert [row["policy"] for row in rows] == ["random"] * 2 + ["still"] * 2

    # Each part was measured by a job of its own, and the evaluation took both.
    names = sorted(path.name.rpartition("-")[2] for path in (jobs_folder(run) / "ends").iterdir())
    assert len(names) == 3
    assert {"0", "1"} <= set(names)
    logs = "".join(path.read_text() for path in (jobs_folder(run) / "logs").glob("*_log.out"))
    assert "random: already measured" in logs
    assert "still: already measured" in logs
    assert {item.state for item in run_as_jobs(run, SilentProgress(), "local")} == {"up to date"}


CHECKPOINTS = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1]).write_text("checkpoint")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).write_text("running")
time.sleep(60)
"""


def test_stopping_lets_jobs_write_their_checkpoint(tmp_path):
    state, record = tmp_path / "state", tmp_path / "end.json"
    system = LocalSystem(tmp_path)
    job = StageJob([sys.executable, "-c", CHECKPOINTS, str(state)], str(record))
    number = system.submit("job", [job], ())
    deadline = time.monotonic() + 60
    while not state.exists() or state.read_text() != "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [item.id for item in system.live()] == [number]
    system.stop()
    assert state.read_text() == "checkpoint"
    assert json.loads(record.read_text())["code"] == 143
    assert system.live() == []


@pytest.mark.slow
@pytest.mark.parametrize("devices", [None, "", "GPU-7,1"])
def test_jobs_of_this_machine_see_its_gpus(tmp_path, monkeypatch, devices):
    if devices is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    code = (
        "import os, sys; open(sys.argv[1], 'w').write(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))"
    )
    system, seen = LocalSystem(tmp_path), tmp_path / "seen"
    job = StageJob([sys.executable, "-c", code, str(seen)], str(tmp_path / "end"))
    system.submit("job", [job], ())
    deadline = time.monotonic() + 60
    while system.live():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert seen.read_text() == repr(devices)


NODE = """
import sys
from pathlib import Path
from lwdctl.pipeline.slurm_job import run_job
sys.exit(run_job(sys.argv[2:], Path(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_how_a_command_ended_is_written_down(tmp_path, body, code):
    record = tmp_path / "ends" / "job"
    environment = {
        **os.environ, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "9",
        "SLURMD_NODENAME": "n1", "SLURM_RESTART_COUNT": "1",
    }  # fmt: skip
    words = [sys.executable, "-m", "lwdctl.pipeline.slurm_job", record, sys.executable, "-c", body]
    assert subprocess.run(words, env=environment, check=False).returncode == code
    assert json.loads(record.read_text()) == {
        "code": code, "job": "7_2", "node": "n1", "restarts": 1,
    }  # fmt: skip


def test_the_warning_before_the_time_limit_requeues_what_was_terminated(tmp_path):
    """A fake scontrol says what it was asked; the command itself never gets the warning."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/asked"\n')
    (tmp_path / "scontrol").chmod(0o755)
    state, record = tmp_path / "state", tmp_path / "end.json"
    environment = {**os.environ, "SLURM_JOB_ID": "9", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [sys.executable, "-c", NODE, record, sys.executable, "-c", CHECKPOINTS, state]
    process = subprocess.Popen(list(map(str, words)), env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not state.exists() or state.read_text() != "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGUSR2)  # every process of the job gets it
    assert process.wait(60) == 143
    assert state.read_text() == "checkpoint"
    assert (tmp_path / "asked").read_text() == "requeue 9\n"
