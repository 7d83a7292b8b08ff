"""Stages as jobs: what is submitted, joined, reported and taken over, without a cluster."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import LwdctlError, MissingExtraError, install_extra
from lwdctl.core.progress import SilentProgress
from lwdctl.pipeline import plan, slurm
from lwdctl.pipeline.executor import run_with
from lwdctl.pipeline.plan import RecipeRun, run_only
from lwdctl.pipeline.recipe import read_recipe
from lwdctl.pipeline.records import StageRecord
from lwdctl.pipeline.runner import run_plan
from lwdctl.pipeline.slurm import JobExecutor, submit_stages
from lwdctl.pipeline.slurm_job import write_record
from lwdctl.pipeline.slurm_jobs import frozen, jobs_folder, stage_jobs
from lwdctl.pipeline.slurm_queue import QueuedJob, SlurmError
from lwdctl.pipeline.slurm_systems import LocalSystem, SlurmSystem

RECIPE = """
[stage.sow]
field_kind = "wheat"

[stage.rye]
uses = "sow"
field_kind = "rye"
name = "rye"

[stage.grow]
needs = "sow"

[stage.reap]
needs = "grow"
"""


class Messages(SilentProgress):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


class Cluster:
    """A cluster of which the test says what happens: jobs run in this process, in order."""

    orders, outlives, most_at_once = True, True, 1000

    def __init__(self):
        self.submitted, self.queue, self.words, self.stopped = [], {}, {}, False
        self.unreachable = 0

    def submit(self, name, jobs, after):
        number = str(100 + len(self.submitted))
        self.submitted.append((number, name, tuple(after)))
        self.queue[number] = (name, list(jobs), tuple(after))
        return number

    def live(self):
        if self.unreachable:
            self.unreachable -= 1
            raise SlurmError("squeue failed: no answer")
        return [QueuedJob(number, name, "PENDING") for number, (name, *_) in self.queue.items()]

    def how_it_ended(self, job):
        return self.words.get(job, "")

    def stop(self):
        self.stopped = True

    def run(self, number):
        """Run a job to its end, as its node does."""
        _, jobs, after = self.queue[number]
        assert not set(after) & set(self.queue), "it ran before what it depends on"
        codes = []
        for job in jobs:
            with contextlib.redirect_stderr(io.StringIO()):
                codes.append(main([*job.command[3:], "-q"]))
            assert job.command[:3] == [sys.executable, "-m", "lwdctl"]
            write_record(Path(job.record), codes[-1])
        del self.queue[number]
        if any(codes):
            self.fail(number, "FAILED (NonZeroExitCode)")

    def fail(self, number, words):
        """Let a job vanish, and with it what depends on it."""
        self.queue.pop(number, None)
        self.words[number] = words
        for other, (_, _, after) in list(self.queue.items()):
            if number in after:
                self.fail(other, "CANCELLED (Dependency)")


class Obedient(Cluster):
    """A cluster that runs one job whenever it is asked."""

    def live(self):
        if self.queue and not self.unreachable:
            self.run(min(self.queue))
        return super().live()


@pytest.fixture
def make_run(tmp_path, toy_stages, monkeypatch, capfd):
    monkeypatch.setattr(slurm, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(JobExecutor, "poll_seconds", 0.001)
    path = tmp_path / "year.toml"
    path.write_text(RECIPE)

    def make(*assignments, workspace="runs"):
        return frozen(
            RecipeRun(read_recipe(path), Workspace(tmp_path / workspace), tuple(assignments))
        )

    return make


def execute(run, system, **options):
    progress = Messages()
    return run_with(JobExecutor(run, system, progress, **options), run, progress), progress.lines


def test_every_stage_is_one_job_after_those_that_it_depends_on(make_run):
    run, cluster = make_run(), Obedient()
    outcomes, lines = execute(run, cluster)
    assert [(number, after) for number, _, after in cluster.submitted] == [
        ("100", ()), ("101", ()), ("102", ("100",)), ("103", ("102",)),
    ]  # fmt: skip
    assert [outcome.state for outcome in outcomes] == ["ran"] * 4
    assert "grow: job 102 after 100" in lines
    assert not cluster.stopped

    # What one process makes, one stage after the other.
    alone = make_run(workspace="alone")
    expected = run_plan(alone.steps, alone.workspace, SilentProgress())
    found, wanted = ([item.artifact for item in made] for made in (outcomes, expected))
    assert [item.reference for item in found] == [item.reference for item in wanted]
    assert [item.manifest.files for item in found] == [item.manifest.files for item in wanted]
    assert [item.manifest.config for item in found] == [item.manifest.config for item in wanted]

    again, lines = execute(make_run(), cluster)
    assert len(cluster.submitted) == 4
    assert [outcome.state for outcome in again] == ["up to date"] * 4


def test_who_submitted_may_go_and_come_back(make_run):
    cluster = Cluster()
    run = make_run()
    outcomes = submit_stages(JobExecutor(run, cluster, Messages()), run, Messages())
    assert [outcome.state for outcome in outcomes] == ["to run"] * 4
    names = [name for _, name, _ in cluster.submitted]
    assert len(set(names)) == 4

    # Nothing is submitted twice, neither what waits nor what depends on what is done by now.
    cluster.run("100")
    progress = Messages()
    run = make_run()
    submit_stages(JobExecutor(run, cluster, progress), run, progress)
    assert len(cluster.submitted) == 4
    assert "reap: job 103 is in the queue already" in progress.lines
    assert run.files.read("reap").job == "103"

    # What somebody cancelled is submitted again, after what is queued still.
    del cluster.queue["103"]
    run = make_run()
    submit_stages(JobExecutor(run, cluster, progress), run, progress)
    assert cluster.submitted[4:] == [("104", names[3], ("102",))]


def test_a_job_that_is_just_ending_is_not_joined(make_run):
    """One that was cancelled a moment ago stands in the queue for some seconds."""
    run, cluster = make_run(), Cluster()
    submit_stages(JobExecutor(run, cluster, Messages()), run, Messages())
    asked = []

    def live():
        asked.append(1)
        if len(asked) == 3:
            cluster.queue.clear()
        return [QueuedJob(item.id, item.name, "COMPLETING") for item in Cluster.live(cluster)]

    cluster.live = live
    progress = Messages()
    submit_stages(JobExecutor(run, cluster, progress), run, progress)
    assert "waiting for job 100 to end" in progress.lines
    assert len(cluster.submitted) == 8


def test_other_settings_are_other_jobs(make_run):
    cluster = Cluster()
    for assignments in ((), ("grow.days=20",)):
        run = make_run(*assignments)
        submit_stages(JobExecutor(run, cluster, Messages()), run, Messages())
    assert [after for _, _, after in cluster.submitted[4:]] == [("100",), ("104",)]


def test_a_stage_that_fails_keeps_others_from_running_and_names_its_log(make_run):
    run, cluster = make_run("rye.fail=user"), Obedient()
    with pytest.raises(LwdctlError) as caught:
        execute(run, cluster, options=("--executor", "slurm"))
    assert "1 of 4 stages failed: rye (plot 3 is a lake)" in caught.value.message
    assert "--executor slurm" in caught.value.hint

    run, cluster = make_run("sow.fail=bug", workspace="other"), Obedient()
    with pytest.raises(LwdctlError) as caught:
        execute(run, cluster)
    assert "sow (RuntimeError: impossible)" in caught.value.message
    assert "grow (not run, as a job that it depends on failed)" in caught.value.message
    assert "reap (not run" in caught.value.message


def test_a_job_that_dies_without_a_word(make_run):
    run, cluster = make_run(), Cluster()
    executor = JobExecutor(run, cluster, Messages())
    submit_stages(executor, run, Messages())
    cluster.fail("101", "OUT_OF_MEMORY")
    (ended,) = executor.ended().items()
    log = jobs_folder(run) / "logs" / "101_0_log.out"
    assert ended[0] == "rye"
    assert not ended[1].succeeded
    assert ended[1].reason == f"job 101 ended without a result (OUT_OF_MEMORY), see {log}"


def test_a_requeued_job_is_waited_for_and_a_silent_controller_too(make_run):
    run, cluster, progress = make_run(), Cluster(), Messages()
    executor = JobExecutor(run, cluster, progress)
    submit_stages(executor, run, Messages())
    # Preempted: its first attempt has written that it was terminated, and it waits again.
    write_record(executor._jobs["sow"].record(), 143)
    assert executor.ended() == {}
    cluster.unreachable = 1
    assert executor.ended() == {}
    assert "squeue failed: no answer" in progress.lines
    cluster.run("100")
    assert {key: item.succeeded for key, item in executor.ended().items()} == {"sow": True}


def test_an_artifact_that_this_machine_does_not_see_yet(make_run, monkeypatch):
    run, cluster = make_run(), Cluster()
    executor = JobExecutor(run, cluster, Messages())
    submit_stages(executor, run, Messages())
    cluster.run("100")
    cluster.run("102")
    made = next((run.workspace.root / "seed").glob("*/v0001"))
    away = made.with_name(".away")
    made.rename(away)  # NFS keeps listings for a while
    assert executor.ended() == {}, "neither the stage nor what follows it"
    away.rename(made)
    assert set(executor.ended()) == {"sow", "grow"}

    # Nor is the end of a job seen at once.
    executor._jobs["rye"].record().unlink(missing_ok=True)
    del cluster.queue["101"]
    cluster.words["101"] = "COMPLETED"
    assert executor.ended() == {}
    clock = time.monotonic() + 91
    monkeypatch.setattr(slurm.time, "monotonic", lambda: clock)
    ((stage, ended),) = executor.ended().items()
    assert (stage, ended.succeeded) == ("rye", False)


def test_ends_of_jobs_are_read_as_what_they_are(make_run):
    run = make_run()
    jobs = JobExecutor(run, Cluster(), Messages())._jobs["sow"]
    jobs.record().parent.mkdir(parents=True)
    for content in ("", "{", "[]", '{"code": "0"}', json.dumps({"code": 2**80})):
        jobs.record().write_text(content)
        assert jobs.end() is None
    jobs.record().write_text('{"code": 3, "more": 1}')
    assert jobs.end().code == 3


def test_interrupting_leaves_jobs_alone_and_says_so(make_run):
    run, cluster, progress = make_run(), Cluster(), Messages()

    class Impatient(JobExecutor):
        def ended(self):
            if cluster.queue:
                raise KeyboardInterrupt
            return {}

    with pytest.raises(KeyboardInterrupt):
        run_with(Impatient(run, cluster, progress), run, progress)
    assert len(cluster.queue) == 4
    assert "the jobs go on by themselves" in progress.lines[-1]
    assert "lwdctl status year.toml --cancel" in progress.lines[-1]


def test_without_submitit_or_slurm(make_run, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SlurmError, match="no Slurm on this machine") as caught:
        SlurmSystem(jobs_folder(make_run()), {})
    assert "--slurm-script" in caught.value.hint
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError) as missing:
        LocalSystem(jobs_folder(make_run()))
    assert install_extra("slurm") in missing.value.hint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--executor", "moon"], "takes here, slurm, local"),
        (["--slurm", "gpus=1"], "--slurm is about jobs of Slurm"),
        (["--detach"], "--detach is about jobs of Slurm"),
        (["--executor", "slurm", "--jobs", "2"], "--jobs runs stages side by side"),
        (["--only", "grow", "--part", "2/2"], "takes I/N"),
        (["--only", "grow", "--part", "-1/2"], "takes I/N"),
        (["--executor", "local", "--only", "grow"], "--only runs one stage in this process"),
        (["--part", "0/2"], "needs the evaluation's stage"),
    ],
)
def test_options_that_do_not_go_together(make_run, capfd, words, message):
    make_run()
    assert main(["run", str(make_run().recipe.path), *words]) == 2
    assert message in capfd.readouterr().err


def test_only_evaluations_have_parts(make_run, capfd):
    run = make_run()
    words = ["run", str(run.recipe.path), "--workspace", str(run.workspace.root)]
    assert main([*words, "--only", "sow", "--part", "0/2"]) == 1
    assert "stage 'sow' runs sow, which cannot be done in parts" in capfd.readouterr().err


@pytest.fixture
def squeue(make_run, tmp_path, monkeypatch):
    """A squeue and a scancel that answer from files."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, body in {
        "squeue": f'cat "{folder}/queue"',
        "scancel": f'echo "$@" >> "{folder}/cancelled"; : > "{folder}/queue"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_the_status_shows_the_queue_and_cancels_what_it_shows(make_run, squeue, capfd):
    run, cluster = make_run(), Cluster()
    jobs_folder(run).mkdir(parents=True, exist_ok=True)
    submit_stages(JobExecutor(run, cluster, Messages()), run, Messages())
    names = {stage: jobs.name for stage, jobs in stage_jobs(run).items()}
    (squeue / "queue").write_text(
        f"100|RUNNING|None|node\x1b[2J7|{names['sow']}\n"
        f"102|PENDING|Dependency||{names['grow']}\n"
        "7|RUNNING|None|n1|somebody|else\nnonsense\n"
    )
    words = ["status", str(run.recipe.path), "--workspace", str(run.workspace.root)]
    assert main(words) == 0
    text = capfd.readouterr().out
    assert "\x1b" not in text
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "running" in lines["sow"]
    assert "job 100 running (node" in lines["sow"]
    assert "job 102 pending (Dependency)" in lines["grow"]
    assert "4 stages: 1 running, 2 missing, 1 queued" in text
    assert f"messages of sow: {jobs_folder(run)}/logs/100_0_log.out" in text

    assert main([*words, "--cancel", "--json"]) == 0
    out, err = capfd.readouterr()
    summary = json.loads(out)["summary"]
    assert summary["cancelled"] == ["100", "102"]
    assert {stage["state"] for stage in summary["stages"]} == {"missing"}
    assert (squeue / "cancelled").read_text().split() == ["102", "100"]
    assert "grow: cancelled job 102, which was pending" in err


