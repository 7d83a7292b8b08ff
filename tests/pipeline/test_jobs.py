"""`lwdctl run --jobs`: stages side by side in processes of their own, with the same results."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import (
    add_grid,
    is_alive,
    made,
    run,
    session_of,
    stage_processes,
    start,
    wait_for,
    write_recipe,
)

sys.path.pop(0)

from lwdctl.cli.main import main
from lwdctl.core.errors import ConfigError
from lwdctl.pipeline import resources
from lwdctl.pipeline.local import parse_jobs
from lwdctl.pipeline.resources import Machine, cuda_devices

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
    pytest.mark.timeout(600),
]
LONG = 1_000_000


@pytest.fixture(scope="module")
def source(toy_file):
    return toy_file("pusht_side_by_side.zarr")


@pytest.mark.slow
def test_numbers_weights_and_versions_are_those_of_a_sequential_run(source, tmp_path, capfd):
    recipe = write_recipe(tmp_path, source)
    assert main(["run", str(recipe), "--workspace", str(tmp_path / "one"), "--json", "-q"]) == 0
    one = json.loads(capfd.readouterr().out)["summary"]
    done = run(recipe, tmp_path / "two", "--jobs", "2", "--json")
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)["summary"]
    keys = ("id", "command", "state", "artifact", "config")
    assert [[stage[key] for key in keys] for stage in two["stages"]] == [
        [stage[key] for key in keys] for stage in one["stages"]
    ]
    assert made(tmp_path / "two") == made(tmp_path / "one")
    assert [stage["artifact"] for stage in two["stages"]][1::2] == ["vae/two:v1", "vae/two:v2"]
    for stage in ("short", "long"):
        assert f"{stage}: made vae/two" in done.stderr


@pytest.mark.long
def test_a_stage_that_fails_is_named_and_the_command_again_does_what_is_missing(source, tmp_path):
    recipe = write_recipe(tmp_path, source)
    workspace = tmp_path / "runs"
    # The training diverges, and what reads it does not run; the other half is made.
    done = run(recipe, workspace, "--jobs", "2", "--set", "short.learning_rate=1e30")
    assert done.returncode == 1
    assert "error: 1 of 5 stages failed: short (training diverged" in done.stderr
    assert "depend on these: encode-short" in done.stderr
    assert "--set short.learning_rate=1e30" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(made(workspace)) == ["latents/long/v0001", "snippets/two/v0001", "vae/two/v0002"]
    again = run(recipe, workspace, "--jobs", "2", "--json")
    assert again.returncode == 0, again.stderr
    stages = json.loads(again.stdout)["summary"]["stages"]
    assert [stage["state"] for stage in stages] == [
        "up to date", "ran", "ran", "up to date", "up to date",
    ]  # fmt: skip
    assert stages[1]["artifact"] == "vae/two:v1"


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_stages_in_order_and_keeps_checkpoints(source, tmp_path, number, code):
    recipe, workspace = write_recipe(tmp_path, source, LONG), tmp_path / "runs"
    process = start(recipe, workspace, "--jobs", "2")
    wait_for(lambda: list(workspace.glob("latents/two/v0001")))
    wait_for(lambda: progress(workspace, "long") > 2)
    below = session_of(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "finished stages are kept; continue with: lwdctl run" in errors
    assert "Traceback" not in errors
    assert len(below) >= 2
    assert not [pid for pid in below if is_alive(pid)]
    assert list(workspace.glob("vae/two/.partial-*/checkpoints/*"))


def progress(workspace, stage):
    path = workspace / ".recipes" / "two" / f"{stage}.json"
    return json.loads(path.read_text())["task"]["done"] if path.exists() else 0


@pytest.mark.slow
def test_the_stages_end_when_the_command_is_killed(source, tmp_path):
    recipe, workspace = write_recipe(tmp_path, source, LONG), tmp_path / "runs"
    process = start(recipe, workspace, "--jobs", "2")
    wait_for(lambda: progress(workspace, "long") > 2)
    below = session_of(process.pid)
    running = stage_processes(workspace)
    assert running
    assert set(running) <= set(below)
    process.kill()
    process.communicate()
    wait_for(lambda: not [pid for pid in below if is_alive(pid)], 20)


@pytest.mark.long
def test_a_stage_that_is_killed_fails_alone(source, tmp_path):
    recipe, workspace = write_recipe(tmp_path, source, LONG), tmp_path / "runs"
    process = start(recipe, workspace, "--jobs", "2")
    wait_for(lambda: progress(workspace, "long") > 2)
    path = workspace / ".recipes" / "two" / "long.json"
    os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "1 of 5 stages failed: long (killed by SIGKILL)" in errors
    assert list(workspace.glob("latents/two/v0001"))


@pytest.mark.slow
def test_a_free_process_measures_conditions_of_the_last_evaluation(source, tmp_path, capfd):
    recipe = write_recipe(tmp_path, source)
    add_grid(recipe, 1)
    assert main(["run", str(recipe), "--workspace", str(tmp_path / "one"), "-q"]) == 0
    done = run(recipe, tmp_path / "two", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "two") == made(tmp_path / "one")
    logs = tmp_path.glob("two/.recipes/two/grid*.log")
    measured = {log.name: re.findall(r"^(\S+):$", log.read_text(), re.MULTILINE) for log in logs}
    assert len(measured) == 2, measured
    assert all(measured.values())
    names = [name for found in measured.values() for name in found]
    assert len(names) == len(set(names)) == 16


@pytest.mark.long
@pytest.mark.parametrize("which", ["assistant", "stage"])
def test_a_process_that_dies_while_two_measure_one_evaluation(source, tmp_path, which):
    recipe = write_recipe(tmp_path, source)
    assert run(recipe, tmp_path / "one").returncode == 0
    add_grid(recipe, 10)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert run(recipe, tmp_path / "one").returncode == 0
    process = start(recipe, tmp_path / "two", "--jobs", "2")
    name = "grid.log" if which == "stage" else "grid-rest-1.log"
    log = tmp_path / "two/.recipes/two" / name
    pid = wait_for(lambda: (tmp_path / "two/.recipes/two/grid-rest-1.log").exists()
                   and next(iter(writers(log)), None))  # fmt: skip
    wait_for(lambda: list(tmp_path.glob("two/evaluation/*/.partial-*/checkpoints/still*.journal")))
    os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    if which == "stage":
        assert process.returncode == 1
        assert "1 of 6 stages failed: grid (killed by SIGKILL)" in errors
        assert run(recipe, tmp_path / "two", "--jobs", "2").returncode == 0
    else:
        assert process.returncode == 0, errors
    assert made(tmp_path / "two") == made(tmp_path / "one")
    assert not list(tmp_path.glob("two/evaluation/*/.*"))


def writers(path):
    """Return the processes whose standard output is a file."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        with contextlib.suppress(OSError):
            if path.samefile(link):
                found.append(int(link.parts[2]))
    return found


