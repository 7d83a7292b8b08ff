"""Stages started through an executor: order, failures, what is reported."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.core.errors import LwdctlError
from lwdctl.core.progress import SilentProgress
from lwdctl.pipeline.executor import Ended, run_with
from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.recipe import read_recipe

RECIPE = """
[stage.sow]
field_kind = "wheat"

[stage.rye]
uses = "sow"
field_kind = "rye"
name = "rye"

[stage.grow]
needs = "sow"

[stage.grow-rye]
uses = "grow"
needs = "rye"
name = "rye"

[stage.reap]
needs = "grow"
"""


class Here:
    """Runs the command of a stage in this process, the newest first, when it is asked."""

    options = ("--jobs", "2")
    poll_seconds = 0.0

    def __init__(self, room=2, *, queues=False):
        self.room, self.queues = room, queues
        self.started, self.assisted, self.most, self.stopped = [], [], 0, False
        self._running = {}

    def has_room(self):
        return len(self._running) < self.room

    def start(self, stage, after):
        self.started.append((stage.id, tuple(after)))
        self._running[stage.id] = stage
        self.most = max(self.most, len(self._running))

    def assist(self, stage):
        self.assisted.append(stage.id)

    def ended(self):
        able = {
            name: stage
            for name, stage in self._running.items()
            if not set(stage.depends_on) & set(self._running)
        }
        if not able:
            return {}
        name = list(able)[-1]
        with contextlib.redirect_stderr(io.StringIO()):
            code = main([*self._running.pop(name).arguments, "-q"])
        return {name: Ended(succeeded=code == 0)}

    def stop(self):
        self.stopped = True
        self._running.clear()


@pytest.fixture
def make_run(tmp_path, toy_stages, capfd):
    path = tmp_path / "year.toml"
    path.write_text(RECIPE)

    def make(name="runs", *assignments):
        return RecipeRun(read_recipe(path), Workspace(tmp_path / name), assignments)

    return make


def test_outcomes_are_those_of_one_stage_after_the_other(make_run):
    executor = Here()
    outcomes = run_with(executor, make_run(), SilentProgress())
    assert [item.step.id for item in outcomes] == ["sow", "rye", "grow", "grow-rye", "reap"]
    assert [item.state for item in outcomes] == ["ran"] * 5
    assert [item.artifact.reference for item in outcomes] == [
        "seed/year:v1", "seed/rye:v1", "plant/year:v1", "plant/rye:v1", "crop/year:v1",
    ]  # fmt: skip
    assert executor.most == 2
    assert not executor.stopped
    again = Here()
    assert [item.state for item in run_with(again, make_run(), SilentProgress())] == [
        "up to date"
    ] * 5
    assert again.started == []


def test_a_queue_gets_all_stages_at_once_with_what_they_wait_for(make_run):
    executor = Here(room=99, queues=True)
    run_with(executor, make_run(), SilentProgress())
    assert executor.most == 5
    assert executor.started == [
        ("sow", ()),
        ("rye", ()),
        ("grow", ("sow",)),
        ("grow-rye", ("rye",)),
        ("reap", ("grow",)),
    ]


def test_a_failed_stage_stops_what_depends_on_it_alone(make_run):
    run = make_run("runs", "rye.fail=user")
    with pytest.raises(LwdctlError) as caught:
        run_with(Here(), run, SilentProgress())
    assert "1 of 5 stages failed: rye (plot 3 is a lake)" in caught.value.message
    assert caught.value.message.endswith("not run, as they depend on these: grow-rye")
    assert "lwdctl run" in caught.value.hint
    assert "--jobs 2" in caught.value.hint
    record = run.files.read("rye")
    assert (record.state, record.error, record.hint) == ("failed", "plot 3 is a lake", "drain it")
    # What does not depend on it was made, and the command again makes the rest.
    whole = make_run("runs")
    states = [item.state for item in run_with(Here(), whole, SilentProgress())]
    assert states == ["up to date", "ran", "up to date", "ran", "up to date"]


def test_a_failed_run_from_a_stage_says_from_where_to_go_on(make_run):
    run_with(Here(), make_run("runs"), SilentProgress())
    run = replace(make_run("runs", "grow.fail=early"), start="sow")
    with pytest.raises(LwdctlError) as caught:
        run_with(Here(), run, SilentProgress())
    assert "--from grow " in f"{caught.value.hint} "
    assert "--from sow" not in caught.value.hint


def test_a_process_that_dies_is_told_by_its_executor(make_run):
    class Dying(Here):
        def ended(self):
            name, _ = self._running.popitem() if self._running else ("", None)
            return {name: Ended(succeeded=False, reason="killed by signal 9")} if name else {}

    run = make_run()
    with pytest.raises(LwdctlError, match=r"sow \(killed by signal 9\)"):
        run_with(Dying(), run, SilentProgress())
    assert run.files.read("sow").error == "killed by signal 9"


def test_an_interrupted_run_stops_what_runs(make_run):
    class Interrupted(Here):
        def ended(self):
            if self._running:
                raise KeyboardInterrupt
            return {}

    executor = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run_with(executor, make_run(), SilentProgress())
    assert executor.stopped
