"""Workers and parents that die, stop or hang, and signals, while `collect` and `eval` run.

Whatever happens once, the numbers are those of an undisturbed run; whatever was finished is kept;
no process outlives its parent.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from slow_simulator import ACTION, OBSERVATIONS

sys.path.pop(0)

from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.snippets import SnippetWriter
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.records import EnvSpec, Episode, SourceSpec

SCRIPT = Path(__file__).with_name("slow_simulator.py")
COMMANDS = {
    "collect": "collect slow --task walk --episodes 9 --workers 2 --timeout 2",
    "eval": "eval --policy random --episodes 9 --num-envs 4 --workers 2 --timeout 2",
}
FAULTY_SEED = {"collect": 4, "eval": 100_004}
ARTIFACTS = {"collect": "demonstrations/walk", "eval": "evaluation/made"}
SIGNALS = {"SIGTERM": 143, "SIGINT": 130}


def start(name, workspace, *more, seed="", fault="", step=0.0):
    """Start a command in a session of its own."""
    environment = {
        **os.environ,
        "LWDCTL_WORKSPACE": str(workspace),
        "OMP_NUM_THREADS": "1",
        "FAULT": fault,
        "FAULT_SEED": str(seed),
        "FAULT_STEP": str(step),
        "FAULT_MARKER": str(workspace / "marker"),
    }
    words = [sys.executable, str(SCRIPT), *COMMANDS[name].split(), *more]
    return subprocess.Popen(
        words,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Wait for the end of a command; return its exit code and what it says."""
    stdout, stderr = process.communicate(timeout=120)
    assert not stdout or "artifact" in stdout or "/" in stdout
    return process.returncode, stderr


def session(process):
    """Return what still runs of a command's session."""
    found = []
    for other in psutil.process_iter(["status"]):
        try:
            alive = other.info["status"] not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            if alive and os.getsid(other.pid) == process.pid:
                found.append(other)
        except (psutil.Error, OSError):
            continue
    return found


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def kept(workspace, name):
    """Return how many episodes the unfinished runs hold."""
    runs = [*(workspace / ARTIFACTS[name]).glob(".partial-*/checkpoints")]
    if name == "collect":
        return sum(1 for run in runs for _ in run.glob("*.demonstration"))
    lines = [json.loads(line.partition(" ")[2]) for run in runs for path in run.glob("*.journal")
             for line in path.read_text().splitlines() if line.endswith("}")]  # fmt: skip
    return len({line["episode"]["index"] for line in lines if "episode" in line})


