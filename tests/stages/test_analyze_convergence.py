"""`lwdctl analyze convergence` on every method: the snapshots are run, the last is the model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained_grid import TINY, do, everything, train_lwd, write_snippets

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ConfigError
from lwdctl.training import checkpoint

pytestmark = pytest.mark.sim
RUN = {"episodes": 2, "max_steps": 20, "num_envs": 2, "workers": 0, "device": "cpu"}
SNAPSHOTS = {"updates": 6, "snapshots": 3}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    found = Workspace(tmp_path_factory.mktemp("ws"))
    write_snippets(found)
    train_lwd(found, 8, 0, **SNAPSHOTS)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lwd", "dp", "ldp", "mlp"])
def test_every_snapshot_runs_and_the_last_is_the_model(
    workspace: Workspace, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = {}, checkpoint.load_snapshot

    def noting(model: torch.nn.Module, directory: Path, update: int) -> None:
        load(model, directory, update)
        loaded[update] = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    monkeypatch.setattr(checkpoint, "load_snapshot", noting)
    named = {}
    if method != "lwd":
        sizes: dict[str, Any] = {"snippet_length": 8, "unet_size": "xs", "latent_size": 8}
        values = {**TINY, **SNAPSHOTS, **sizes, "method": method, "policy_width": 8}
        named = {"baseline": do("train-baseline", workspace, values, name=method).reference}
    found = do("analyze convergence", workspace, {**RUN, "seed": 100_000}, named=named)
    assert list(loaded) == [2, 4, 6]
    assert not torch.equal(loaded[2], loaded[6])
    summary = found.manifest.summary
    assert list(summary["curves"]["max_overlap"]) == ["2", "4", "6"]
    assert summary["since"] == 4
    assert summary["verdict"] in {"flat", "still gains", "undecided"}
    assert (found.path / "figures" / "convergence.png").exists()
    record = json.loads((found.path / "analysis.json").read_text())
    assert len(record["sections"][0]["table"]["rows"]) == 4
    assert record["sections"][0]["text"].endswith(f"Verdict: {summary['verdict']}.")
    settings = {**RUN, "policy": [method], "latent": ["sampled"], "horizon": [8]}
    (row,) = everything(do("eval", workspace, settings))
    final = summary["curves"]["max_overlap"]["6"]["mean"]
    assert final == pytest.approx(row["metrics"]["max_overlap"])


@pytest.mark.slow
def test_a_training_without_snapshots_is_answered(workspace: Workspace) -> None:
    values = {**TINY, "method": "mlp", "policy_width": 8}
    model = do("train-baseline", workspace, values, name="plain")
    with pytest.raises(ConfigError, match="kept 0 snapshots") as error:
        do("analyze convergence", workspace, RUN, named={"baseline": model.reference})
    assert "--snapshots" in error.value.hint


def test_seeds_that_demonstrations_were_recorded_from_are_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = SnippetStore.open

    def with_seeds(path: Path) -> SnippetStore:
        store = opened(path)
        seeds = np.full_like(store.episodes.seed, -1)
        seeds[2] = 200_001
        store.episodes = dataclasses.replace(store.episodes, seed=seeds)
        return store

    monkeypatch.setattr(SnippetStore, "open", with_seeds)
    with pytest.raises(ConfigError, match="1 demonstrations were recorded from") as refused:
        do("analyze convergence", workspace, RUN)
    assert refused.value.hint == "--seed 200002"
