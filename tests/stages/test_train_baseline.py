"""Every baseline trains, resumes bit for bit, publishes, and can learn a demonstration by heart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.artifacts.workspace import Workspace
from lwdctl.configs import BaselineConfig
from lwdctl.core.config import from_mapping, to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.methods.method import Acting
from lwdctl.methods.trained import open_trained
from lwdctl.models.behavior_cloning import ClonedPolicy
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, LatentChunks
from lwdctl.policies.policy import BatchPolicy, EpisodePlan
from lwdctl.stages.stage import StageContext
from lwdctl.stages.train_baseline import run

CPU = torch.device("cpu")
TINY = {"snippet_length": 6, "updates": 6, "batch_size": 4, "device": "cpu", "cache": "ram"}
METHODS: dict[str, dict[str, Any]] = {
    "dp-unet": {"method": "dp", "unet_size": "xs"},
    "dp-transformer": {"method": "dp", "denoiser": "transformer", "transformer_size": "xs"},
    "ldp": {"method": "ldp", "width": 32, "latent_size": 16},
    "mlp": {"method": "mlp", "policy_width": 16},
}
EVERY = pytest.mark.parametrize("name", METHODS)


def write(path: Path, episodes: int, tasks: tuple[str, ...]) -> None:
    """Demonstrations that circle: targets lie ahead of the robot; one component is constant."""
    spec = SourceSpec(
        observations=(
            ObservationSpec("position", 2), ObservationSpec("velocity", 2),
            ObservationSpec("hidden", 1, network=False),
        ),
        action=ActionSpec(2, "absolute", "m", (-9.0,) * 2, (9.0,) * 2, reference="position"),
        env=EnvSpec("", tasks),
        labels=("slow", "fast"),
        source_format="made",
    )  # fmt: skip
    writer = SnippetWriter(path, spec)
    for number in range(episodes):
        angle = (np.arange(21 + number) / 4.0 + number).astype(np.float32)
        places = 3.0 * np.stack([np.cos(angle), np.sin(angle)], 1)
        moved = np.diff(places, axis=0)
        writer.append(
            Episode(
                source=f"demo_{number}",
                observations={
                    "position": places[:-1],
                    "velocity": np.stack([moved[:, 0], np.full(len(moved), 0.5, np.float32)], 1),
                    "hidden": angle[:-1, None],
                },
                actions=places[1:],
                task=tasks[number % len(tasks)],
                label=("slow", "fast")[number % 2],
                split="validation" if number == 4 else "train",
            )
        )
    writer.close()


def make(
    tmp_path: Path, episodes: int = 5, tasks: tuple[str, ...] = ("left", "right")
) -> Workspace:
    workspace = Workspace(tmp_path / "runs")
    with workspace.begin("snippets", "made", config={}, inputs=[]) as draft:
        write(draft.path / SNIPPETS_PAYLOAD, episodes, tasks)
        draft.publish({})
    return workspace


def train(workspace: Workspace, values: dict[str, Any], resume: bool = False) -> Artifact:
    config = from_mapping(BaselineConfig, {**TINY, **values})
    context = StageContext(workspace, SilentProgress(), resume=resume)
    return run(config, {"snippets": workspace.resolve("snippets")}, context)


def store_of(workspace: Workspace) -> SnippetStore:
    return SnippetStore.open(workspace.resolve("snippets").path)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make(tmp_path_factory.mktemp("baselines"))


def model_of(artifact: Artifact, workspace: Workspace) -> Any:
    return open_trained(artifact, workspace, "cpu").model


def policy_of(artifact: Artifact, workspace: Workspace, **acting: Any) -> BatchPolicy:
    return open_trained(artifact, workspace, "cpu").batch_policy(Acting(**acting), 3)


@EVERY
def test_trains_publishes_and_acts(workspace: Workspace, name: str) -> None:
    artifact = train(workspace, METHODS[name])
    summary = artifact.manifest.summary
    assert summary["updates"] == 6
    assert summary["parameters"] > 0
    assert any(key.startswith("held_out_") for key in summary)
    # Diffusion Policy as its authors have it; the others as LWD has it.
    assert summary["action_target"] == ("absolute" if name.startswith("dp") else "relative")
    assert artifact.payload("model.json").exists()
    policy = policy_of(artifact, workspace, num_inference_steps=5)
    policy.reset([EpisodePlan(0, 100_000, "right"), EpisodePlan(1, 100_001, "left"), None])
    seen = {"position": np.zeros((3, 2), np.float32), "velocity": np.zeros((3, 2), np.float32)}
    actions = [policy.act(seen, np.array([True, True, False])) for _ in range(7)]
    assert actions[0].shape == (3, 2)
    assert np.isfinite(actions).all()
    queries = [0, 0, 0] if name == "mlp" else [2, 2, 0]
    assert policy.cost().num_replans.tolist() == queries


class Messages(SilentProgress):
    """Keeps what it is told."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("mlp", {"blocks": 6, "policy_width": 8}, ["mlp has no use for --blocks"]),
        ("dp-unet", {"latent_size": 3}, ["dp has no use for --latent-size"]),
        ("dp-unet", {"width": 16}, ["the denoiser 'unet' has no use for --width"]),
        ("dp-transformer", {"transformer_size": "xs"}, []),
        ("ldp", {"layers": 3}, ["ldp has no use for --layers"]),
    ],
)
def test_settings_for_other_networks_are_named(
    tmp_path: Path, name: str, settings: dict[str, Any], said: list[str]
) -> None:
    workspace, lines = make(tmp_path), list[str]()
    values = {**TINY, **METHODS[name], "updates": 1, **settings}
    config = from_mapping(BaselineConfig, values)
    run(
        config,
        {"snippets": workspace.resolve("snippets")},
        StageContext(workspace, Messages(lines)),
    )
    assert [line for line in lines if "has no use for" in line] == [f"warning: {x}" for x in said]


