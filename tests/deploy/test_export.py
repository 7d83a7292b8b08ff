"""An exported policy gives what the trained one gives, or it is not written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy_chain
from toy_chain import SOURCE, TOY, ToyChain, publish_chain

import lwdctl
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.cli.main import main
from lwdctl.configs import BaselineConfig
from lwdctl.core.errors import ConfigError, LwdctlError, MissingExtraError, install_extra
from lwdctl.core.progress import SilentProgress
from lwdctl.core.seeding import derive_seed
from lwdctl.methods.lwd import METHOD, GeneratedNetwork
from lwdctl.methods.method import Acting
from lwdctl.models.diffusion import load_diffusion
from lwdctl.models.vae import load_vae
from lwdctl.policies.policy import EpisodePlan

PLAN = EpisodePlan(0, 100_003, "pull", "fast")
QUICK = [
    TOY,
    ToyChain("mlp", "epsilon", time_input=False, relative=False, history=1, condition=("state",)),
]
SLOW = [
    ToyChain("unet", "v_prediction"),
    ToyChain("unet", "sample", history=1, condition=("task",)),
    ToyChain("transformer", "sample"),
    ToyChain("transformer", "v_prediction", history=1, condition=()),
]


def recorded(inputs):
    """Return the observations of one demonstration."""
    store = SnippetStore.open(inputs["snippets"].path)
    start, length = int(store.episodes.start[1]), int(store.episodes.length[1])
    names = [item.name for item in SOURCE.observations]
    return {name: store.read(name, start, start + length) for name in names}


@pytest.mark.parametrize(
    "toy",
    QUICK + [pytest.param(toy, marks=pytest.mark.slow) for toy in SLOW],
    ids=lambda toy: f"{toy.denoiser}-{toy.prediction}",
)
def test_the_same_noise_gives_the_same_weights_and_actions(exported, toy):
    from lwdctl.deploy.export import act_with_noise, torch_noise
    from lwdctl.deploy.runtime import ExportedPolicy

    inputs, directory = exported(toy)
    seen, device = recorded(inputs), torch.device("cpu")
    vae, diffusion = load_vae(inputs["vae"], device), load_diffusion(inputs["diffusion"], device)
    policy = ExportedPolicy(directory)
    policy.reset(PLAN.seed, PLAN.task, PLAN.label)
    policy.observe({name: rows[0] for name, rows in seen.items()})
    plan = policy.replan(policy.request(torch_noise(PLAN, 0, 16)))

    first = torch.from_numpy(np.concatenate([seen["thing"][0], seen["hand"][0]]))
    state = first.repeat(toy.history)[None]
    one = torch.ones(1, dtype=torch.long)
    generator = torch.Generator().manual_seed(derive_seed("latent", PLAN.task, PLAN.seed, 0))
    with torch.no_grad():
        latent = diffusion.sample(diffusion.condition(state, one, one), [generator], "ddim", 3)
        weights = vae.decoder(latent)[0]
    network = GeneratedNetwork(vae, weights)
    for found, wanted in zip(plan.outputs.values(), network.parameters(), strict=True):
        np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-4)

    opened = METHOD.open(inputs, device)
    trained = opened.batch_policy(Acting(5, num_inference_steps=3), 1)
    unclipped, actions = act_with_noise(policy, (PLAN, seen))
    assert len(actions) > 20
    np.testing.assert_allclose(unclipped, run(trained, seen), rtol=1e-4, atol=1e-4)
    assert np.array_equal(unclipped, actions)
    assert (np.abs(actions) < 2000.0).all()
    assert np.ptp(actions, axis=0).min() > 0.01


def run(trained, seen):
    """Run a trained policy over one demonstration, as `PLAN` has it."""
    trained.reset([PLAN])
    rows = [
        trained.act({name: rows[step : step + 1] for name, rows in seen.items()}, np.ones(1, bool))
        for step in range(len(seen["hand"]))
    ]
    return np.concatenate(rows)


EPISODE = 24  # steps of a chunk that holds a whole episode
BASELINES = {
    "dp": {"snippet_length": 8, "executed": 4, "unet_size": "xs", "condition": ("task", "label")},
    "dp transformer": {"snippet_length": 8, "denoiser": "transformer", "transformer_size": "xs"},
    "ldp": {"snippet_length": 8, "width": 16, "latent_size": 16, "history": 3},
    "ldp episode": {"snippet_length": EPISODE, "width": 16, "latent_size": 16},
    "mlp": {"policy_width": 16, "history": 2, "time_input": True, "condition": ("label",)},
    "mlp plain": {"policy_width": 16, "condition": ("none",)},
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind.startswith("dp") else [])
        for kind in BASELINES
    ],
)
def test_baselines_act_as_the_trained_ones(kind, tmp_path):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from lwdctl.deploy.export import act_with_noise, export_policy
    from lwdctl.deploy.runtime import ExportedPolicy

    snippets = publish_chain(tmp_path / "runs", TOY)["snippets"]
    data = lwdctl.load_dataset(str(snippets.path), workspace=tmp_path / "runs")
    config = BaselineConfig(updates=2, batch_size=4, **BASELINES[kind])
    trained = lwdctl.train_baseline(kind.split()[0], data, config, progress=SilentProgress())
    acting = Acting("episode" if "episode" in kind else None, num_inference_steps=3)
    inputs = {"snippets": snippets, "baseline": trained.artifact}
    said = export_policy(inputs, tmp_path / "policy", acting, SilentProgress())
    assert said.method == kind.split()[0]
    assert set(said.graphs) == ({"act"} if said.method == "mlp" else {"plan", "act"})
    assert said.parity["random_inputs"]["before_clipping"] < 1e-4

    seen = recorded(inputs)
    policy = ExportedPolicy(tmp_path / "policy")
    unclipped, _ = act_with_noise(policy, (PLAN, seen))
    expected = run(trained.policy.batch_policy(acting, 1), seen)
    np.testing.assert_allclose(unclipped, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(unclipped, axis=0).min() > 1e-3
    assert "episode" not in kind or said.horizon == EPISODE
    replans = 0 if said.horizon is None else -(-len(unclipped) // said.horizon)
    assert policy.replans == replans


def test_actions_are_clipped_to_the_data_s_limits(exported):
    from lwdctl.deploy.runtime import ExportedPolicy

    policy = ExportedPolicy(exported()[1])
    policy.reset(1, "push", "slow")
    near = {"thing": np.zeros(3), "hand": np.zeros(2)}
    assert np.abs(policy.act(near)).max() < 2000.0
    far = {"thing": np.full(3, 50.0), "hand": np.full(2, 1e6)}
    assert np.abs(policy.act(far)).tolist() == [2000.0, 2000.0]


@pytest.mark.slow
def test_limits_that_change_what_the_policy_does_are_named(tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from lwdctl.deploy.export import act_with_noise, export_policy
    from lwdctl.deploy.runtime import ExportedPolicy

    class Recorder(SilentProgress):
        messages = ()

        def message(self, text):
            self.messages = (*self.messages, text)

    narrow = replace(SOURCE.action, low=(-2000.0, -0.1), high=(2000.0, 0.1), limits="data")
    monkeypatch.setattr(toy_chain, "SOURCE", replace(SOURCE, action=narrow))
    inputs = publish_chain(tmp_path / "runs", TOY)
    progress, acting = Recorder(), Acting(5, num_inference_steps=3)
    parity = export_policy(inputs, tmp_path / "policy", acting, progress).parity
    found = parity["demonstrations"]
    assert 0 < found["clipped"] <= 0.5
    assert found["before_clipping"] < 1e-4
    unclipped, actions = act_with_noise(
        ExportedPolicy(tmp_path / "policy"), (PLAN, recorded(inputs))
    )
    assert np.abs(unclipped - actions)[:, 0].max() == 0
    assert np.abs(actions[:, 1]).max() == np.float32(0.1)
    # One of the demonstrations that were compared, with noise of its own.
    assert found["largest_clipping"] == pytest.approx(np.abs(unclipped - actions).max(), rel=2)
    (warning,) = [text for text in progress.messages if "warning" in text]
    assert "action limits (source: data) clip" in warning
    assert f"{found['clipped']:.1%}" in warning


def test_the_description_says_what_a_robot_needs(exported):
    inputs, directory = exported()
    said = json.loads((directory / "policy.json").read_text())
    assert said["observations"] == [
        {"name": "thing", "size": 3, "network": True},
        {"name": "hand", "size": 2, "network": True},
    ]
    assert said["action"]["semantics"] == "absolute"
    assert (said["history"], said["horizon"]) == (2, 5)
    assert said["tasks"] == ["push", "pull"]
    assert (said["method"], said["opset"], said["num_inference_steps"]) == ("lwd", 17, 3)
    plan, act = said["graphs"]["plan"], said["graphs"]["act"]
    index, number = {"type": "int64", "shape": []}, {"type": "float32", "shape": []}
    assert plan["inputs"] == {
        "observations": {"type": "float32", "shape": [2, 5]},
        "task": index,
        "label": index,
        "noise": {"type": "float32", "shape": [16]},
    }
    assert plan["outputs"]["layers.0.weight"] == {"type": "float32", "shape": [16, 6]}
    assert act["inputs"] == {
        **plan["outputs"],
        "observation": {"type": "float32", "shape": [5]},
        "time": number,
    }
    assert set(act["outputs"]) == {"action", "unclipped"}
    artifacts = said["provenance"]["artifacts"]
    assert artifacts["diffusion"]["digest"] == inputs["diffusion"].digest
    assert set(artifacts) == {"snippets", "vae", "latents", "diffusion"}
    for kind in ("demonstrations", "random_inputs"):
        found = said["parity"][kind]
        assert found["steps"] > 60
        assert found["after_clipping"] <= found["before_clipping"] < 1e-4
        assert found["clipped"] == found["largest_clipping"] == 0
    assert said["parity"]["exported_step_ms"] > 0
    assert set(said["files"]) == {"plan.onnx", "act.onnx"}
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        [*said["files"], "policy.json"]
    )


ON_A_ROBOT = """
import sys
NOT_THERE = {"torch", "diffusers", "hypnettorch", "zarr", "h5py", "gymnasium", "mujoco", "typer",
             "safetensors"}