HOLDS = """
import os, signal, sys, time
from lwdctl.pipeline.local import StageServer, can_fork
assert can_fork()
signal.signal(signal.SIGTERM, lambda *_: None)
with open(sys.argv[1], "w") as file, StageServer(forked=True) as server:
    folder, end = f"/proc/{server._process.pid}/fd", time.monotonic() + 60
    while any(os.path.realpath(f"{folder}/{name}") == file.name for name in os.listdir(folder)):
        assert time.monotonic() < end, "it is still open in the server"
        time.sleep(0.01)
    os.kill(server._process.pid, signal.SIGTERM)
    while not server.is_gone:
        assert time.monotonic() < end, "the handler of the command is still there"
        time.sleep(0.01)
"""


def test_a_forked_server_has_neither_files_nor_handlers_of_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HOLDS, str(tmp_path / "open")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "99999", "²"])
def test_a_number_of_jobs_that_is_none(text):
    with pytest.raises(ConfigError, match="number from 1 to"):
        parse_jobs(text)
    assert parse_jobs("3") == 3
    assert parse_jobs("auto") == "auto"


@pytest.mark.parametrize(
    ("machine", "jobs"),
    [
        (Machine(8, 2**40), 8),
        (Machine(8, 5 * 2**30), 2),
        (Machine(8, 2**20), 1),
        (Machine(16, 2**40, ("0",), 20 * 2**30), 5),
        (Machine(16, 2**40, ("0", "1"), 2**40), 16),
        (Machine(16, 2**40, ("0",), None), 16),
    ],
)
def test_as_many_jobs_as_fit(machine, jobs):
    assert machine.jobs == jobs


DRIVER = """#!/bin/sh
echo "0, GPU-aa, 1024 MiB"
echo "1, GPU-bb, 2048 MiB"
"""


@pytest.mark.parametrize(
    ("value", "devices", "mebibytes"),
    [
        (None, ("GPU-aa", "GPU-bb"), 3072),
        ("1", ("1",), 2048),
        ("GPU-bb,0", ("GPU-bb", "0"), 3072),
        ("0,-1,1", ("0",), 1024),
        ("", (), None),
        ("MIG-1", ("MIG-1",), None),
    ],
)
def test_cuda_devices_are_those_that_are_visible(tmp_path, monkeypatch, value, devices, mebibytes):
    program = tmp_path / "nvidia-smi"
    program.write_text(DRIVER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv(resources.DEVICES, raising=False)
    if value is not None:
        monkeypatch.setenv(resources.DEVICES, value)
    assert cuda_devices() == (devices, mebibytes and mebibytes * 2**20)


def test_without_a_driver_there_are_no_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(resources.DEVICES, raising=False)
    assert cuda_devices() == ((), None)
