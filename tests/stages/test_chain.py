"""The whole pipeline at toy size, run as the stages run it: Metaworld, two tasks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained_grid import Interrupted

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.configs import EvalConfig
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.progress import SilentProgress
from lwdctl.envs.table import make_simulator
from lwdctl.evaluation.episodes import plan_episodes
from lwdctl.methods.lwd import TrainedLwd
from lwdctl.methods.method import Acting
from lwdctl.methods.trained import open_policy
from lwdctl.pipeline.run_stage import resolve_inputs
from lwdctl.stages import STAGES
from lwdctl.stages.stage import StageContext

pytestmark = pytest.mark.sim

VAE = {
    "snippet_length": 16,
    "updates": 12,
    "batch_size": 4,
    "policy_width": 16,
    "decoder": "xs",
    "device": "cpu",
}
DIFFUSION = {"updates": 12, "batch_size": 8, "width": 32, "device": "cpu"}
EVAL = {
    "episodes": 2,
    "max_steps": 25,
    "horizon": 10,
    "num_envs": 3,
    "workers": 0,
    "device": "cpu",
}


def do(
    command: str, workspace: Workspace, values: dict[str, Any], resume: bool = False, run: str = ""
) -> Artifact:
    """Run one stage as the command line does."""
    stage = STAGES[command]
    config = from_mapping(stage.config, values)
    inputs = resolve_inputs(stage, config, workspace, {}, run)
    context = StageContext(workspace, SilentProgress(), name=run, resume=resume)
    return stage.execute(config, inputs, context)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace of trained models that tests copy before they change it."""
    workspace = Workspace(tmp_path_factory.mktemp("chain"))
    tasks = ("reach", "button-press")
    collect = {"task": tasks, "episodes": 3, "max_steps": 40, "keep_failures": True, "workers": 0}
    do("collect", workspace, collect)
    do("ingest", workspace, {"format": "robomimic", "validation_fraction": 0.34})
    do("train-vae", workspace, VAE)
    do("encode", workspace, {"device": "cpu"})
    do("train-diffusion", workspace, DIFFUSION)
    return workspace


@pytest.fixture
def copy(chain: Workspace, tmp_path: Path) -> Workspace:
    """A private copy of the workspace."""
    shutil.copytree(chain.root, tmp_path / "copy")
    return Workspace(tmp_path / "copy")


def episodes(artifact: Artifact, arm: str) -> list[dict[str, Any]]:
    """Read the per-episode records of one condition."""
    found: list[dict[str, Any]] = json.loads(artifact.payload(f"episodes/{arm}.json").read_text())[
        "episodes"
    ]
    return found


@pytest.mark.slow
def test_the_same_seed_gives_the_same_evaluation_whatever_the_workers(copy: Workspace) -> None:
    runs = [do("eval", copy, {**EVAL, "workers": workers}) for workers in (0, 2)]
    for arm in ("lwd-sampled", "lwd-oracle", "lwd-shuffled", "lwd-mean"):
        records = [episodes(run, arm) for run in runs]
        assert records[0] == records[1]
        assert len(records[0]) == 4
    assert episodes(runs[0], "lwd-sampled") != episodes(runs[0], "lwd-mean")


@pytest.mark.slow
def test_no_evaluated_initial_state_equals_a_training_one(chain: Workspace) -> None:
    store = SnippetStore.open(chain.resolve("snippets").path)
    trained = {store.initial_state(i).tobytes() for i in range(len(store.episodes))}
    assert len(trained) == 6
    assert store.spec.collection_seeds[1] < 100_000
    for plan in plan_episodes(store.spec.env, 20):
        simulator = make_simulator(store.spec.env, plan.task)
        simulator.reset(plan.seed)
        assert simulator.initial_state().tobytes() not in trained
        simulator.close()


@pytest.mark.slow
def test_nearest_latents_need_no_denoiser_and_count_their_search(copy: Workspace) -> None:
    values = {**EVAL, "latent": ["nearest", "mean"], "max_steps": 20}
    results = json.loads(do("eval", copy, values).payload("results.json").read_text())
    cost = {row["latent"]: row["cost"] for row in results if row["task"] == "all"}
    assert cost["nearest"]["denoiser_flops_per_replan"] == 0
    latents = LatentStore.open(copy.resolve("latents").path)
    search = 4 * latents.state.size
    decoding = {name: one["decoder_flops_per_replan"] for name, one in cost.items()}
    assert decoding["nearest"] == decoding["mean"] + search


