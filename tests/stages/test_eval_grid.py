"""An evaluation grid: a model per horizon and training seed, each condition measured once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
from trained_grid import GRID, TINY, Interrupted, do, everything, train_lwd

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.evaluation.journal import EpisodeJournal
from lwdctl.stages import evaluate

pytestmark = pytest.mark.sim


def numbers(artifact: Artifact) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What was measured per result row, without wall times."""
    keys = ("policy", "horizon", "perturbation", "train_seed", "task")
    return {
        tuple(cell[key] for key in keys): (cell["metrics"], cell["successes"], cell["episodes"])
        for cell in artifact.manifest.summary["results"]
    }


@pytest.mark.slow
def test_every_horizon_has_the_model_that_was_trained_for_it(workspace: Workspace) -> None:
    cells = everything(do("eval", workspace, GRID))
    found = [(cell["policy"], cell["horizon"], cell["perturbation"]) for cell in cells]
    assert found == [
        *[(policy, horizon, magnitude) for policy in ("lwd", "dp") for horizon in (8, 16)
          for magnitude in (0.0, 25.0)],
        ("mlp", None, 0.0), ("mlp", None, 25.0), ("random", None, 0.0), ("random", None, 25.0),
    ]  # fmt: skip
    assert all(cell["snippet_length"] == cell["horizon"] for cell in cells)
    queries = {cell["horizon"]: cell["replans_per_episode"] for cell in cells[:8]}
    assert queries == {8: 3, 16: 2}  # 20 steps
    assert [cell["sampler"] for cell in cells] == ["ddim"] * 8 + [""] * 4


@pytest.mark.slow
def test_the_order_of_the_options_changes_no_number(workspace: Workspace) -> None:
    turned = {key: value[::-1] if isinstance(value, list) else value for key, value in GRID.items()}
    first = do("eval", workspace, GRID, name="first")
    second = do("eval", workspace, turned, name="second")
    assert numbers(first) == numbers(second)
    perturbed = {key: value for key, value in numbers(first).items() if key[2]}
    calm = {key: value for key, value in numbers(first).items() if not key[2]}
    assert sorted(perturbed.values(), key=str) != sorted(calm.values(), key=str)


@pytest.mark.slow
def test_an_interrupted_grid_goes_on_where_it_stopped(
    workspace: Workspace, rolled: list[str], interrupted: Interrupted
) -> None:
    whole = do("eval", workspace, GRID, name="whole")
    arms = list(rolled)
    with interrupted(name=arms[3]):
        do("eval", workspace, GRID, name="part")
    rolled.clear()
    part = do("eval", workspace, GRID, name="part", resume=True)
    assert rolled == arms[3:]
    assert numbers(part) == numbers(whole)


@pytest.mark.slow
def test_a_damaged_record_of_a_condition_is_measured_again(
    workspace: Workspace, rolled: list[str], interrupted: Interrupted
) -> None:
    small = {**GRID, "policy": ["random", "still", "mlp"], "perturbation": [0.0]}
    whole = do("eval", workspace, small, name="whole")
    with interrupted(name="mlp"):
        do("eval", workspace, small, name="part")
    (record,) = workspace.root.glob("evaluation/part/.partial-*/checkpoints/still.json")
    record.write_bytes(record.read_bytes().replace(b'"steps": ', b'"steps": 1', 1))
    rolled.clear()
    part = do("eval", workspace, small, name="part", resume=True)
    assert rolled == ["still", "mlp"]
    assert numbers(part) == numbers(whole)