def test_a_run_that_is_resumed_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    """As a process leaves it that is killed before its first checkpoint."""
    workspace, lines = make(tmp_path), list[str]()
    config = from_mapping(BaselineConfig, {**TINY, **METHODS["mlp"]})
    source = workspace.resolve("snippets")
    with workspace.begin(
        "baseline", source.name, config=to_mapping(config), inputs=[source]
    ) as output:
        output.keep = True

    context = StageContext(workspace, Messages(lines), resume=True)
    assert run(config, {"snippets": source}, context).manifest.summary["updates"] == 6
    assert any("had written no checkpoint" in line for line in lines)


@pytest.mark.parametrize("commit", ["", "c0ffee"])
def test_a_training_that_goes_on_with_other_software_says_so(
    tmp_path: Path, commit: str, interrupt_at: Any
) -> None:
    workspace, lines = make(tmp_path), list[str]()
    config = from_mapping(BaselineConfig, {**TINY, **METHODS["mlp"]})
    source = workspace.resolve("snippets")
    interrupt_at(3)
    with pytest.raises(KeyboardInterrupt):
        run(config, {"snippets": source}, StageContext(workspace, SilentProgress()))
    (record,) = tmp_path.rglob("run.json")
    text = json.loads(record.read_text())
    text["software"] |= {"commit": commit} if commit else {}
    record.write_text(json.dumps(text))

    class Messages(SilentProgress):
        def message(self, text: str) -> None:
            lines.append(text)

    made = run(config, {"snippets": source}, StageContext(workspace, Messages(), resume=True))
    assert any("begun with other software (commit c0ffee)" in line for line in lines) is bool(
        commit
    )
    found = made.manifest.provenance.get("begun_with", {})
    assert found.get("commit", "") == commit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stop"),
    [("dp-unet", 3), ("dp-transformer", 3), ("mlp", 3), ("ldp", 3), ("ldp", 9)],
)
def test_resumed_training_publishes_the_same_bytes(
    tmp_path: Path, name: str, stop: int, interrupt_at: Callable[[int], list[int]]
) -> None:
    """LDP is stopped once while its VAE trains and once while its denoiser does."""
    workspace = make(tmp_path)
    whole = train(workspace, METHODS[name])
    made = interrupt_at(stop)
    with pytest.raises(KeyboardInterrupt):
        train(workspace, METHODS[name])
    assert len(made) == stop
    resumed = train(workspace, METHODS[name], resume=True)
    assert len(made) == (12 if name == "ldp" else 6)  # nothing was trained twice
    assert resumed.version == whole.version + 1
    for file in ("weights.safetensors", "ema.safetensors", "model.json"):
        assert resumed.payload(file).read_bytes() == whole.payload(file).read_bytes()
    logs = sorted(path.relative_to(resumed.path) for path in resumed.path.rglob("metrics.jsonl"))
    assert len(logs) == (2 if name == "ldp" else 1)
    for log in logs:
        lines = (resumed.path / log).read_text().splitlines()
        assert [json.loads(line)["update"] for line in lines] == [6]


