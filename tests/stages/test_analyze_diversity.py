"""`analyze diversity` on a toy chain, as the command line runs it."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest
from trained_grid import ENV, TINY, do, write_snippets

from lwdctl.analysis.sections import read_sections
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.evaluation import rollout
from lwdctl.pipeline.inputs import wanted_kinds
from lwdctl.stages import STAGES
from lwdctl.stages.analyze_diversity import _draw, _episodes

pytestmark = pytest.mark.sim

COMMAND = "analyze diversity"
SMALL = {"count": 4, "max_steps": 10, "workers": 0, "slots": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("diversity"))
    write_snippets(workspace)
    vae = {**TINY, "snippet_length": 8, "policy_width": 8, "decoder": "xs"}
    do("train-vae", workspace, vae)
    do("encode", workspace, {"device": "cpu"})
    do("train-diffusion", workspace, {**TINY, "width": 16})
    return workspace


@pytest.fixture(scope="module")
def measured(workspace: Workspace) -> Artifact:
    return do(COMMAND, workspace, SMALL)


def test_all_groups_from_the_same_starts(measured: Artifact) -> None:
    summary = measured.manifest.summary
    assert [item.kind for item in measured.manifest.inputs] == ["diffusion"]
    assert (summary["starts"], summary["steps"], summary["horizon"]) == (4, 10, 8)
    assert 0.0 <= summary["modes_told_right"] <= 1.0
    for group in ("demonstrated", "sampled", "encoded", "mean"):
        found = summary[group]
        assert list(found["mode_shares"]) == ["slow", "fast"]
        assert sum(found["mode_shares"].values()) == pytest.approx(1.0)
        assert 1.0 <= found["effective_modes"] <= 2.0 + 1e-9
        assert found["mean_variance"] > 0
    for group in ("sampled", "encoded", "mean"):
        found = summary[group]
        assert found["variance_ratio_low"] <= found["variance_ratio_high"]
        assert 0.0 <= found["mode_variation"] <= 1.0
    assert 0.0 < summary["sampled"]["within_starts"] < 1.0
    assert "within_starts" not in summary["mean"]
    with measured.payload("diversity.csv").open() as file:
        rows = list(csv.DictReader(file))
    counts = {name: [row["group"] for row in rows].count(name) for name in summary if name in
              ("demonstrated", "sampled", "encoded", "mean")}  # fmt: skip
    assert counts == {"demonstrated": 4, "sampled": 8, "encoded": 4, "mean": 4}
    assert len({row["episode"] for row in rows}) == 4
    _, sections = read_sections(measured.path)
    assert [one.figure for one in sections] == ["", "spread", "modes", ""]


def test_the_same_seed_gives_the_same_whatever_the_batch(
    workspace: Workspace, measured: Artifact
) -> None:
    again = do(COMMAND, workspace, {**SMALL, "slots": 5})
    for group in ("sampled", "encoded", "mean"):
        found, expected = again.manifest.summary[group], measured.manifest.summary[group]
        assert found["mean_variance"] == pytest.approx(expected["mean_variance"], rel=1e-4)
        assert found["mode_shares"] == expected["mode_shares"]


def test_clusters_where_the_data_name_no_behaviour(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = SnippetStore.open

    def unlabelled(path: Any) -> SnippetStore:
        store = opened(path)
        store.episodes.label[:] = -1
        return store

    monkeypatch.setattr(SnippetStore, "open", staticmethod(unlabelled))
    summary = do(COMMAND, workspace, {**SMALL, "latent": ["mean"], "modes": 3}).manifest.summary
    assert summary["modes_told_right"] is None
    assert list(summary["mean"]["mode_shares"]) == ["cluster 1", "cluster 2", "cluster 3"]
    for count in (1, 6):
        with pytest.raises(ConfigError, match="cannot be told apart"):
            do(COMMAND, workspace, {**SMALL, "modes": count})


def test_a_lost_simulator_costs_its_start_everywhere(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rollout.rollout

    def losing(*words: Any, **named: Any) -> rollout.RolloutResult:
        from dataclasses import replace

        result = real(*words, **named)
        first, *others = result.episodes
        return rollout.RolloutResult((replace(first, error="gone"), *others), result.seconds)

    monkeypatch.setattr(rollout, "rollout", losing)
    with pytest.raises(SimulatorError, match="3 episodes were lost"):
        do(COMMAND, workspace, SMALL)
    published = workspace.artifacts("analysis")[-1]
    assert published.manifest.summary["starts"] == 3
    assert published.manifest.summary["episodes_lost_to_simulators"] == {
        "sampled": 1, "encoded": 1, "mean": 1,
    }  # fmt: skip


def test_as_many_starts_of_every_label(workspace: Workspace) -> None:
    store = SnippetStore.open(workspace.resolve("snippets").path)
    task, episodes, category = _episodes(store, "")
    assert task == ENV.tasks[0]
    assert len(episodes) == 6
    assert category is not None
    stage = STAGES.load(COMMAND)
    from lwdctl.stages.analyze_diversity import Demonstrations

    many = Demonstrations(task, np.arange(30), np.repeat([0, 1, 2], (20, 5, 5)), np.zeros((30, 1)))
    chosen = _draw(many, from_mapping(stage.config, {"count": 9}))
    assert many.category is not None
    assert np.bincount(many.category[chosen]).tolist() == [3, 3, 3]
    assert len(_draw(many, from_mapping(stage.config, {"count": 99}))) == 30


def test_what_it_reads_and_refuses(workspace: Workspace) -> None:
    stage = STAGES.load(COMMAND)
    assert wanted_kinds(stage, stage.config()) == ("snippets", "vae", "latents", "diffusion")
    encoded = from_mapping(stage.config, {"latent": ["encoded"]})
    assert wanted_kinds(stage, encoded) == ("snippets", "vae")
    mean = from_mapping(stage.config, {"latent": ["mean"]})
    assert wanted_kinds(stage, mean) == ("snippets", "vae", "latents")
    with pytest.raises(ConfigError, match="is no task"):
        do(COMMAND, workspace, {**SMALL, "task": "pusht2"})
    with pytest.raises(ConfigError, match="too many"):
        do(COMMAND, workspace, {**SMALL, "denoise_steps": 101})