@pytest.mark.slow
def test_early_replans_are_those_of_a_shorter_horizon(copy: Workspace) -> None:
    """Everything lies beyond 0 and nothing beyond 1e9."""
    values = {**EVAL, "latent": ["sampled", "mean"]}
    early = do("eval", copy, {**values, "replan_beyond": 0, "replan_after": 4})
    never = do("eval", copy, {**values, "replan_beyond": 1e9, "replan_after": 4})
    shorter = do("eval", copy, {**values, "horizon": 4, "one_model": True})
    plain = do("eval", copy, values)
    assert episodes(early, "lwd-sampled") == episodes(shorter, "lwd-sampled")
    assert episodes(never, "lwd-sampled") == episodes(plain, "lwd-sampled")
    assert episodes(early, "lwd-mean") == episodes(plain, "lwd-mean")  # which samples nothing
    cost = {}
    for name, artifact in {"early": early, "shorter": shorter, "plain": plain}.items():
        rows = json.loads(artifact.payload("results.json").read_text())
        cost[name] = next(row for row in rows if row["latent"] == "sampled")["cost"]
        assert next(row for row in rows if row["latent"] == "mean")["replan_beyond"] is None
    assert cost["early"]["replans_per_step"] == cost["shorter"]["replans_per_step"]
    assert cost["early"]["replans_per_step"] > cost["plain"]["replans_per_step"]
    assert cost["early"]["flops_per_step"] > cost["shorter"]["flops_per_step"]  # the search
    with pytest.raises(ConfigError, match="replan_beyond compares motions"):
        do("eval", copy, {**EVAL, "policy": ["still"], "replan_beyond": 1.0})
    with pytest.raises(ConfigError, match="replan_beyond compares motions"):
        do("eval", copy, {**EVAL, "latent": ["mean"], "replan_beyond": 1.0})
    with pytest.raises(ConfigError, match="replan_after does nothing without"):
        do("eval", copy, {**EVAL, "replan_after": 3})


def test_a_recorded_motion_has_not_left_the_snippet_of_its_own_latent(chain: Workspace) -> None:
    lineage = chain.ancestors(chain.resolve("diffusion"))
    artifacts = {**lineage, "diffusion": chain.resolve("diffusion")}
    trained = open_policy("lwd", artifacts, torch.device("cpu"))
    assert isinstance(trained, TrainedLwd)
    latents = LatentStore.open(lineage["latents"].path)
    snippets = SnippetStore.open(lineage["snippets"].path)
    row = latents.count // 2
    acting = Acting(replan_beyond=0.01, replan_after=1)
    paths = trained._paths(acting)
    paths.reset()
    paths.follow(torch.from_numpy(latents.mean[row : row + 1]), np.ones(1, dtype=bool))
    first = int(snippets.episodes.start[latents.episode[row]]) + int(latents.start[row])
    for age in (1, 5):
        seen = snippets.read(trained.observation_keys[0], first + age, first + age + 1)
        steps = np.array([age])
        assert not paths.left(seen, steps)[0]
        assert paths.left(seen + trained.vae.observation.scale.numpy() / 50, steps)[0]
        assert not paths.left(seen + trained.vae.observation.scale.numpy() / 200, steps)[0]


@pytest.mark.slow
def test_a_horizon_beyond_the_snippets_is_warned_of(copy: Workspace) -> None:
    said: list[str] = []

    class Told(SilentProgress):
        def message(self, text: str) -> None:
            said.append(text)

    def warnings(horizon: int) -> list[str]:
        said.clear()
        settings = {**EVAL, "latent": ["sampled", "mean"], "max_steps": 2, "horizon": horizon}
        config = from_mapping(EvalConfig, settings)
        stage = STAGES["eval"]
        inputs = resolve_inputs(stage, config, copy, {}, "")
        stage.execute(config, inputs, StageContext(copy, Told()))
        return [text for text in said if text.startswith("warning: ")]

    assert warnings(16) == []
    (warning,) = warnings(17)
    assert (
        "lwd follows every plan for 17 steps, but its model was trained on snippets of" in warning
    )


