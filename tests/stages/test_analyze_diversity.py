"""`analyze diversity` on toy models, as the command line runs it."""

from __future__ import annotations

import csv
from collections import Counter
from typing import Any

import numpy as np
import pytest
from trained_grid import ENV, do, train_lwd, write_snippets

from lwdctl.analysis import diversity
from lwdctl.analysis.analyses import AnalyzeDiversityConfig
from lwdctl.analysis.diversity import (
    Demonstrations,
    DiversityRuns,
    draw_initial_states,
    find_demonstrations,
)
from lwdctl.analysis.sections import read_sections
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.evaluation import rollout, traced
from lwdctl.stages import STAGES

pytestmark = pytest.mark.sim

COMMAND = "analyze diversity"
GROUPS = ("demonstrations", "sampled", "oracle", "mean")
SMALL = {"count": 4, "max_steps": 10, "workers": 0, "num_envs": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("diversity"))
    write_snippets(workspace)
    train_lwd(workspace, 8, 0)
    return workspace


@pytest.fixture(scope="module")
def measured(workspace: Workspace) -> Artifact:
    return do(COMMAND, workspace, SMALL)


@pytest.mark.slow
def test_all_groups_from_the_same_initial_states(measured: Artifact) -> None:
    summary = measured.manifest.summary
    assert [item.type for item in measured.manifest.inputs] == [
        "snippets",
        "vae",
        "latents",
        "diffusion",
    ]
    assert (summary["initial_states"], summary["steps"], summary["horizon"]) == (4, 10, 8)
    assert 0.0 <= summary["mode_accuracy"] <= 1.0
    for group in GROUPS:
        found = summary[group]
        assert list(found["mode_fractions"]) == ["slow", "fast"]
        assert sum(found["mode_fractions"].values()) == pytest.approx(1.0)
        assert 1.0 <= found["effective_modes"] <= 2.0 + 1e-9
        assert found["mean_variance"] > 0
        assert 0.0 < found["largest_component_fraction"] <= 1.0
    for group in GROUPS[1:]:
        found = summary[group]
        assert found["variance_ratio_low"] <= found["variance_ratio_high"]
        assert 0.0 <= found["mode_total_variation"] <= 1.0
    assert 0.0 < summary["sampled"]["within_state_variance"] < 1.0
    assert "within_state_variance" not in summary["mean"]
    with measured.payload("diversity.csv").open() as file:
        rows = list(csv.DictReader(file))
    counts = Counter(row["group"] for row in rows)
    assert counts == {"demonstrations": 4, "sampled": 8, "oracle": 4, "mean": 4}
    _, sections = read_sections(measured.path)
    assert [one.figure for one in sections] == ["", "variance", "", "modes", ""]
    assert "8 steps" in sections[0].text
    components = sections[2].table
    assert components is not None
    names = [row[0] for row in components.rows]
    assert summary["sampled"]["largest_component"] in names
    assert components.columns[1:4] == (
        "fraction, demonstrations",
        "fraction, sampled",
        "ratio, sampled",
    )
    weighted = sum(row[1] * row[3] for row in components.rows if row[3] is not None)
    assert weighted == pytest.approx(summary["sampled"]["variance_ratio"])  # all six are shown


