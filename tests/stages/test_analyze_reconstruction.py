"""`analyze reconstruction` on toy models, as the command line runs it."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import Any

import pytest
from trained_grid import TINY, do, write_snippets

from lwdctl.analysis import plotting
from lwdctl.analysis.reconstruction import SnippetRunner
from lwdctl.analysis.sections import read_sections
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.envs.pusht import PushTSimulator
from lwdctl.evaluation.traced import TracedEpisodes
from lwdctl.stages import STAGES
from lwdctl.stages.stage import LOST

pytestmark = pytest.mark.sim

COMMAND = "analyze reconstruction"
SMALL = {"count": 6, "split": "all", "workers": 0, "num_envs": 4, "device": "cpu"}
LENGTH = 8


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("reconstruction"))
    write_snippets(workspace)
    vae = {**TINY, "snippet_length": LENGTH, "policy_width": 8, "decoder": "xs", "snapshots": 2}
    do("train-vae", workspace, vae)
    do("encode", workspace, {"device": "cpu"})
    do("train-diffusion", workspace, {**TINY, "width": 16})
    return workspace


@pytest.fixture(scope="module")
def plain(workspace: Workspace) -> Artifact:
    return do(COMMAND, workspace, SMALL)


@pytest.mark.slow
def test_all_conditions_from_the_same_initial_states(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(PushTSimulator, "state_at")  # starts are then exact: actions replayed
    values = {**SMALL, "latent": ["oracle", "mean", "sampled"]}
    artifact = do(COMMAND, workspace, values)
    summary = artifact.manifest.summary
    assert artifact.name == "made"
    assert [item.type for item in artifact.manifest.inputs] == [
        "snippets",
        "vae",
        "latents",
        "diffusion",
    ]
    assert summary["snippets"] == 6
    assert summary["initial_error"] < 1e-9
    assert summary["recorded actions"]["final_normalized"] < 1e-9
    assert summary["recorded actions"]["mean_squared"] < 1e-4
    for arm in ("oracle", "mean", "sampled"):
        found = summary[arm]
        assert found["final_normalized_low"] <= found["final_normalized"]
        assert found["final_normalized"] > 1e-4
        assert 0.0 <= found["max_overlap"] <= 1.0
    assert summary["oracle"] != summary["sampled"] != summary["mean"]
    assert "success_difference" in summary["oracle minus sampled"]
    with artifact.payload("reconstruction_steps.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["policy"] == "oracle"]
    assert [int(row["step"]) for row in rows] == list(range(LENGTH + 1))
    assert {row["snippets"] for row in rows} == {"6"}
    with artifact.payload("reconstruction.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 6
    starts = {(row["episode"], row["offset"]) for row in rows}
    assert len(starts) == 6
    assert any(int(row["offset"]) for row in rows)


@pytest.mark.slow
def test_snapshots_lead_to_the_final_weights(workspace: Workspace, plain: Artifact) -> None:
    assert [item.type for item in plain.manifest.inputs] == ["snippets", "vae"]
    summary = plain.manifest.summary
    after = summary["after_updates"]
    assert list(after) == ["2", "4"]
    assert after["4"] == {name: summary["oracle"][name] for name in after["4"]}
    assert after["2"] != after["4"]
    _, sections = read_sections(plain.path)
    assert [one.figure for one in sections if one.figure] == ["error-by-step", "error-by-update"]
    vae = workspace.resolve("vae")
    assert vae.payload("snapshots/4.safetensors").stat().st_size > 0
    final = vae.payload("ema.safetensors").read_bytes()
    assert vae.payload("snapshots/4.safetensors").read_bytes() == final


@pytest.mark.slow
def test_the_same_seed_gives_the_same_whatever_the_batch(
    workspace: Workspace, plain: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plotting, "render", lambda *words: b"drawn elsewhere")
    narrow = do(COMMAND, workspace, {**SMALL, "num_envs": 3})
    for arm in ("recorded actions", "oracle", "mean"):
        found, expected = narrow.manifest.summary[arm], plain.manifest.summary[arm]
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_a_simulator_lost_with_earlier_weights_is_reported(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = SnippetRunner.decode

    def losing(self: SnippetRunner, vae: Any, latents: Any, title: str) -> TracedEpisodes:
        outcome = decode(self, vae, latents, title)
        if title != "after 2 training steps":
            return outcome
        first, *others = outcome.results
        return TracedEpisodes(
            [None, *outcome.observations[1:]], [replace(first, error="it died"), *others]
        )

    monkeypatch.setattr(SnippetRunner, "decode", losing)
    with pytest.raises(SimulatorError, match="1 episodes were lost"):
        do(COMMAND, workspace, SMALL, name="lost")
    assert workspace.resolve("analysis", "lost").manifest.summary[LOST] == {
        "after 2 training steps": 1
    }


def test_what_it_reads_and_refuses(workspace: Workspace) -> None:
    stage = STAGES[COMMAND]
    assert stage.reads(stage.config()) == ("snippets", "vae")
    sampled = from_mapping(stage.config, {"latent": ["sampled"]})
    assert stage.reads(sampled) == ("snippets", "vae", "latents", "diffusion")
    with pytest.raises(ConfigError, match="latent"):
        from_mapping(stage.config, {"latent": ["shuffled"]})
    with pytest.raises(ConfigError, match="guidance changes how latents are sampled, and none"):
        do(COMMAND, workspace, {**SMALL, "latent": ["oracle"], "guidance": 2.0})
    with pytest.raises(ConfigError, match="too many"):
        do(COMMAND, workspace, {**SMALL, "latent": ["sampled"], "num_inference_steps": 101})
    assert workspace.unfinished("analysis") == []