def test_changed_software_measures_again(
    workspace: Workspace,
    rolled: list[str],
    interrupted: Interrupted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {**GRID, "policy": ["random", "mlp"], "perturbation": [0.0]}
    with interrupted(name="mlp"):
        do("eval", workspace, small)
    changed = {**evaluate.software(), "git": {"commit": "def", "dirty": False}}
    monkeypatch.setattr(evaluate, "software", lambda: changed)
    rolled.clear()
    do("eval", workspace, small, resume=True)
    assert rolled == ["random", "mlp"]


@pytest.mark.slow
@pytest.mark.parametrize("resume", [True, False])
def test_conditions_that_lost_episodes_are_run_again(
    workspace: Workspace, rolled: list[str], monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    small = {**GRID, "policy": ["random", "mlp"], "perturbation": [0.0]}
    counting = evaluate._roll

    def losing(arm: Any, *words: Any) -> Any:
        found = counting(arm, *words)
        if arm.name == "random":
            first, *others = found.episodes
            lost = dataclasses.replace(first, error="died")
            return dataclasses.replace(found, episodes=(lost, *others))
        if resume:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(evaluate, "_roll", losing)
    with pytest.raises(KeyboardInterrupt if resume else SimulatorError):
        do("eval", workspace, small)
    monkeypatch.setattr(evaluate, "_roll", counting)
    rolled.clear()
    artifact = do("eval", workspace, small, resume=resume)
    assert rolled == ["random", "mlp"]
    assert all(cell["errors"] == 0 for cell in everything(artifact))


def test_seeds_of_both_models_must_agree(workspace: Workspace) -> None:
    settings = {**TINY, "width": 16, "seed": 3}
    do("train-diffusion", workspace, settings, name="mixed", named={"latents": "l16s0"})
    values = {**GRID, "policy": ["lwd"], "horizon": [16], "perturbation": [0.0], "seeds": 4}
    with pytest.raises(
        ConfigError, match=r"training seed 2 and the settings .* training seed 3 and the settings"
    ):
        do("eval", workspace, values)


@pytest.mark.slow
def test_training_seeds_agree_in_their_settings(workspace: Workspace) -> None:
    """A later ablation with seed 0 is no training seed of what was asked for."""
    other = {**TINY, "width": 24, "seed": 0}
    do("train-diffusion", workspace, other, name="ablation", named={"latents": "l16s0"})
    values = {**GRID, "policy": ["lwd"], "horizon": [16], "perturbation": [0.0], "seeds": 2}
    with pytest.raises(ConfigError, match="seed 1 and the settings of diffusion/ablation") as e:
        do("eval", workspace, values)
    vae, encode, diffusion = e.value.hint.split(" && ")
    assert {*vae.split()} >= {"train-vae", "--policy-width", "8", "--snippet-length", "16"}
    assert encode == "lwdctl encode"
    assert {*diffusion.split()} >= {"train-diffusion", "--width", "24", "--updates"}
    assert vae.endswith(" --seed 1")
    assert diffusion.endswith(" --seed 1")
    artifact = do("eval", workspace, values, named={"diffusion": "l16s1"})
    references = {item.reference for item in artifact.manifest.inputs}
    assert references == {"diffusion/l16s0:v1", "diffusion/l16s1:v1"}


def test_states_that_were_recorded_from_are_no_evaluation_states(workspace: Workspace) -> None:
    snippets = workspace.resolve("snippets")
    values = {**GRID, "policy": ["random"], "horizon": [16], "perturbation": [0.0]}
    seeds = SnippetStore.open(snippets.path).episodes.seed.copy()
    seeds[2] = 100_001
    with pytest.MonkeyPatch.context() as patch:
        opened = SnippetStore.open

        def with_seeds(path: Any) -> SnippetStore:
            store = opened(path)
            store.episodes = dataclasses.replace(store.episodes, seed=seeds)
            return store

        patch.setattr(SnippetStore, "open", with_seeds)
        with pytest.raises(ConfigError, match="1 demonstrations were recorded from") as refused:
            do("eval", workspace, values)
        assert refused.value.hint == "--seed 100002"
        do("eval", workspace, {**values, "seed": 100_002})


@pytest.mark.slow
def test_a_broken_old_lineage_is_passed_over(workspace: Workspace) -> None:
    shutil.rmtree(workspace.root / "vae" / "l16s1")
    values = {**GRID, "policy": ["lwd"], "perturbation": [0.0]}
    artifact = do("eval", workspace, values, named={"diffusion": "l16s0"})
    references = {item.reference for item in artifact.manifest.inputs}
    assert references == {"diffusion/l8s0:v1", "diffusion/l16s0:v1"}


@pytest.mark.slow
def test_one_model_of_every_training_seed(workspace: Workspace) -> None:
    values = {**GRID, "policy": ["lwd"], "perturbation": [0.0], "seeds": 2, "one_model": True}
    artifact = do("eval", workspace, values)
    cells = everything(artifact)
    assert [(cell["train_seed"], cell["snippet_length"], cell["horizon"]) for cell in cells] == [
        (0, 16, 8), (1, 16, 8), (0, 16, 16), (1, 16, 16)
    ]  # fmt: skip
    assert "the model was trained on 16 steps" in artifact.manifest.summary["protocol"]


@pytest.mark.slow
def test_receding_execution_is_what_a_model_was_trained_for(workspace: Workspace) -> None:
    values = {**TINY, "method": "dp", "snippet_length": 12, "executed": 6, "unet_size": "xs"}
    do("train-baseline", workspace, values, name="receding")
    alone = {**GRID, "policy": ["dp"], "perturbation": [0.0], "horizon": []}
    (cell,) = everything(do("eval", workspace, alone, named={"baseline": "receding"}))
    assert (cell["snippet_length"], cell["horizon"]) == (12, 6)
    grid = everything(do("eval", workspace, {**alone, "horizon": [6, 8]}, name="grid"))
    assert [(cell["snippet_length"], cell["horizon"]) for cell in grid] == [(12, 6), (8, 8)]
    averaged = {**alone, "policy": ["dp", "random"], "temporal_ensemble": 0.1}
    artifact = do("eval", workspace, averaged, named={"baseline": "receding"}, name="averaged")
    assert [cell["temporal_ensemble"] for cell in everything(artifact)] == [0.1, None]
    assert "the rate 0.1" in artifact.manifest.summary["protocol"]
    with pytest.raises(ConfigError, match="no two of them hold the same step"):
        do("eval", workspace, {**averaged, "horizon": 12}, named={"baseline": "receding"})
    free = everything(artifact)[0]
    kept = {**alone, "policy": ["dp", "random"], "inpainting": 0.5}
    artifact = do("eval", workspace, kept, named={"baseline": "receding"}, name="kept")
    assert [cell["inpainting"] for cell in everything(artifact)] == [0.5, 0.0]
    guided, replans = everything(artifact)[0], free["replans_per_episode"]
    assert replans > 1
    # The first re-plan of an episode has nothing to keep to.
    ratio = guided["cost"]["flops_per_step"] / free["cost"]["flops_per_step"]
    assert ratio == pytest.approx(2 - 1 / replans)
    assert "keep to the previous one (inpainting 0.5)" in artifact.manifest.summary["protocol"]
    with pytest.raises(ConfigError, match="both continue the previous chunk"):
        do("eval", workspace, {**kept, "warm_start": 0.5}, named={"baseline": "receding"})
    with pytest.raises(ConfigError, match="below the 12 steps of its chunks"):
        do("eval", workspace, {**kept, "horizon": 12}, named={"baseline": "receding"})


def test_training_seeds_have_models_of_their_own(workspace: Workspace) -> None:
    values = {**GRID, "policy": ["lwd"], "horizon": [16], "perturbation": [0.0], "seeds": 2}
    artifact = do("eval", workspace, values)
    assert [cell["train_seed"] for cell in everything(artifact)] == [0, 1]
    references = {item.reference for item in artifact.manifest.inputs}
    assert references == {"diffusion/l16s0:v1", "diffusion/l16s1:v1"}
    assert artifact.payload("episodes/lwd-sampled-s1.json").exists()


def test_missing_models_are_all_named_before_anything_runs(
    workspace: Workspace, rolled: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        do("eval", workspace, {**GRID, "horizon": [16, 32], "seeds": 2})
    for text in (
        "lwd at horizon 32 with training seed 0",
        "lwd at horizon 32 with training seed 1",
        "dp at horizon 16 with training seed 1",
        "mlp with training seed 1",
    ):
        assert text in caught.value.message
    assert "lwd at horizon 16" not in caught.value.message
    assert "train-vae --snippet-length 32 --seed 0" in caught.value.hint
    assert rolled == []


def test_one_model_at_every_horizon_is_labeled_so(workspace: Workspace) -> None:
    values = {**GRID, "policy": ["lwd"], "perturbation": [0.0], "horizon": [8, "episode"]}
    artifact = do("eval", workspace, {**values, "one_model": True})
    cells = everything(artifact)
    assert [(cell["snippet_length"], cell["horizon"]) for cell in cells] == [
        (16, 8),
        (16, "episode"),
    ]
    assert "the model was trained on 16 steps" in artifact.manifest.summary["protocol"]


def test_baselines_need_no_latents(workspace: Workspace) -> None:
    for kind in ("vae", "latents", "diffusion"):
        shutil.rmtree(workspace.root / kind)
    values = {**GRID, "policy": ["mlp", "random"], "perturbation": [0.0]}
    assert [cell["policy"] for cell in everything(do("eval", workspace, values))] == [
        "mlp", "random"
    ]  # fmt: skip


def cells_of(artifact: Artifact, arm: str) -> Sequence[dict[str, Any]]:
    record: dict[str, Any] = json.loads(artifact.payload(f"episodes/{arm}.json").read_text())
    episodes: list[dict[str, Any]] = record["episodes"]
    return episodes


@pytest.mark.slow
def test_labels_are_run_one_after_the_other(workspace: Workspace) -> None:
    train_lwd(workspace, 16, 2, condition=["label"])
    values = {**GRID, "policy": ["lwd"], "horizon": [16], "perturbation": [0.0]}
    both = do("eval", workspace, {**values, "latent": ["sampled", "oracle"]}, name="both")
    sampled = cells_of(both, "lwd-sampled")
    assert [(item["label"], item["seed"]) for item in sampled] == [
        ("slow", 100_000), ("slow", 100_001), ("fast", 100_000), ("fast", 100_001)
    ]  # fmt: skip
    rows = everything(both)[1]["by_label"]
    assert {label: row["episodes"] for label, row in rows.items()} == {"slow": 2, "fast": 2}
    # Rewards of demonstration k are k, and an episode here has at most 20 of the 30 steps.
    restored = [item for item in cells_of(both, "lwd-oracle") if item["label"] == "fast"]
    assert rows["fast"]["source_return"] in {20 * (a + b) / 2 for a in (1, 3, 5) for b in (1, 3, 5)}
    assert len({item["demonstration"] for item in restored}) == 2
    short = do("eval", workspace, {**values, "latent": ["oracle"], "max_steps": 10}, name="short")
    fast = everything(short)[0]["by_label"]["fast"]
    fast_ones = [c["demonstration"] for c in cells_of(short, "lwd-oracle") if c["label"] == "fast"]
    assert fast["source_return"] == 10 * sum(fast_ones) / len(fast_ones)  # of steps that may run
    with pytest.raises(ConfigError, match="'medium' is no label"):
        do("eval", workspace, {**values, "label": ["medium"]})


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["lwd", "dp"])
@pytest.mark.parametrize("kept", [(0, 3, 5), (0, 1, 2, 3, 4, 5)])
def test_any_part_of_the_batches_gives_the_numbers_of_the_whole(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, kept: Sequence[int], policy: str
) -> None:
    """With trained policies, whose networks see the whole batch at once."""
    sizes = {"horizon": [8], "perturbation": [25.0], "episodes": 6, "num_envs": 4}
    small = {**GRID, "policy": [policy], **sizes}
    whole = do("eval", workspace, small, name="whole")
    write = EpisodeJournal.write

    def write_some(journal: EpisodeJournal, results: Any, score: str) -> None:
        write(journal, [item for item in results if item.plan.index in kept], score)

    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EpisodeJournal, "write", write_some)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "result_rows", interrupt)  # once the first condition has run
        with pytest.raises(KeyboardInterrupt):
            do("eval", workspace, small, name="part")
    part = do("eval", workspace, small, name="part", resume=True)
    assert numbers(part) == numbers(whole)
    for path in (whole.path / "episodes").iterdir():
        one, other = (json.loads((item.path / "episodes" / path.name).read_text())["episodes"]
                      for item in (whole, part))  # fmt: skip
        assert one == other
