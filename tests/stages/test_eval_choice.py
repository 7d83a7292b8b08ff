"""Which models an evaluation takes: of the whole workspace, or of what a recipe made."""

from __future__ import annotations

from typing import Any

import pytest
from trained_grid import GRID, TINY, do, everything

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import SilentProgress
from lwdctl.pipeline.inputs import resolve_inputs
from lwdctl.stages import STAGES
from lwdctl.stages.stage import StageContext

pytestmark = pytest.mark.sim

VALUES = {**GRID, "policy": ["lwd", "dp"], "perturbation": [0.0]}


def chosen(workspace: Workspace, among: tuple[Artifact, ...] | None, **values: Any) -> list[str]:
    stage = STAGES.load("eval")
    config = from_mapping(stage.config, {**VALUES, **values})
    inputs = resolve_inputs(stage, config, workspace, {})
    context = StageContext(workspace, SilentProgress(), among=among)
    assert stage.choices is not None
    assert stage.choices(config) == ("diffusion", "baseline")
    assert stage.chosen is not None
    return [artifact.reference for artifact in stage.chosen(config, inputs, context)]


def test_the_newest_of_the_workspace_or_the_last_that_is_given(workspace: Workspace) -> None:
    models = [*workspace.artifacts("diffusion"), *workspace.artifacts("baseline")]
    newest = ["diffusion/l8s0:v1", "diffusion/l16s1:v1", "baseline/dp8:v1", "baseline/dp16:v1"]
    assert chosen(workspace, None) == newest
    assert chosen(workspace, tuple(models)) == newest
    older = tuple(model for model in models if model.name != "l16s1")
    assert "diffusion/l16s0:v1" in chosen(workspace, older)
    turned = chosen(workspace, tuple(models[::-1]))
    assert "diffusion/l16s0:v1" in turned


def test_what_is_not_given_is_missing(workspace: Workspace) -> None:
    given = tuple(item for item in workspace.artifacts("diffusion") if item.name == "l8s0")
    with pytest.raises(ConfigError, match="lwd at horizon 16; dp at horizon 8; dp at horizon 16"):
        chosen(workspace, given)


def test_what_is_chosen_is_what_the_evaluation_records(workspace: Workspace) -> None:
    artifact = do("eval", workspace, {**VALUES, "horizon": [16]})
    recorded = [item.reference for item in artifact.manifest.inputs]
    assert recorded == chosen(workspace, None, horizon=[16])


def test_snippet_latents_run_without_denoising(workspace: Workspace) -> None:
    do("train-diffusion", workspace, {**TINY, "width": 16}, name="latest")
    values = {**VALUES, "policy": ["lwd"], "latent": ["snippet"], "horizon": []}
    (cell,) = everything(do("eval", workspace, values))
    assert (cell["latent"], cell["denoiser_queries_per_episode"]) == ("snippet", 0)
