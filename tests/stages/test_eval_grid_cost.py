"""The cost of a grid's conditions, its warm starts and its timings."""

from __future__ import annotations

import pytest
from trained_grid import GRID, do, everything

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ConfigError

pytestmark = pytest.mark.sim


@pytest.mark.slow
def test_every_result_row_holds_its_cost(workspace: Workspace) -> None:
    values = {**GRID, "horizon": [8], "perturbation": [0.0], "latent": ["sampled", "oracle"]}
    cells = {cell["policy"] + cell["latent"]: cell for cell in everything(
        do("eval", workspace, {**values, "one_model": True})
    )}  # fmt: skip
    assert set(cells) == {"lwdsampled", "lwdoracle", "dp", "mlp", "random"}
    for cell in cells.values():
        cost = cell["cost"]
        query = cost["denoiser_flops_per_replan"] + cost["decoder_flops_per_replan"]
        per_step = cost["replans_per_step"] * query + cost["policy_flops_per_step"]
        assert cost["flops_per_step"] == pytest.approx(per_step)
        assert not any(name.startswith("latency") for name in cost)
        queries = cell["replans_per_episode"]
        if cell["sampler"]:  # every episode runs 20 steps
            assert cost["replans_per_step"] == pytest.approx(queries / 20) == 3 / 20
    sampled, encoded = cells["lwdsampled"]["cost"], cells["lwdoracle"]["cost"]
    summary = newest(workspace, "diffusion").manifest.summary
    denoiser = 10 * summary["flops_per_denoising_step"]
    assert sampled["denoiser_flops_per_replan"] == denoiser
    assert encoded["denoiser_flops_per_replan"] == 0
    assert encoded["replans_per_step"] == 3 / 20
    for name, part in (("decoder", "decoder_flops_per_replan"),
                       ("policy", "policy_flops_per_step")):  # fmt: skip
        expected = newest(workspace, "vae").manifest.summary[f"{name}_flops"]
        assert sampled[part] == encoded[part] == pytest.approx(expected, rel=0.01)
    cloned = newest(workspace, "baseline").manifest.summary
    assert cells["mlp"]["cost"]["flops_per_step"] == cloned["policy_flops"]
    assert cells["mlp"]["cost"]["parameters_at_control_rate"] > 0
    assert cells["dp"]["cost"]["parameters_at_control_rate"] == 0
    assert cells["random"]["cost"]["flops_per_step"] == 0


def newest(workspace: Workspace, kind: str) -> Artifact:
    return workspace.artifacts(kind)[-1]


@pytest.mark.slow
def test_a_warm_start_is_recorded_costs_less_and_is_measured_anew(
    workspace: Workspace, rolled: list[str]
) -> None:
    values = {**GRID, "horizon": [8], "perturbation": [0.0]}
    cold = do("eval", workspace, values, name="cold")
    rolled.clear()
    warm = do("eval", workspace, {**values, "warm_start": 0.5}, name="warm")
    assert rolled == ["lwd-sampled", "dp", "mlp", "random"]
    assert "warm start" in warm.manifest.summary["protocol"]
    assert "warm start" not in cold.manifest.summary["protocol"]
    assert [cell["warm_start"] for cell in everything(warm)] == [0.5, 0.5, 0.0, 0.0]
    for first, second in zip(everything(cold)[:2], everything(warm)[:2], strict=True):
        # Three re-plans of 10 denoising steps, or one of 10 and two of 5.
        ratio = (
            second["cost"]["denoiser_flops_per_replan"]
            / (first["cost"]["denoiser_flops_per_replan"])
        )
        assert ratio == pytest.approx(20 / 30)
        assert second["cost"]["flops_per_step"] < first["cost"]["flops_per_step"]


def test_models_that_cannot_be_guided_are_refused_before_anything_runs(
    workspace: Workspace, rolled: list[str]
) -> None:
    values = {**GRID, "horizon": [8], "perturbation": [0.0], "guidance": 0.5}
    with pytest.raises(ConfigError, match="cannot be guided"):
        do("eval", workspace, values, name="guided")
    assert rolled == []


@pytest.mark.slow
def test_latency_is_timed_for_all_conditions_in_one_run(workspace: Workspace) -> None:
    values = {**GRID, "horizon": [8], "latent": ["sampled", "oracle"]}
    timed = do("eval", workspace, {**values, "latency": True}, name="timed")
    for cell in everything(timed):
        cost = cell["cost"]
        assert cost["latency_step_p99_ms"] >= cost["latency_step_ms"] > 0
        assert (cost["latency_replan_ms"] is None) == (cell["policy"] in {"mlp", "random"})
        assert cost["latency_threads"] >= 1
        assert "flops_per_step" in cost
