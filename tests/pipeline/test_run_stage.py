import dataclasses

import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import SilentProgress
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.stages import STAGES
from lwdctl.stages.stage import Stage


def test_stages_by_name_and_their_inputs(toy_stages, workspace_path):
    workspace, quiet = Workspace(workspace_path), SilentProgress()
    for kind in ("wheat", "rye"):
        made = run_stage(
            "sow", {"field_kind": kind}, workspace=workspace, name=kind, progress=quiet
        )
        assert made.manifest.config["field_kind"] == kind
    grown = run_stage("grow", workspace=workspace, inputs={"seed": "wheat"}, progress=quiet)
    assert grown.reference == "plant/wheat:v1"
    with pytest.raises(ConfigError, match="dais") as caught:
        run_stage("grow", {"dais": 3}, workspace=workspace, inputs={"seed": "rye"}, progress=quiet)
    assert "days" in caught.value.hint
    with pytest.raises(ConfigError, match="of the type list, expected a GrowConfig or a mapping"):
        run_stage("grow", ["days"], workspace=workspace, progress=quiet)
    with pytest.raises(ConfigError, match="no stage is called 'gro'"):
        run_stage("gro", workspace=workspace, progress=quiet)


class Messages(SilentProgress):
    """Keeps the lines that it is to show."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def test_the_method_of_a_baseline_that_is_read_is_named(toy_stages, workspace_path, monkeypatch):
    workspace = Workspace(workspace_path)
    made = []
    for method in ("mlp", "dp", "ldp"):
        with workspace.begin("baseline", "reach", config={"method": method}) as run:
            made.append(run.publish({}))
    config = dataclasses.make_dataclass("Config", [])
    stage = Stage("look", "picture", config, ("baseline",), lambda *_: made[0])
    monkeypatch.setitem(STAGES, "look", stage)

    def lines(**settings):
        run_stage("look", workspace=workspace, progress=(progress := Messages()), **settings)
        return progress.lines

    assert lines() == ["reading baseline/reach:v3 (ldp, the newest)"]
    assert lines(inputs={"baseline": "reach:v1"}) == ["reading baseline/reach:v1 (mlp)"]
    # A stage that chooses its models itself says which (see test_eval_choice).
    monkeypatch.setattr(Stage, "candidates", lambda *_: ("baseline",))
    assert lines() == []