def test_oracle_latents_belong_to_their_snippets(chain: Workspace) -> None:
    snippets = SnippetStore.open(chain.resolve("snippets").path)
    latents = LatentStore.open(chain.resolve("latents").path)
    assert latents.count == len(latents.episode)
    row = latents.count // 2
    episode, start = int(latents.episode[row]), int(latents.start[row])
    first = int(snippets.episodes.start[episode])
    rows = snippets.features(("observation",), first, first + start + 1)
    expected = np.concatenate([rows[max(start - 1, 0)], rows[start]])
    np.testing.assert_array_equal(latents.state[row], expected)
    assert int(latents.task[row]) == int(snippets.episodes.task[episode])
    # Statistics come from the training split alone.
    kept = snippets.episodes.split[latents.episode] == 0
    assert 0 < kept.sum() < latents.count
    mean, _ = latents.statistics()
    np.testing.assert_allclose(mean, latents.mean[kept].mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("command", "values"), [("train-vae", VAE), ("train-diffusion", DIFFUSION)]
)
def test_resumed_training_publishes_the_same_bytes(
    copy: Workspace,
    command: str,
    values: dict[str, Any],
    interrupt_at: Callable[[int], list[int]],
) -> None:
    whole = do(command, copy, values)
    interrupt_at(6)
    with pytest.raises(KeyboardInterrupt):
        do(command, copy, values)
    resumed = do(command, copy, values, resume=True)
    assert resumed.version == whole.version + 1
    for name in ("weights.safetensors", "ema.safetensors", "model.json"):
        assert resumed.payload(name).read_bytes() == whole.payload(name).read_bytes()