def test_a_stage_whose_job_is_gone_is_not_running(make_run, squeue, capfd):
    run = make_run()
    jobs_folder(run).mkdir(parents=True, exist_ok=True)
    run.files.write("sow", StageRecord(state="running", host="node7", pid=1, job="100"))
    (squeue / "queue").write_text("")
    words = ["status", str(run.recipe.path), "--workspace", str(run.workspace.root), "--json"]
    assert main(words) == 0
    stage = json.loads(capfd.readouterr().out)["summary"]["stages"][0]
    assert (stage["state"], stage["error"]) == ("failed", "job 100 is no longer in the queue")

    # Nor is one in a job of other commands, once that is gone.
    words[1] = shutil.copy(run.recipe.path, run.workspace.root)
    shutil.rmtree(jobs_folder(run))
    (squeue / "queue").write_text("100|RUNNING|None|node7|nightly\n")
    assert main(words) == 0
    stage = json.loads(capfd.readouterr().out)["summary"]["stages"][0]
    assert (stage["state"], stage["error"]) == ("running", "")
    (squeue / "queue").write_text("")
    assert main(words) == 0
    assert json.loads(capfd.readouterr().out)["summary"]["stages"][0]["state"] == "failed"

    # Where Slurm does not answer nothing is known of the job.
    (squeue / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error' >&2\nexit 1\n")
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["summary"]["stages"][0]["state"] == "running"
    assert "slurm_load_jobs error" in err


def test_a_second_attempt_waits_for_the_first_that_still_runs(make_run, monkeypatch):
    """A node that Slurm has lost may still work; then its artifact is taken."""
    run, messages = make_run(), Messages()
    config = to_mapping(run.steps[0].config)
    first = run.workspace.begin("seed", "year", config=config)
    run.files.write("sow", StageRecord(state="running", host="node7", job="100"))

    def first_ends(seconds):
        first.publish({"rows": 3, "tool": "hand"}, seed=0)

    monkeypatch.setattr(plan, "time", SimpleNamespace(sleep=first_ends, monotonic=time.monotonic))
    outcome = run_only(run, "sow", messages, patience=90)
    assert outcome.state == "up to date"
    assert "waiting for an earlier attempt, which still runs on node7" in messages.lines

    # One that has not reported for long is not waited for.
    forced = RecipeRun(run.recipe, run.workspace, start="sow")
    lost = run.workspace.begin("seed", "year", config=config)
    record = StageRecord(state="running", host="node7", job="100")
    run.files.write("sow", record)
    path = run.files.path("sow")
    year = str(datetime.now(UTC).year)
    path.write_text(path.read_text().replace(f'"updated": "{year}', '"updated": "2001'))
    assert run_only(forced, "sow", messages, patience=90).state == "ran"
    lost.discard()
