"""Where the stages of a recipe stand, while they run and afterwards."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest

import lwdctl
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.core.config import to_mapping
from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.recipe import read_recipe
from lwdctl.pipeline.records import StageRecord, TaskState
from lwdctl.pipeline.status import GONE
from lwdctl.stages import STAGES

RECIPE = """
[stage.sow]
field_kind = "wheat"

[stage.grow]

[stage.reap]
"""


@pytest.fixture
def planned(tmp_path, toy_stages, workspace_path):
    path = tmp_path / "year.toml"
    path.write_text(RECIPE)
    return RecipeRun(read_recipe(path), Workspace(workspace_path))


def states(capfd, planned, *words):
    capfd.readouterr()
    assert main(["status", str(planned.recipe.path), "--json", *words]) == 0
    return json.loads(capfd.readouterr().out)["summary"]["stages"]


def test_from_missing_to_done(planned, capfd, workspace_path):
    path = str(planned.recipe.path)
    assert [item["state"] for item in states(capfd, planned)] == ["missing"] * 3
    assert not workspace_path.exists()
    assert main(["run", path, "-q", "--until", "grow"]) == 0
    found = states(capfd, planned)
    assert [item["state"] for item in found] == ["done", "done", "missing"]
    assert found[1]["artifact"] == "plant/year:v1"
    assert [item.state for item in lwdctl.status(path)] == ["done", "done", "missing"]
    # Toy size and other settings are other artifacts.
    assert [item["state"] for item in states(capfd, planned, "--smoke")] == ["missing"] * 3
    changed = states(capfd, planned, "--set", "grow.days=3")
    assert [item["state"] for item in changed] == ["done", "missing", "missing"]


def test_a_failed_stage_says_why(planned, capfd):
    path = str(planned.recipe.path)
    words = ["--set", "sow.fail=user"]
    assert main(["run", path, "-q", *words]) == 1
    found = states(capfd, planned, *words)
    assert [item["state"] for item in found] == ["failed", "missing", "missing"]
    assert (found[0]["error"], found[0]["hint"]) == ("plot 3 is a lake", "drain it")
    assert main(["status", path, *words]) == 0
    out = capfd.readouterr().out
    assert "plot 3 is a lake" in out
    assert "3 stages: 1 failed, 2 missing" in out


def test_an_interrupted_stage_with_a_checkpoint_is_resumable(planned, capfd):
    words = ["--set", "grow.fail=checkpoint"]
    assert main(["run", str(planned.recipe.path), "-q", *words]) == 130
    found = states(capfd, planned, *words)
    assert [item["state"] for item in found] == ["done", "resumable", "missing"]
    assert found[1]["error"] == "interrupted"


def test_a_running_stage_shows_its_progress(planned, capfd, monkeypatch, workspace_path):
    seen = []

    def grow(config, inputs, context):
        with (
            context.workspace.begin(
                "plant", context.name, config=to_mapping(config), inputs=list(inputs.values())
            ) as draft,
            context.progress.task("growing", 10, "day") as task,
        ):
            monkeypatch.setattr("lwdctl.pipeline.records.WRITE_SECONDS", 0.0)
            task.advance(4, height=1.5)
            seen.extend(lwdctl.status(planned.recipe.path))
            assert main(["status", str(planned.recipe.path)]) == 0
            return draft.publish({"days": config.days})

    monkeypatch.setitem(STAGES, "grow", dataclasses.replace(STAGES["grow"], run=grow))
    assert main(["run", str(planned.recipe.path), "-q", "--until", "grow"]) == 0
    assert [item.state for item in seen] == ["done", "running", "missing"]
    assert seen[1].host == socket.gethostname()
    assert seen[1].task == TaskState("growing", 4, 10, "day", {"height": 1.5})
    # A running stage has stdout for itself alone.
    assert "growing: 4/10 (40 %), height=1.5 on" in capfd.readouterr().err


def test_a_stage_whose_process_is_gone_has_failed(planned, capfd):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    record = StageRecord(
        "running", host=socket.gethostname(), pid=int(done.stdout), task=TaskState("x", 1, 2)
    )
    planned.files.write("sow", record)
    assert states(capfd, planned)[0]["state"] == "failed"
    assert states(capfd, planned)[0]["error"] == GONE
    planned.files.write("sow", dataclasses.replace(record, pid=os.getpid()))
    assert states(capfd, planned)[0]["state"] == "running"
    planned.files.write("sow", dataclasses.replace(record, pid=2**40))  # damaged
    assert states(capfd, planned)[0]["error"] == GONE
    # Another machine's processes cannot be seen from here.
    planned.files.write("sow", dataclasses.replace(record, host="elsewhere"))
    assert states(capfd, planned)[0]["state"] == "running"


def test_texts_of_records_cannot_act_on_a_terminal(planned, capfd):
    planned.files.write("sow", StageRecord("failed", error="\x1b[2Jall is well"))
    capfd.readouterr()
    assert main(["status", str(planned.recipe.path)]) == 0
    assert "\x1b" not in capfd.readouterr().out


def test_a_command_of_its_own_that_works_on_a_stage_is_seen(planned, capfd, workspace_path):
    assert main(["run", str(planned.recipe.path), "-q", "--until", "sow"]) == 0
    seed = Workspace(workspace_path).resolve("seed")
    config = to_mapping(planned.steps[1].config)
    with Workspace(workspace_path).begin("plant", "year", config=config, inputs=[seed]):
        assert states(capfd, planned)[1]["state"] == "running"
    assert states(capfd, planned)[1]["state"] == "missing"
