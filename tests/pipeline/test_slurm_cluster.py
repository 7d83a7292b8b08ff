"""A real Slurm: jobs that are preempted, cancelled, or lose their node, and whole recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from slurm_cluster import SlurmCluster, missing, until

from lwdctl.pipeline.slurm_job import StageJob
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
    until(f"{job} is requeued", lambda: cluster.state(job) == "PENDING 1")
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")


def counter(folder, name, last=100000):
    script = folder / "count.py"
    script.write_text(COUNTER)
    command = [sys.executable, str(script), str(folder / name), str(last)]
    return StageJob(command, str(folder / f"{name}.json"))


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
updates = 900
snippet_length = 8
batch_size = 8
policy_width = 16
threads = 1
checkpoint_seconds = 1
"""


def lwdctl(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "lwdctl", *map(str, words)],
        check=True, capture_output=True, text=True, **options,
    )  # fmt: skip


def digests(workspace):
    """Return the digest of every file whose content does not hold times."""
    timed = ("log.txt", "metrics.jsonl", "tensorboard/", "episodes/", "results.json")
    found = {}
    for path in sorted(workspace.glob("[a-z]*/*/v*/manifest.json")):
        manifest = json.loads(path.read_text())
        place = path.parent.relative_to(workspace).as_posix()
        found |= {
            f"{place}/{file['path']}": file["sha256"]
            for file in manifest["files"]
            if not file["path"].startswith(timed)
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