def test_a_flipped_byte_in_the_weights_is_refused(copy: Workspace) -> None:
    path = copy.resolve("vae").payload("ema.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(content))
    for command, values in (("encode", {}), ("train-diffusion", DIFFUSION), ("eval", EVAL)):
        with pytest.raises(ArtifactError, match=r"ema\.safetensors"):
            do(command, copy, values)


def test_latents_of_another_vae_are_refused(copy: Workspace) -> None:
    do("train-vae", copy, {**VAE, "seed": 9})
    stage = STAGES["train-diffusion"]
    config = from_mapping(stage.config, DIFFUSION)
    # The newest latents go with their own VAE, not with the newest one.
    assert resolve_inputs(stage, config, copy, {})["vae"].version == 1
    with pytest.raises(ArtifactError, match="vae"):
        resolve_inputs(stage, config, copy, {"vae": "metaworld:v2"})


@pytest.mark.slow
def test_an_interrupted_evaluation_keeps_what_it_measured(
    copy: Workspace, rolled: list[str], interrupted: Interrupted
) -> None:
    whole = do("eval", copy, EVAL)
    with interrupted(latent="shuffled"):
        do("eval", copy, EVAL)
    (draft,) = copy.unfinished("evaluation")
    assert draft.resumable
    rolled.clear()
    resumed = do("eval", copy, EVAL, resume=True)
    assert rolled == ["lwd-shuffled", "lwd-mean"]
    for arm in ("lwd-sampled", "lwd-oracle", "lwd-shuffled", "lwd-mean"):
        assert episodes(resumed, arm) == episodes(whole, arm)


@pytest.mark.slow
def test_videos_survive_an_interruption_and_are_listed(
    copy: Workspace,
    interrupted: Interrupted,
    monkeypatch: pytest.MonkeyPatch,
    opengl: dict[str, str],
) -> None:
    from lwdctl.stages import evaluate

    for name in ("DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", opengl.get("MUJOCO_GL", ""))
    values = {**EVAL, "latent": ["sampled", "mean"], "max_steps": 4, "workers": 1}
    plain = do("eval", copy, {**values, "workers": 0})
    assert "videos" not in plain.manifest.summary
    with interrupted(latent="mean"):
        do("eval", copy, {**values, "video": 2})
    monkeypatch.setattr(
        evaluate.checks, "check_video", lambda *given, **options: None
    )  # it has just passed
    recorded = do("eval", copy, {**values, "video": 2}, resume=True)
    # One episode of each of the two tasks.
    assert recorded.manifest.summary["videos"] == {
        arm: [f"videos/{arm}/episode-00{index}.mp4" for index in (0, 2)]
        for arm in ("lwd-sampled", "lwd-mean")
    }
    for arm, paths in recorded.manifest.summary["videos"].items():
        assert all(recorded.payload(path).stat().st_size > 1000 for path in paths)
        assert recorded.payload(paths[0].replace(".mp4", ".png")).exists()
        assert episodes(recorded, arm) == episodes(plain, arm)


def test_result_rows_follow_the_json_contract(copy: Workspace) -> None:
    artifact = do(
        "eval", copy, {**EVAL, "policy": ["lwd", "random", "still"], "latent": ["sampled"]}
    )
    cells = artifact.manifest.summary["results"]
    assert [(cell["policy"], cell["task"]) for cell in cells] == [
        ("lwd", "reach"),
        ("lwd", "button-press"),
        ("lwd", "all"),
        ("random", "reach"),
        ("random", "button-press"),
        ("random", "all"),
        ("still", "reach"),
        ("still", "button-press"),
        ("still", "all"),
    ]
    wanted = {
        "policy", "latent", "env", "task", "train_seed", "snippet_length", "horizon",
        "perturbation", "sampler", "num_inference_steps", "episodes", "errors", "successes",
        "success", "success_low", "success_high", "score", "metrics", "replans_per_episode",
        "seconds", "by_label", "warm_start", "temporal_ensemble", "guidance", "inpainting",
        "replan_beyond", "replan_after", "cost", "policy_failures",
    }  # fmt: skip
    assert all(set(cell) == wanted for cell in cells)
    assert cells[2]["replans_per_episode"] == 3  # 25 steps, re-planned every 10
    assert cells[2]["horizon"] == 10
    assert cells[2]["snippet_length"] == 16
    assert cells[5]["replans_per_episode"] == cells[8]["replans_per_episode"] == 0


@pytest.mark.slow
def test_unknown_tasks_and_conditions_are_refused(copy: Workspace) -> None:
    with pytest.raises(ConfigError, match="reech"):
        do("eval", copy, {**EVAL, "task": ["reech"]})
    with pytest.raises(ConfigError, match="'slow' is no label of this data") as caught:
        do("eval", copy, {**EVAL, "label": ["slow"]})
    assert "leave --label out" in caught.value.hint
    with pytest.raises(ConfigError, match="label for every demonstration"):
        do("train-diffusion", copy, {**DIFFUSION, "condition": ["label"]})
    with pytest.raises(ConfigError, match="too many"):
        do("eval", copy, {**EVAL, "num_inference_steps": 101})
    with pytest.raises(ConfigError, match="none of these policies has"):
        do("eval", copy, {**EVAL, "temporal_ensemble": 0.1})
    for nothing in ({"warm_start": 0.5}, {"guidance": 0.5}):
        with pytest.raises(ConfigError, match="which none of these policies does"):
            do("eval", copy, {**EVAL, "latent": ["mean"], **nothing})
    with pytest.raises(ConfigError, match="inpainting keeps to sampled actions"):
        do("eval", copy, {**EVAL, "inpainting": 0.5})
    with pytest.raises(ConfigError, match="twice"):
        do("train-diffusion", copy, {**DIFFUSION, "condition": ["state", "state"]})
    with pytest.raises(ConfigError, match="U-Net has no dropout"):
        do("train-diffusion", copy, {**DIFFUSION, "denoiser": "unet", "dropout": 0.1})
    unconditional = do("train-diffusion", copy, {**DIFFUSION, "condition": ["none"]})
    assert unconditional.manifest.summary["condition"] == []
    with pytest.raises(ConfigError, match="color"):
        do("train-diffusion", copy, {**DIFFUSION, "condition": ["color"]})
    with pytest.raises(ConfigError, match="layout"):
        do("train-diffusion", copy, {**DIFFUSION, "denoiser": "unet", "latent_layout": "7x9"})
    with pytest.raises(ConfigError, match="relative"):
        do("train-vae", copy, {**VAE, "action_target": "relative"})


@pytest.mark.slow
def test_a_time_limit_still_publishes_a_usable_model(copy: Workspace) -> None:
    artifact = do("train-vae", copy, {**VAE, "updates": 10_000_000, "time_limit": 0.02})
    assert 0 < artifact.manifest.summary["updates"] < 10_000_000
    assert do("encode", copy, {"device": "cpu"}).manifest.summary["snippets"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["16x16", "256x1"])
def test_the_unet_denoiser_trains_and_acts(copy: Workspace, layout: str) -> None:
    values = {**DIFFUSION, "denoiser": "unet", "unet_size": "xs", "latent_layout": layout}
    do("train-diffusion", copy, {**values, "updates": 2, "prediction": "v_prediction"})
    short = {**EVAL, "latent": ["sampled"], "max_steps": 5, "task": ["reach"], "sampler": "ddpm"}
    cells = do("eval", copy, short).manifest.summary["results"]
    assert cells[-1]["episodes"] == 2
    assert cells[-1]["sampler"] == "ddpm"


@pytest.mark.slow
def test_the_example_runs(chain: Workspace) -> None:
    example = Path(__file__).parents[2] / "examples" / "run_a_policy.py"
    words = [sys.executable, str(example), str(chain.root), "reach"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("reach: ")