@pytest.mark.slow
def test_every_trajectory_begins_where_its_demonstration_does(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[DiversityRuns] = []
    compose = diversity.compose
    monkeypatch.setattr(diversity, "compose", lambda runs: kept.append(runs) or compose(runs))
    do(COMMAND, workspace, {**SMALL, "draws": 3})
    (runs,) = kept
    assert len(np.unique(runs.demonstrated[:, 0], axis=0)) == 4
    for states in runs.states.values():
        for draw in range(states.shape[1]):
            begun = states[:, draw, 0]
            np.testing.assert_allclose(begun, runs.demonstrated[:, 0], atol=1e-4)
    sampled = runs.states["sampled"]
    assert sampled.shape[1] == 3
    assert (np.abs(sampled[:, 0, -1] - sampled[:, 1, -1]).max(axis=1) > 1e-6).all()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_whatever_the_batch(
    workspace: Workspace, measured: Artifact
) -> None:
    again = do(COMMAND, workspace, {**SMALL, "num_envs": 5})
    for group in ("sampled", "oracle", "mean"):
        found, expected = again.manifest.summary[group], measured.manifest.summary[group]
        assert found["mean_variance"] == pytest.approx(expected["mean_variance"], rel=1e-4)
        assert found["mode_fractions"] == expected["mode_fractions"]


@pytest.mark.slow
def test_clusters_where_the_data_name_no_behavior(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = SnippetStore.open

    def unlabeled(path: Any) -> SnippetStore:
        store = opened(path)
        store.episodes.label[:] = -1
        return store

    monkeypatch.setattr(SnippetStore, "open", staticmethod(unlabeled))
    summary = do(COMMAND, workspace, {**SMALL, "latent": ["mean"], "modes": 3}).manifest.summary
    assert summary["mode_accuracy"] is None
    assert list(summary["mean"]["mode_fractions"]) == ["cluster 1", "cluster 2", "cluster 3"]
    for count, why in ((1, "must be at least 2"), (6, "cannot be clustered")):
        with pytest.raises(ConfigError, match=why):
            do(COMMAND, workspace, {**SMALL, "modes": count})


@pytest.mark.slow
def test_a_lost_simulator_costs_its_start_everywhere(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rollout.rollout

    def losing(*words: Any, **named: Any) -> rollout.RolloutResult:
        from dataclasses import replace

        result = real(*words, **named)
        first, *others = result.episodes
        return rollout.RolloutResult((replace(first, error="gone"), *others), result.seconds)

    monkeypatch.setattr(traced.engine, "rollout", losing)
    with pytest.raises(SimulatorError, match="3 episodes were lost"):
        do(COMMAND, workspace, SMALL)
    published = workspace.artifacts("analysis")[-1]
    assert published.manifest.summary["initial_states"] == 3
    assert published.manifest.summary["episodes_lost_to_simulators"] == {
        "sampled": 1, "oracle": 1, "mean": 1,
    }  # fmt: skip


def test_initial_states_have_the_fractions_of_the_labels(workspace: Workspace) -> None:
    store = SnippetStore.open(workspace.resolve("snippets").path)
    category = np.repeat([0, 1, 2], (20, 5, 5))
    many = Demonstrations(ENV.tasks[0], np.arange(30), category)
    for count, expected in ((6, [4, 1, 1]), (30, [20, 5, 5]), (99, [20, 5, 5])):
        chosen = draw_initial_states(many, store, configured(count=count))
        assert np.bincount(category[chosen]).tolist() == expected
        assert (np.diff(chosen) > 0).all()
    few = find_demonstrations(store, configured())
    held_out = draw_initial_states(few, store, configured(split="train"))
    assert store.episodes.split[few.episodes[held_out]].tolist() == [0] * 5
    with pytest.raises(ConfigError, match="1 validation demonstrations"):
        draw_initial_states(few, store, configured(split="validation"))


def test_labels_of_a_single_demonstration_define_no_mode(workspace: Workspace) -> None:
    store = SnippetStore.open(workspace.resolve("snippets").path)
    store.episodes.label[:] = [0, 0, 0, 1, 1, 1]
    assert find_demonstrations(store, configured()).left_out == 0
    store.episodes.label[:] = [0, 0, -1, 1, 1, -1]
    found = find_demonstrations(store, configured())
    assert (found.episodes.tolist(), found.left_out) == ([0, 1, 3, 4], 2)
    assert find_demonstrations(store, configured(modes=3)).category is None
    store.episodes.label[:] = [0, 0, 0, 0, 0, 1]
    alone = find_demonstrations(store, configured())
    assert (alone.category, len(alone.episodes)) == (None, 6)


def configured(**values: Any) -> AnalyzeDiversityConfig:
    return from_mapping(AnalyzeDiversityConfig, values)


def test_what_it_reads_and_refuses(workspace: Workspace) -> None:
    stage = STAGES[COMMAND]
    assert stage.reads(stage.config()) == ("snippets", "vae", "latents", "diffusion")
    encoded = from_mapping(stage.config, {"latent": ["oracle"]})
    assert stage.reads(encoded) == ("snippets", "vae")
    mean = from_mapping(stage.config, {"latent": ["mean"]})
    assert stage.reads(mean) == ("snippets", "vae", "latents")
    with pytest.raises(ConfigError, match="is no task"):
        do(COMMAND, workspace, {**SMALL, "task": "pusht2"})
    with pytest.raises(ConfigError, match="too many"):
        do(COMMAND, workspace, {**SMALL, "num_inference_steps": 101})