def numbers(workspace, name):
    """Return what was measured, without wall times and attempts, or the bytes of the data."""
    newest = max((workspace / ARTIFACTS[name]).glob("v*"))
    if name == "collect":
        return (newest / "demonstrations.hdf5").read_bytes()
    assert [path.name for path in (newest / "episodes").iterdir()] == ["random.json"]
    record = json.loads((newest / "episodes" / "random.json").read_text())
    rows = [{**row, "seconds": None} for row in record["results"]]
    return rows, [{**episode, "attempts": None} for episode in record["episodes"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace with snippets."""
    root = tmp_path_factory.mktemp("made")
    env = EnvSpec("slow", ("walk",), {}, 8)
    rng = np.random.default_rng(0)
    with Workspace(root).begin("snippets", "made", config={}) as output:
        writer = SnippetWriter(
            output.path / SNIPPETS_PAYLOAD, SourceSpec(OBSERVATIONS, ACTION, env, (), "made")
        )
        for seed in range(2):
            actions, places = rng.normal(size=(2, 20, 2)).astype(np.float32)
            writer.append(
                Episode(f"demo_{seed}", {"place": places}, actions, task="walk", split="train")
            )
        output.publish(writer.close())
    return root


@pytest.fixture(scope="module")
def undisturbed(made):
    """Return what commands give that nothing disturbs; each runs once."""
    found = {}

    def result(name):
        if name not in found:
            code, stderr = finish(start(name, made))
            assert code == 0, stderr
            found[name] = numbers(made, name)
        return found[name]

    return result


@pytest.fixture
def workspace(made, tmp_path):
    shutil.copytree(made / "snippets", tmp_path / "runs" / "snippets")
    return tmp_path / "runs"


def equals_in_spite_of(fault, name, workspace, undisturbed):
    code, stderr = finish(start(name, workspace, seed=FAULTY_SEED[name], fault=fault))
    assert code == 0, stderr
    assert (workspace / "marker").exists()
    assert numbers(workspace, name) == undisturbed(name)


@pytest.mark.slow
def test_collect_with_a_dead_worker(workspace, undisturbed):
    equals_in_spite_of("die", "collect", workspace, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["die", "stop", "hang", "deaf"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_lost_worker_changes_no_number(workspace, undisturbed, name, fault):
    equals_in_spite_of(fault, name, workspace, undisturbed)


@pytest.mark.slow
def test_a_seed_that_kills_every_worker_is_replaced_and_reported(workspace):
    process = start("collect", workspace, "--json", seed=4, fault="always")
    code, stderr = finish(process)
    assert code == 1
    assert "1 seeds were lost" in stderr
    assert "Traceback" not in stderr
    (version,) = (workspace / ARTIFACTS["collect"]).glob("v*")
    summary = json.loads((version / "manifest.json").read_text())["summary"]
    assert summary["episodes"] == summary["attempts"] == 9
    assert summary["lost_seeds"] == [4]
    assert summary["episodes_lost_to_simulators"] == 1
    assert summary["seeds"] == [0, 9]


def outlived(name, workspace, moment):
    """Kill the parent at a moment; return when nothing of its session runs any more."""
    fault = moment if moment in {"stop", "deaf"} else ""
    process = start(
        name, workspace, "--timeout", "3600", seed=FAULTY_SEED[name], fault=fault, step=0.1
    )
    if fault:
        wait_for((workspace / "marker").exists)
    elif moment == "start":  # with the tracker of resources
        wait_for(lambda: len(session(process)) >= 4)
    else:
        wait_for(lambda: kept(workspace, name) >= moment)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not session(process), 20)


@pytest.mark.slow
def test_no_deaf_worker_outlives_a_killed_collect(workspace):
    outlived("collect", workspace, "deaf")


@pytest.mark.long
@pytest.mark.parametrize("moment", ["start", "stop", "deaf", 1, 5])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_worker_outlives_a_killed_parent(workspace, undisturbed, name, moment):
    before = {path.name for path in Path("/dev/shm").glob("*")}
    outlived(name, workspace, moment)
    assert {path.name for path in Path("/dev/shm").glob("sem.mp-*")} <= before
    resume = ["--resume"] if kept(workspace, name) else []
    code, stderr = finish(start(name, workspace, "--timeout", "3600", *resume))
    assert code == 0, stderr
    assert numbers(workspace, name) == undisturbed(name)


def interrupted(name, number, moment, workspace, undisturbed):
    process = start(name, workspace, step=0.1)
    if moment == "start":
        wait_for(lambda: len(session(process)) >= 4)
    else:
        wait_for(lambda: kept(workspace, name) >= moment)
    os.killpg(process.pid, getattr(signal, number))
    code, stderr = finish(process)
    assert code == SIGNALS[number], stderr
    assert "Traceback" not in stderr
    wait_for(lambda: not session(process), 20)
    finished = kept(workspace, name)
    if moment != "start":
        assert finished >= moment
    resume = ["--resume"] if finished else []
    code, stderr = finish(start(name, workspace, *resume))
    assert code == 0, stderr
    assert not kept(workspace, name)
    assert numbers(workspace, name) == undisturbed(name)


@pytest.mark.slow
def test_collect_goes_on_after_sigterm(workspace, undisturbed):
    interrupted("collect", "SIGTERM", 3, workspace, undisturbed)


@pytest.mark.slow
def test_eval_goes_on_after_sigint(workspace, undisturbed):
    interrupted("eval", "SIGINT", 3, workspace, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["start", 1, 4, 8])
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", COMMANDS)
def test_signals_lose_nothing(workspace, undisturbed, name, number, moment):
    interrupted(name, number, moment, workspace, undisturbed)
