"""Which models an evaluation takes: of the whole workspace, or of what a recipe made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trained_grid import GRID, TINY, do, everything, train_lwd, write_snippets

from lwdctl.analysis.evaluations import read_evaluation
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.progress import SilentProgress
from lwdctl.pipeline.run_stage import resolve_inputs, run_stage
from lwdctl.stages import STAGES
from lwdctl.stages.stage import StageContext

pytestmark = pytest.mark.sim

VALUES = {**GRID, "policy": ["lwd", "dp"], "perturbation": [0.0]}


def chosen(workspace: Workspace, among: tuple[Artifact, ...] | None, **values: Any) -> list[str]:
    stage = STAGES["eval"]
    config = from_mapping(stage.config, {**VALUES, **values})
    inputs = resolve_inputs(stage, config, workspace, {})
    context = StageContext(workspace, SilentProgress(), candidates=among)
    assert stage.candidates(config) == ("diffusion", "baseline")
    return [artifact.reference for artifact in stage.choose(config, inputs, context) or ()]


def test_the_newest_of_the_workspace_or_the_last_that_is_given(workspace: Workspace) -> None:
    models = [*workspace.artifacts("diffusion"), *workspace.artifacts("baseline")]
    newest = ["diffusion/l8s0:v1", "diffusion/l16s1:v1", "baseline/dp8:v1", "baseline/dp16:v1"]
    assert chosen(workspace, None) == newest
    assert chosen(workspace, tuple(models)) == newest
    older = tuple(model for model in models if model.name != "l16s1")
    assert "diffusion/l16s0:v1" in chosen(workspace, older)
    turned = chosen(workspace, tuple(models[::-1]))
    assert "diffusion/l16s0:v1" in turned


@pytest.mark.slow
def test_an_episodes_snippets_and_their_steps_are_one_horizon(workspace: Workspace) -> None:
    train_lwd(workspace, "episode", 0)
    do("train-baseline", workspace, {**TINY, "method": "dp", "snippet_length": 30}, name="dp30")
    found = chosen(workspace, None, horizon=[8, 30])
    lwd = ["diffusion/l8s0:v1", "diffusion/lepisodes0:v1"]
    assert found == [*lwd, "baseline/dp8:v1", "baseline/dp30:v1"]
    beside = chosen(workspace, None, horizon=[10, 30], one_model=True)
    assert beside == ["diffusion/lepisodes0:v1", "baseline/dp30:v1"]


@pytest.mark.slow
def test_chunks_that_are_executed_in_part_run_beside_lwd(workspace: Workspace) -> None:
    values = {**TINY, "method": "dp", "snippet_length": 16, "executed": 4}
    do("train-baseline", workspace, values, name="dp16x4")
    for how in ({"horizon": []}, {"horizon": [4, 6], "one_model": True}):
        assert chosen(workspace, None, **how) == ["diffusion/l16s1:v1", "baseline/dp16x4:v1"]
    rows = do("eval", workspace, {**VALUES, "horizon": []}).manifest.summary["results"]
    assert {(row["policy"], row["horizon"]) for row in rows} == {("lwd", 16), ("dp", 4)}


def test_magnitudes_of_seven_digits_are_two_conditions(workspace: Workspace) -> None:
    values = {**GRID, "policy": ["random"], "perturbation": [0.1234561, 0.1234564]}
    artifact = do("eval", workspace, values)
    assert len(artifact.files_in("episodes", ".json")) == 2


def test_what_is_not_given_is_missing(workspace: Workspace) -> None:
    given = tuple(item for item in workspace.artifacts("diffusion") if item.name == "l8s0")
    with pytest.raises(ConfigError, match="lwd at horizon 16; dp at horizon 8; dp at horizon 16"):
        chosen(workspace, given)


@pytest.mark.parametrize("how", [{"horizon": []}, {"horizon": [4, 6], "one_model": True}])
def test_a_baseline_that_is_missing_beside_lwd_has_its_snippet_length(
    workspace: Workspace, how: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(workspace, None, policy=["lwd", "ldp"], **how)
    assert caught.value.hint == "lwdctl train-baseline ldp --snippet-length 16"


class Told(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def test_the_hint_names_the_data_that_the_evaluation_reads(workspace: Workspace) -> None:
    write_snippets(workspace)
    with pytest.raises(ConfigError) as caught:
        do("eval", workspace, {**VALUES, "horizon": [16, 32]}, named={"diffusion": "l16s1"})
    lwd, dp = caught.value.hint.split("; or ")[0].split(" && ")[::3]
    assert lwd == "lwdctl train-vae --snippets snippets/made:v1 --snippet-length 32"
    assert dp == "lwdctl train-baseline dp --snippets snippets/made:v1 --snippet-length 32"


def test_a_model_that_was_trained_for_the_horizon_is_named(workspace: Workspace) -> None:
    values = {**VALUES, "policy": ["lwd"], "max_steps": 2}
    for horizon, expected in ((16, "; for 16 steps: --diffusion l16s1:v1"), (9, "not trained")):
        told = Told()
        one, model = {**values, "horizon": [horizon]}, {"diffusion": "l8s0"}
        run_stage("eval", one, inputs=model, workspace=workspace, progress=told)
        (warning,) = [line for line in told.said if line.startswith("warning: lwd follows")]
        assert warning.endswith(expected)


def test_the_baselines_that_an_evaluation_runs_are_named(workspace: Workspace) -> None:
    """The newest baseline, an MLP here, only leads to the data."""
    told = Told()
    assert workspace.resolve("baseline").method == "mlp"
    values = {**VALUES, "policy": ["dp"], "max_steps": 2}
    run_stage("eval", values, workspace=workspace, progress=told)
    read = [line for line in told.said if line.startswith("reading baseline")]
    assert read == ["reading baseline/dp8:v1 (dp)", "reading baseline/dp16:v1 (dp)"]


@pytest.mark.slow
def test_what_is_chosen_is_what_the_evaluation_records(workspace: Workspace) -> None:
    artifact = do("eval", workspace, {**VALUES, "horizon": [16]})
    recorded = [item.reference for item in artifact.manifest.inputs]
    assert recorded == chosen(workspace, None, horizon=[16])


@pytest.mark.slow
def test_random_latents_run_without_denoising(workspace: Workspace) -> None:
    do("train-diffusion", workspace, {**TINY, "width": 16}, name="latest")
    values = {**VALUES, "policy": ["lwd"], "latent": ["random"], "horizon": []}
    (cell,) = everything(do("eval", workspace, values))
    assert (cell["latent"], cell["replans_per_episode"]) == ("random", 0)


@pytest.mark.slow
def test_what_is_not_sampled_needs_no_diffusion_model(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_snippets(workspace)
    vae = {**TINY, "snippet_length": 8, "policy_width": 8, "decoder": "xs", "seed": 3}
    do("train-vae", workspace, vae)
    values = {"policy": ["lwd"], "episodes": 2, "max_steps": 10, "workers": 0, "num_envs": 2,
              "device": "cpu"}  # fmt: skip
    alone = do("eval", workspace, {**values, "latent": ["oracle"]})
    assert [item.type for item in alone.manifest.inputs] == ["vae"]
    (before,) = everything(alone)
    assert (before["train_seed"], before["horizon"], before["snippet_length"]) == (3, 8, 8)
    assert before["cost"]["denoiser_flops_per_replan"] == 0.0
    with pytest.raises(ArtifactError, match="latents"):
        do("eval", workspace, {**values, "latent": ["oracle", "mean"]})
    do("encode", workspace, {"device": "cpu"})
    (_, mean) = everything(do("eval", workspace, {**values, "latent": ["oracle", "mean"]}))
    assert mean["latent"] == "mean"
    with pytest.raises(ArtifactError, match="diffusion"):
        do("eval", workspace, {**values, "latent": ["oracle", "sampled"]})
    do("train-diffusion", workspace, {**TINY, "width": 16}, name="named")
    named = do("eval", workspace, {**values, "latent": ["oracle"]}, named={"diffusion": "named"})
    assert [item.type for item in named.manifest.inputs] == ["diffusion"]
    (after,) = everything(named)
    # The seed of the diffusion model stands in the result row; what the policy did is the same.
    assert after["train_seed"] == 0
    assert after["metrics"] == before["metrics"]
    runs = read_evaluation(alone, workspace.root)
    (compared,) = (run for run in runs if run.overall.latent == "oracle")
    assert (compared.overall.train_seed, len(compared.episodes)) == (3, 2)
