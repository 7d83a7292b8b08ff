import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import SilentProgress
from lwdctl.pipeline.run_stage import run_stage


def test_stages_by_name_and_their_inputs(toy_stages, workspace_path):
    workspace, quiet = Workspace(workspace_path), SilentProgress()
    for kind in ("wheat", "rye"):
        made = run_stage("sow", workspace, {"field_kind": kind}, name=kind, progress=quiet)
        assert made.manifest.config["field_kind"] == kind
    grown = run_stage("grow", workspace, inputs={"seed": "wheat"}, progress=quiet)
    assert grown.reference == "plant/wheat:v1"
    with pytest.raises(ConfigError, match="dais") as caught:
        run_stage("grow", workspace, {"dais": 3}, inputs={"seed": "rye"}, progress=quiet)
    assert "days" in caught.value.hint
    with pytest.raises(ConfigError, match="no stage is called 'gro'"):
        run_stage("gro", workspace, progress=quiet)