@pytest.mark.slow
def test_a_chunk_policy_refuses_a_longer_horizon_than_it_was_trained_for(
    workspace: Workspace,
) -> None:
    for name in ("dp-unet", "ldp"):
        artifact = train(workspace, METHODS[name])
        policy_of(artifact, workspace, horizon=6, num_inference_steps=5)
        with pytest.raises(ConfigError, match="horizon of 7") as error:
            policy_of(artifact, workspace, horizon=7, num_inference_steps=5)
        assert "--snippet-length 7" in error.value.hint
        with pytest.raises(ConfigError, match="the end of every episode"):
            policy_of(artifact, workspace, horizon="episode", num_inference_steps=5)
        opened = open_trained(artifact, workspace, "cpu")
        env = replace(opened.source.env, max_steps=6)  # an environment as short as the chunk
        opened.source = replace(opened.source, env=env)
        opened.batch_policy(Acting("episode", num_inference_steps=5), 1)
        with pytest.raises(ConfigError, match="too many"):
            policy_of(artifact, workspace, horizon=6, num_inference_steps=101)


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("ldp", {"executed": 4}, "ldp has no option --executed"),
        ("mlp", {"executed": 4}, "mlp has no option --executed"),
        ("dp-unet", {"dropout": 0.5}, "the U-Net has no dropout"),
        ("mlp", {"dropout": 0.5}, "mlp has no option --dropout"),
        ("mlp", {"padding": "counted"}, "mlp has no option --padding"),
        ("ldp", {"time_input": True}, "ldp has no option --time-input"),
        ("dp-unet", {"vae_updates": 3}, "dp has no option --vae-updates"),
    ],
)
def test_settings_that_change_nothing_are_refused(
    workspace: Workspace, name: str, setting: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train(workspace, {**METHODS[name], **setting})
    assert workspace.unfinished("baseline") == []


@pytest.mark.slow
def test_dp_has_its_authors_settings(workspace: Workspace) -> None:
    artifact = train(workspace, {**METHODS["dp-unet"], "snippet_length": 15, "executed": 8})
    assert artifact.manifest.summary["predicted_steps"] == 16
    used = artifact.manifest.summary["training"]
    assert (used["learning_rate"], used["warmup"], used["weight_decay"]) == (1e-4, 500, 1e-6)
    assert (list(used["betas"]), used["clip_norm"]) == ([0.95, 0.999], 0.0)
    assert (used["ema_decay"], used["ema_power"]) == (0.9999, 0.75)
    model = model_of(artifact, workspace)
    assert isinstance(model, ActionDiffusion)
    spec = model.spec.diffusion
    assert (spec.prediction, spec.num_train_timesteps, spec.clip) == ("epsilon", 100, 1.0)
    assert spec.denoiser.layout == (16, 2)
    assert model.spec.observation_keys == ("position", "velocity")


@pytest.mark.slow
def test_dp_maps_the_range_of_its_data_to_one(workspace: Workspace) -> None:
    store = store_of(workspace)
    rows = np.concatenate(
        [
            store.features(("position", "velocity"), s, s + n)
            for s, n, split in zip(
                store.episodes.start, store.episodes.length, store.episodes.split, strict=True
            )
            if split == 0
        ]
    )
    model = model_of(train(workspace, METHODS["dp-unet"]), workspace)
    assert isinstance(model, ActionDiffusion)
    scaled = model.diffusion.state.normalize(torch.from_numpy(np.concatenate([rows, rows], 1)))
    low, high = scaled.min(0).values, scaled.max(0).values
    torch.testing.assert_close(low, torch.tensor([-1.0, -1, -1, 0] * 2))
    torch.testing.assert_close(high, torch.tensor([1.0, 1, 1, 0] * 2))  # the last is constant


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dp-unet", "ldp", "mlp"])
def test_relative_targets_are_fitted_on_what_is_predicted(workspace: Workspace, name: str) -> None:
    artifact = train(workspace, {**METHODS[name], "action_target": "relative"})
    assert artifact.manifest.summary["action_target"] == "relative"
    model = model_of(artifact, workspace)
    normalizer = model.diffusion.latent if isinstance(model, ActionDiffusion) else (
        model.vae.action if isinstance(model, LatentChunks) else model.action
    )  # fmt: skip
    # First and last step of a chunk, counted from the current one.
    first, last = {"dp-unet": (-1, 6), "ldp": (0, 5), "mlp": (0, 0)}[name]
    store, found = store_of(workspace), []
    for s, n, split in zip(
        store.episodes.start, store.episodes.length, store.episodes.split, strict=True
    ):
        if split == 0:
            where, goal = store.read("position", s, s + n), store.read("action", s, s + n)
            found += [goal[max(t + first, 0) : t + last + 1] - where[t] for t in range(n)]
    every = np.concatenate(found)
    if name == "dp-unet":
        assert normalizer.scale.numpy() == pytest.approx(np.tile(np.ptp(every, axis=0) / 2, 8))
    else:  # ldp's rule leaves out the very last snippets
        tolerance = 1e-4 if name == "mlp" else 0.05
        assert normalizer.scale.numpy() == pytest.approx(every.std(0), rel=tolerance)


def test_bad_settings_are_refused(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="--executed 7"):
        train(workspace, {**METHODS["dp-unet"], "executed": 7})
    with pytest.raises(ConfigError, match="color"):
        train(workspace, {**METHODS["mlp"], "observation_keys": ["color"]})
    with pytest.raises(ConfigError, match="no baseline is called"):
        train(workspace, {"method": "rl"})


@pytest.mark.slow
def test_task_and_label_are_inputs_when_asked_for(workspace: Workspace) -> None:
    several = model_of(train(workspace, METHODS["mlp"]), workspace)
    assert isinstance(several, ClonedPolicy)
    assert (several.spec.tasks, several.spec.labels) == (2, 0)
    values = {**METHODS["mlp"], "condition": ["label"], "layers": 5}
    labeled = model_of(train(workspace, values), workspace)
    assert isinstance(labeled, ClonedPolicy)
    assert (labeled.spec.tasks, labeled.spec.labels) == (0, 2)
    assert labeled.spec.hidden == (16,) * 5
    plain = model_of(train(workspace, {**METHODS["dp-unet"], "condition": ["none"]}), workspace)
    assert isinstance(plain, ActionDiffusion)
    assert plain.spec.diffusion.condition == ("state",)
    assert ChunkSpec.from_mapping(json.loads(json.dumps(plain.spec.to_mapping()))) == plain.spec


BY_HEART: dict[str, dict[str, Any]] = {
    "dp-unet": {"updates": 350, "batch_size": 32, "learning_rate": 3e-3},
    "dp-transformer": {"updates": 350, "batch_size": 32, "learning_rate": 2e-3},
    "ldp": {"updates": 300, "batch_size": 32},
    "mlp": {"updates": 500, "batch_size": 32},
}


@pytest.mark.slow
@EVERY
def test_one_demonstration_is_learnt_by_heart(tmp_path: Path, name: str) -> None:
    """Played back from the recorded observations, the policy repeats the demonstration."""
    workspace = make(tmp_path, episodes=1, tasks=("only",))
    more = {"snippet_length": 3, "num_train_timesteps": 20, "warmup": 20, "ema_decay": 0.98}
    sizes = {"width": 128, "policy_width": 64}
    artifact = train(workspace, {**METHODS[name], **more, **sizes, **BY_HEART[name]})
    summary = artifact.manifest.summary
    losses = ("denoising", "vae_reconstruction", "squared_error")
    assert all(summary[key] < 0.1 for key in losses if key in summary)
    store = store_of(workspace)
    length = int(store.episodes.length[0])
    policy = policy_of(artifact, workspace, sampler="ddpm", num_inference_steps=20)
    policy.reset([EpisodePlan(0, 100_000, "only")])
    seen = {key: store.read(key, 0, length) for key in ("position", "velocity")}
    made = np.stack(
        [
            policy.act({key: rows[step : step + 1] for key, rows in seen.items()}, np.ones(1, bool))
            for step in range(length)
        ]
    )[:, 0]
    error = np.abs(made - store.read("action", 0, length)).mean()
    spread = np.abs(store.read("action", 0, length)).mean()
    assert error < 0.1 * spread
