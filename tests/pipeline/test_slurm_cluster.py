"""A real Slurm: jobs that are preempted, cancelled, or lose their node, and whole recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from slurm_cluster import SlurmCluster, missing, until

from lwdctl.artifacts.workspace import Workspace
from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.recipe import read_recipe
from lwdctl.pipeline.slurm_job import StageJob
from lwdctl.pipeline.slurm_jobs import write_scripts
from lwdctl.pipeline.slurm_queue import SlurmError
from lwdctl.pipeline.slurm_systems import SlurmSystem

pytest.importorskip("submitit", reason="needs the extra slurm")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a Slurm")

COUNTER = """\
import pathlib, signal, sys, time
path, last, started = pathlib.Path(sys.argv[1]), int(sys.argv[2]), []
done = int(path.read_text()) if path.exists() else 0
def stop(number, frame):
    assert not started, "told twice"
    started.append(number)
signal.signal(signal.SIGTERM, stop)
with open(f"{path}.log", "a") as log:
    log.write(f"from {done}\\n")
while done < last:
    time.sleep(0.05)
    done += 1
    if started:
        time.sleep(0.5)  # writes its checkpoint
        path.write_text(str(done))
        sys.exit(143)
path.write_text(f"{done} all")
"""
"""Counts, and writes how far it came when it is told to end."""


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        cluster = SlurmCluster(Path(folder))
        before = os.environ.copy()
        try:
            cluster.start()
            os.environ |= cluster.environment
            yield cluster
        finally:
            cluster.stop()
            os.environ.clear()
            os.environ.update(before)


def at_once(cluster, job):
    """Let a requeued job begin: Slurm would wait two minutes."""

    def begins():
        state, restarts = cluster.state(job).split()
        if restarts == "1" and state == "PENDING":
            time.sleep(3)  # the node may still clean up after the first attempt
            update = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
            # It may have begun meanwhile.
            subprocess.run(update, env=cluster.environment, capture_output=True, check=False)
        return restarts == "1" and state in {"RUNNING", "COMPLETED"}

    try:
        until(f"{job} runs again", begins)
    except AssertionError as error:
        shown = cluster.run("scontrol", "show", "job", job)
        raise AssertionError(f"{error}: {shown}") from error


def counter(folder, name, last=100000):
    script = folder / "count.py"
    script.write_text(COUNTER)
    command = [sys.executable, str(script), str(folder / name), str(last)]
    return StageJob(command, str(folder / f"{name}.json"))


@pytest.mark.slow
def test_preemption_time_limit_and_cancelling(cluster, tmp_path):
    system = SlurmSystem(tmp_path, {"time": "10"})
    names = ("preempted", "out-of-time", "cancelled")
    jobs = {name: system.submit(name, [counter(tmp_path, name)], ()) for name in names}
    logs = {name: tmp_path / f"{name}.log" for name in names}
    until("all run", lambda: all(path.exists() for path in logs.values()))
    assert {job.name: job.state for job in system.live()} == dict.fromkeys(names, "RUNNING")

    cluster.run("scontrol", "requeue", jobs["preempted"])
    cluster.run("scancel", "--signal", "USR2", jobs["out-of-time"])  # as before a time limit
    cluster.run("scancel", jobs["cancelled"])
    for name in names[:2]:
        at_once(cluster, jobs[name])
    until(
        "both run again", lambda: all(logs[name].read_text().count("\n") == 2 for name in names[:2])
    )
    for name in names[:2]:
        begun = logs[name].read_text().splitlines()
        assert begun[0] == "from 0"
        assert int(begun[1].removeprefix("from ")) > 0, "it went on from its checkpoint"
    until("the third is gone", lambda: jobs["cancelled"] not in {job.id for job in system.live()})
    assert logs["cancelled"].read_text().count("\n") == 1, "a cancelled job stays cancelled"
    assert system.how_it_ended(jobs["cancelled"]).startswith("CANCELLED")
    assert json.loads((tmp_path / "cancelled.json").read_text())["code"] == 143
    for name in names[:2]:
        cluster.run("scancel", jobs[name])
    until("all are gone", lambda: not system.live())


@pytest.mark.long
def test_an_array_what_follows_it_and_what_cannot(cluster, tmp_path):
    system = SlurmSystem(tmp_path, {"partition": "main,short", "cpus-per-task": "1"})
    fine = system.submit("fine", [counter(tmp_path, f"fine{index}", 3) for index in range(3)], ())
    follows = system.submit("follows", [counter(tmp_path, "follows", 3)], [fine])
    fails = StageJob(["bash", "-c", "exit 7"], str(tmp_path / "fails.json"))
    failing = system.submit("failing", [counter(tmp_path, "one", 3), fails], [])
    never = system.submit("never", [counter(tmp_path, "never")], [failing, follows])
    after = system.submit("after", [counter(tmp_path, "after")], [never])
    waiting = {job.id: job for job in system.live()}
    assert waiting[never].reason == "Dependency"
    until("all are gone", lambda: not system.live())
    assert (tmp_path / "follows").read_text() == "3 all"
    assert not (tmp_path / "never.log").exists()
    assert "Dependency" in system.how_it_ended(never)
    assert "Dependency" in system.how_it_ended(after)
    end = json.loads((tmp_path / "fails.json").read_text())
    assert (end["code"], end["job"], end["restarts"]) == (7, f"{failing}_1", 0)
    assert end["node"] in {"n1", "n2"}
    ends = [json.loads((tmp_path / f"fine{index}.json").read_text()) for index in range(3)]
    assert [item["job"] for item in ends] == [f"{fine}_{index}" for index in range(3)]


@pytest.mark.long
def test_files_for_sbatch_are_requeued_and_cancelled(cluster, tmp_path, toy_stages):
    recipe = tmp_path / "toy.toml"
    recipe.write_text('[stage.sow]\n[stage.rye]\nuses = "sow"\nname = "rye"\n')
    run = RecipeRun(read_recipe(recipe), Workspace(tmp_path / "runs"))
    submit, *_ = write_scripts(run, tmp_path / "files", {"time": "10"})
    job = counter(tmp_path, "count")
    # Each job counts in a file of its own, named after its job.
    words = [*job.command[:2], f"{tmp_path}/$SLURM_JOB_ID", job.command[3]]
    program = tmp_path / "program"
    program.write_text(f"#!/bin/bash\nexec {' '.join(words)}\n")
    program.chmod(0o755)
    environment = {**cluster.environment, "LWDCTL": str(program)}
    done = subprocess.run([submit], env=environment, check=True, capture_output=True, text=True)
    first, second = (line.split()[-1] for line in done.stdout.splitlines())
    logs = [tmp_path / f"{number}.log" for number in (first, second)]
    until("both run", lambda: all(path.exists() for path in logs))
    cluster.run("scancel", "--batch", "--signal", "USR2", first)  # as before a time limit
    cluster.run("scancel", second)
    at_once(cluster, first)
    until("the first runs again", lambda: logs[0].read_text().count("\n") == 2)
    assert int(logs[0].read_text().splitlines()[1].removeprefix("from ")) > 0
    until("the second is gone", lambda: cluster.state(second).startswith("CANCELLED"))
    assert logs[1].read_text().count("\n") == 1
    cluster.run("scancel", first)
    until("the first is gone", lambda: cluster.state(first).startswith("CANCELLED"))


def test_what_sbatch_refuses(cluster, tmp_path):
    system = SlurmSystem(tmp_path, {"partition": "moon"})
    with pytest.raises(SlurmError, match="invalid partition") as caught:
        system.submit("job", [counter(tmp_path, "job")], ())
    assert "--slurm" in caught.value.hint
    assert "\n" not in caught.value.message


TRAININGS = """\
[stage.ingest]
format = "pusht"
paths = ["{data}"]
"""
TRAINING = """
[stage.vae{seed}]
uses = "train-vae"
name = "seed{seed}"
needs = "ingest"
seed = {seed}
updates = 3000
snippet_length = 8
batch_size = 8
policy_width = 16
threads = 1
"""


def lwdctl(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "lwdctl", *map(str, words)],
        check=True, capture_output=True, text=True, **options,
    )  # fmt: skip


def digests(workspace):
    """Return the digest of every file whose content does not hold times."""
    timed = {"log.txt", "metrics.jsonl", "results.json", "tensorboard", "episodes"}
    found = {}
    for path in sorted(workspace.glob("[a-z]*/*/v*/manifest.json")):
        manifest = json.loads(path.read_text())
        place = path.parent.relative_to(workspace).as_posix()
        found |= {
            f"{place}/{file['path']}": file["sha256"]
            for file in manifest["files"]
            if not timed & set(file["path"].split("/"))
        }
    return found


def numbers(workspace):
    """Return the numbers of every manifest, without wall times."""

    def timeless(value):
        if isinstance(value, dict):
            return {
                key: timeless(item)
                for key, item in value.items()
                if "seconds" not in key and "per_second" not in key
            }
        return [timeless(item) for item in value] if isinstance(value, list) else value

    paths = sorted(workspace.glob("[a-z]*/*/v*/manifest.json"))
    return {
        path.parent.relative_to(workspace).as_posix(): timeless(
            json.loads(path.read_text())["summary"]
        )
        for path in paths
    }


@pytest.fixture
def trainings(tmp_path, toy_file):
    """A recipe of three trainings."""
    data = toy_file("pusht_cchi_v7_replay.zarr")
    recipe = tmp_path / "seeds.toml"
    text = TRAININGS.format(data=data) + "".join(TRAINING.format(seed=seed) for seed in range(3))
    recipe.write_text(text)
    return recipe


def progress_of(workspace, stage):
    """Return how many training steps a stage has recorded."""
    path = workspace / ".recipes" / "seeds" / f"{stage}.json"
    try:
        return json.loads(path.read_text())["task"]["done"]
    except (OSError, KeyError, json.JSONDecodeError):
        return 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_preempted_trainings_and_dying_nodes_change_no_weight(  # noqa: C901 - one story
    cluster, trainings, tmp_path
):
    alone, runs = tmp_path / "alone", tmp_path / "runs"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    lwdctl("run", trainings, "--workspace", alone, env=environment)
    words = ("run", trainings, "--workspace", runs, "--executor", "slurm")
    lwdctl(*words, "--detach", env=environment)
    stages = [f"vae{seed}" for seed in range(3)]

    def jobs():
        text = cluster.run("squeue", "-h", "-t", "R", "-o", "%i|%N|%j")
        found = [line.split("|") for line in text.splitlines()]
        return {name.split("-")[2]: (number, node) for number, node, name in found}

    def all_train(beyond):
        return all(progress_of(runs, stage) > beyond for stage in stages)

    def read(stage):
        return json.loads((runs / f".recipes/seeds/{stage}.json").read_text())

    def is_done(stage):
        return read(stage)["state"] == "done"

    def attempts(stage):
        """Return the messages of every attempt to run its job."""
        log = runs / f".slurm/seeds/logs/{numbers_of[stage]}_0_log.out"
        return log.read_text().split("Loading pickle")[1:]

    def is_training(stage):
        """Tell whether an attempt after those that ended trains, or waits for an earlier one."""
        later = attempts(stage)[ended[stage] :]
        return stage in jobs() and any(
            "update/s" in text or "waiting for" in text for text in later
        )

    until("all three train", lambda: all_train(0), 300)
    numbers_of = {stage: jobs()[stage][0] for stage in stages}
    ended = {stage: len(attempts(stage)) for stage in stages}
    for number in numbers_of.values():
        cluster.run("scontrol", "requeue", number)
    for number in numbers_of.values():
        at_once(cluster, number)
    until(
        "all three run again",
        lambda: all(stage in jobs() or is_done(stage) for stage in stages),
        300,
    )

    # A machine dies; later only the daemon of the other, whose processes go on beside their heirs.
    for node, whole in (("n1", True), ("n2", False)):
        until(
            "what is not done yet trains",
            lambda: all(is_done(stage) or is_training(stage) for stage in stages),
            300,
        )
        victims = {stage: number for stage, (number, where) in jobs().items() if where == node}
        cluster.kill_node(node) if whole else cluster.kill_daemon(node)
        until(
            f"{node} is down",
            lambda node=node: "DOWN" in cluster.run("scontrol", "show", "node", node),
        )
        if whole:
            cluster.start_node(node)
            until(
                f"{node} is back",
                lambda node=node: "DOWN" not in cluster.run("scontrol", "show", "node", node),
            )
        ended |= {stage: len(attempts(stage)) for stage in victims}
        for number in victims.values():
            state = cluster.state(number).partition(" ")[0]
            assert state in {"PENDING", "RUNNING", "CONFIGURING", "COMPLETED"}, state
            if state == "PENDING":  # Slurm waits two minutes, so that no late SIGTERM meets it
                cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now+10")
    lwdctl(*words, env=environment)  # waits for what is queued
    cluster.start_node("n2")
    logs = {
        stage: (runs / ".slurm/seeds/logs" / f"{numbers_of[stage]}_0_log.out").read_text()
        for stage in stages
    }
    assert all("vae: made" in text or "made vae" in text for text in logs.values())
    made = digests(runs)
    expected = digests(alone)
    assert len([key for key in expected if key.endswith(".safetensors")]) == 6
    assert {key: made[key] for key in expected} == expected
    assert all(
        json.loads((runs / f"vae/seed{seed}/v0001/manifest.json").read_text())["summary"]["updates"]
        == 3000
        for seed in range(3)
    )


@pytest.mark.long
@pytest.mark.sim
@pytest.mark.timeout(1500)
def test_the_grid_of_pusht_is_the_same_on_slurm(cluster, tmp_path, toy_file):
    recipe = Path(__file__).parents[2] / "pipelines" / "pusht_grid.toml"
    data = toy_file("pusht_cchi_v7_replay.zarr")
    words = ["run", recipe, "--smoke", "--set", f"ingest.paths={data}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone, runs = tmp_path / "alone", tmp_path / "runs"
    lwdctl(*words, "--workspace", alone, env=environment)
    options = ("--executor", "slurm", "--eval-jobs", "3", "--json")
    done = lwdctl(*words, "--workspace", runs, *options, env=environment)
    assert {item["state"] for item in json.loads(done.stdout)["summary"]["stages"]} == {"ran"}
    assert digests(runs) == digests(alone)
    assert len(digests(runs)) > 50
    assert numbers(runs) == numbers(alone)