class Blocker:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in NOT_THERE:
            raise ModuleNotFoundError(f"no module named {name}", name=name)
sys.meta_path.insert(0, Blocker())
import numpy as np
from lwdctl.deploy.controller import TwoRateController
from lwdctl.deploy.runtime import ExportedPolicy
with TwoRateController(ExportedPolicy(sys.argv[1])) as controller:
    controller.reset(3, "pull", "slow")
    for step in range(12):
        action = controller.act({"thing": np.zeros(3), "hand": np.zeros(2)})
assert action.shape == (2,)
assert not NOT_THERE & set(sys.modules)
"""


def test_it_runs_where_there_is_no_torch(exported):
    done = subprocess.run(
        [sys.executable, "-c", ON_A_ROBOT, str(exported()[1])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "side", "found"),
    [
        ("demonstrations", "before_clipping", 2e-3),
        ("demonstrations", "after_clipping", float("nan")),
        ("random_inputs", "before_clipping", float("nan")),
        ("random_inputs", "after_clipping", 2e-3),
    ],
)
def test_what_differs_is_not_written(exported, tmp_path, monkeypatch, kind, side, found):
    from lwdctl.deploy import export

    inputs, _ = exported()
    target = tmp_path / "out" / "policy"
    same = {"before_clipping": 0.0, "after_clipping": 0.0}
    parity = {"demonstrations": same, "random_inputs": same, kind: {**same, side: found}}
    monkeypatch.setattr(export, "measure_parity", lambda *_: parity)
    where = f"{kind.replace('_', ' ')}, {side.replace('_', ' ')}"
    with pytest.raises(LwdctlError, match=rf"differs from the trained one.*\({where}\)"):
        export.export_policy(
            inputs, target, export.Acting(5, num_inference_steps=3), SilentProgress()
        )
    assert list(target.parent.iterdir()) == []


def test_what_cannot_be_exported(exported, tmp_path, monkeypatch):
    from lwdctl.deploy import export

    inputs, directory = exported()
    with pytest.raises(ConfigError, match="not empty"):
        export.export_policy(inputs, directory, export.Acting(), SilentProgress())
    with pytest.raises(ConfigError, match="51 are too many"):
        export.export_policy(
            inputs, tmp_path / "new", export.Acting(5, num_inference_steps=51), SilentProgress()
        )
    monkeypatch.setitem(sys.modules, "onnx.checker", None)
    with pytest.raises(MissingExtraError) as caught:
        export.export_policy(inputs, tmp_path / "new", export.Acting(), SilentProgress())
    assert install_extra("onnx") in caught.value.hint
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_on_the_command_line(exported, tmp_path, monkeypatch, capfd):
    exported()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    publish_chain(tmp_path / "runs", TOY)
    words = ["export", "policy", "--horizon", "episode", "--num-inference-steps", "4", "--json"]
    assert main(words) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert answer["path"] == "toy-policy"
    assert answer["summary"]["source"] == "diffusion/toy:v1"
    assert answer["summary"]["horizon"] == "episode"
    assert answer["summary"]["num_inference_steps"] == 4
    assert answer["summary"]["bytes"] > 1000
    assert "reading diffusion/toy:v1 (the newest)" in err
    assert main(words) == 1
    assert "--output" in capfd.readouterr().err
    assert main(["export", "policy", "--diffusion", "toy", "--baseline", "toy", "-q"]) == 2
    assert "leave one out" in capfd.readouterr().err
    for odd in ("soon", "²"):
        assert main(["export", "policy", "--horizon", odd, "-q"]) == 2
        assert f"'horizon' takes int or 'episode', not '{odd}'" in capfd.readouterr().err
    assert main(["export", "arrow"]) == 2
    assert "known: policy, minari" in capfd.readouterr().err
