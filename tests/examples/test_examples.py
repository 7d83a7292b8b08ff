"""Every example runs as its docstring says, one after the other in one workspace."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import lwdctl
from lwdctl.models.denoiser import DenoiserSpec

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# run_a_policy.py runs in tests/stages/test_chain.py, on the chain that is trained there;
# reach.py is what the others import, and two_ways.py what its recipe does.
RUN_HERE = {
    "train_on_your_hdf5", "evaluate_your_environment", "add_a_policy", "control_loop",
    "compare_with_robomimic", "two_ways_paths", "where_policies_fall", "replay_nearest",
    "mixture_prior", "flow_prior",
}  # fmt: skip


def run(*words: object, **variables: str) -> str:
    """Run a program and return what it printed."""
    if "PYTHONPATH" in variables and os.environ.get("PYTHONPATH"):
        variables["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("examples") / "my-runs"
    assert run(EXAMPLES / "train_on_your_hdf5.py", runs).startswith(
        "<Diffusion diffusion/reach:v1: "
    )
    return runs


def success(line: str) -> float:
    found = re.search(r"success (\d\.\d\d)", line)
    assert found, line
    return float(found[1])


@pytest.mark.slow
def test_evaluating_an_environment_of_ones_own(trained: Path) -> None:
    lines = run(EXAMPLES / "evaluate_your_environment.py", trained).splitlines()
    assert [line.split()[0] for line in lines] == ["sampled", "mean"]
    sampled, mean = map(success, lines)
    assert sampled >= 0.8
    assert mean <= 0.5


@pytest.mark.slow
def test_the_command_line_evaluates_it_too(trained: Path) -> None:
    """The file holds no initial states, which the default's `oracle` would restore."""
    command = [
        "-m", "lwdctl", "eval", "--workspace", trained, "--trust", "reach:Reach", "--episodes", 1,
        "--max-steps", 3, "--workers", 0, "--json",
    ]  # fmt: skip
    rows = json.loads(run(*command, PYTHONPATH=str(EXAMPLES)))["summary"]["results"]
    assert {row["latent"] for row in rows} == {"sampled", "shuffled", "mean"}
    with pytest.raises(AssertionError, match="holds an initial state") as refused:
        run(*command, "--latent", "sampled,oracle", PYTHONPATH=str(EXAMPLES))
    assert "lwd-sampled:" not in str(refused.value)


@pytest.mark.slow
def test_adding_a_policy(trained: Path) -> None:
    printed = run(EXAMPLES / "add_a_policy.py", trained)
    for name in ("lwd", "towards the goal"):
        found = re.search(rf"^{name} +all +(\d(?:\.\d+)?) ", printed, re.MULTILINE)
        assert found, printed
        assert float(found[1]) >= 0.8
    assert "Paired tests" in printed


@pytest.mark.slow
def test_replaying_the_most_similar_moment(trained: Path) -> None:
    printed = run(EXAMPLES / "replay_nearest.py", trained, "snippets/reach", 16)
    assert re.search(r"^replay +all .* 50 +0$", printed, re.MULTILINE), printed


@pytest.mark.slow
def test_a_recorded_episode_is_replayed_exactly(trained: Path) -> None:
    data = lwdctl.load_dataset("snippets/reach", workspace=trained)
    policy = runpy.run_path(str(EXAMPLES / "replay_nearest.py"))["Replay"](data, 3)
    for episode in data[2:4]:
        policy.reset()
        for step in range(7):
            seen = {key: rows[step] for key, rows in episode.observations.items()}
            assert np.array_equal(policy.act(seen), episode.actions[step])


@pytest.mark.slow
def test_a_policy_of_robomimic_beside_lwd(trained: Path) -> None:
    pytest.importorskip("robomimic", reason="robomimic is not installed")
    # robomimic imports torchvision for its image networks; beside a CPU build of torch it breaks.
    stand_in = Path(__file__).parent / "stand_in"
    printed = run(EXAMPLES / "compare_with_robomimic.py", trained, PYTHONPATH=str(stand_in))
    for name in ("lwd", "robomimic"):
        found = re.search(rf"^{name} +all +(\d(?:\.\d+)?) ", printed, re.MULTILINE)
        assert found, printed
        assert float(found[1]) >= 0.7


@pytest.mark.slow
def test_the_control_loop(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    words = ["export", "policy", "--workspace", trained, "--output", tmp_path / "policy", "-q"]
    run("-m", "lwdctl", *words)  # the policy runs without the environment's file
    lines = run(EXAMPLES / "control_loop.py", tmp_path / "policy").splitlines()
    # On a busy machine steps come late, so the last centimeters are not asked for.
    found = re.match(r"(?:not )?reached: (\d\.\d+) from the goal", lines[0])
    assert found
    assert float(found[1]) < 0.3
    assert re.match(r"\d+ plans, \d+ late steps, \d+ missed deadlines", lines[1])
    assert re.match(r"plans at most \d+ steps old; largest jump \d\.\d+", lines[2])


@pytest.mark.slow
def test_the_command_line_finds_the_environment_by_its_name(trained: Path) -> None:
    words = ["eval", "--latent", "sampled", "--episodes", "2", "--workers", "1", "--json", "-q"]
    words += ["--trust", "reach:Reach"]
    told = run("-m", "lwdctl", *words, "--workspace", trained, PYTHONPATH=str(EXAMPLES))
    cells = json.loads(told)["summary"]["results"]
    assert {(cell["env"], cell["episodes"]) for cell in cells} == {("reach:Reach", 2)}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert path.stem in RUN_HERE | {"run_a_policy", "reach", "two_ways"}
    assert len(text.splitlines()) <= 60
    told = ast.get_docstring(ast.parse(text)) or ""
    assert f"python examples/{path.name}" in told or "lwdctl ingest" in told


@pytest.mark.slow
def test_where_policies_fall(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), 8
    with h5py.File(tmp_path / "halfcheetah_expert.hdf5", "w") as file:
        for name, size in (("actions", 6), ("infos/qpos", 9), ("infos/qvel", 9)):
            file[name] = rng.uniform(-0.1, 0.1, (rows, size)).astype(np.float32)
        file["observations"] = rng.uniform(-0.1, 0.1, (rows, 17)).astype(np.float32)
        file["rewards"] = np.full(rows, 10.0, np.float32)  # no untrained policy earns half of it
        file["terminals"] = np.zeros(rows, bool)
        file["timeouts"] = np.arange(rows) % 4 == 3
    runs = {"LWDCTL_WORKSPACE": str(tmp_path / "runs")}
    run("-m", "lwdctl", "ingest", "d4rl", tmp_path / "halfcheetah_expert.hdf5", "-q", **runs)
    run("-m", "lwdctl", "train-baseline", "mlp", "--updates", 2, "--name", "mlp", "-q", **runs)
    words = "HalfCheetah-v4", tmp_path / "halfcheetah_expert.hdf5", "baseline/mlp", "expert", 0, 2
    lines = run(EXAMPLES / "where_policies_fall.py", *words, **runs).splitlines()
    assert lines == [f"from step {at}: 2 episodes, 2 fell: {{0: 0, 1: 0}}" for at in (0, 2)]


def test_what_counts_as_a_fall() -> None:
    text = (EXAMPLES / "where_policies_fall.py").read_text()
    known: dict[str, Any] = {}
    exec(text.partition("\nname, path")[0], known)
    known["STEPS"] = 3
    seen: list[Any] = []

    class Env:
        unwrapped = property(lambda self: self)
        reset = set_state = lambda _, *state, **seed: seen.append(state or seed)
        step = lambda _, action: (action + 1.0, float(action[0]), False, False, {})  # noqa: E731

    policy = SimpleNamespace(
        source=SimpleNamespace(network_keys=("state",)), act=lambda seen: seen["state"] / 2
    )
    earned = known["rewards_from"](Env(), policy, "qpos", "qvel", np.array([1.0]))
    assert seen == [{"seed": 0}, ("qpos", "qvel")]  # from the recorded state
    np.testing.assert_allclose(earned, [0.5, 0.75, 0.875])
    known["STEPS"], fell_after = 900, known["fell_after"]
    good = np.full(900, 10.0)
    assert fell_after(good, 10.0) is None
    assert fell_after(good[:500], 10.0) == 500  # the simulator ended it
    late = np.where(np.arange(900) < 600, 10.0, 0.0)
    assert fell_after(late, 10.0) == 650
    assert fell_after(np.where(np.arange(900) < 30, 0.0, 10.0), 10.0) is None  # a slow start


@pytest.fixture
def two_ways(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("two_ways")


def test_demonstrations_pass_the_obstacle_on_both_sides(
    two_ways: ModuleType, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "recorded.hdf5", "w") as file:
        for seed in range(60):
            two_ways.record(file, seed)
        above = 0
        for demo in file["data"].values():
            path = demo["obs/point"][:]
            assert np.linalg.norm(path, axis=1).min() > two_ways.RADIUS
            assert np.linalg.norm(path[-1] - demo["obs/goal"][-1]) < 0.05
            side = path[np.abs(path[:, 0]).argmin(), 1] > 0
            assert demo.attrs["label"] == ("above" if side else "below")
            above += side
        assert 20 <= above <= 40


def test_the_obstacle_stops_what_runs_into_it(two_ways: ModuleType) -> None:
    env = two_ways.TwoWaysEnv()
    env.reset(seed=0)
    for _ in range(48):
        seen, *_, info = env.step(np.array([0.05, 0.0]))
    assert seen[0] < -0.2
    assert not info["success"]


@pytest.mark.slow
def test_a_mixture_in_the_place_of_the_denoiser() -> None:
    printed = run(EXAMPLES / "mixture_prior.py")
    assert float(re.findall(r"^own +all +(\S+)", printed, re.MULTILINE)[0]) > 0.5


def test_the_mixture_predicts_what_integration_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    mixture = importlib.import_module("mixture_prior").GaussianMixture
    network = mixture(DenoiserSpec("custom", 1, 2, (1, 1), "s", 16, 1, 0.0), components=3)
    condition, noisy = torch.tensor([[0.3, -0.5]]), torch.tensor([[0.7]])
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    for step in torch.tensor([[0], [40], [90]]):
        levels, log_weights, means, variances = network.context(step, condition)
        signal, std = levels[0].double()
        parts = torch.distributions.Normal(means[0].double(), variances[0].double().sqrt())
        prior = (log_weights[0].double().exp()[:, None] * parts.log_prob(grid).exp()).sum(0)
        weight = prior * torch.exp(-0.5 * ((noisy[0] - signal * grid) / std) ** 2)
        expected = (weight * grid).sum() / weight.sum()
        assert network(noisy, step, condition).item() == pytest.approx(expected.item(), abs=1e-4)
    (_, *every) = next(network.contexts(torch.tensor([90, 40]), condition))
    assert all(map(torch.equal, every, (log_weights, means, variances)))


@pytest.mark.slow
def test_a_flow_in_the_place_of_the_denoiser() -> None:
    printed = run(EXAMPLES / "flow_prior.py")
    assert float(re.findall(r"^flow +all +(\S+)", printed, re.MULTILINE)[0]) > 0.5


def test_the_flows_loss_is_the_likelihood_of_what_it_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    make = importlib.import_module("flow_prior").NormalizingFlow
    flow = make(DenoiserSpec("custom", 4, 2, (1, 4), "s", 16, 1, 0.0), layers=3, blur=0.0).double()
    noise, condition = torch.randn(5, 4).double(), torch.randn(1, 2).double()

    def sampled(noise: torch.Tensor) -> torch.Tensor:
        (context,) = flow.contexts(torch.tensor([99]), condition.expand(len(noise), 2))
        return flow.predict(noise, context)

    slopes = [torch.autograd.functional.jacobian(sampled, row[None]).reshape(4, 4) for row in noise]
    volume = torch.stack([slope.slogdet().logabsdet for slope in slopes])
    expected = (0.5 * noise.square().sum(1) + volume).mean() / 4
    given = flow.training_loss(sampled(noise), condition.expand(5, 2), torch.zeros(5, 4))
    assert given.item() == pytest.approx(expected.item(), abs=1e-9)
    with pytest.raises(lwdctl.ConfigError, match="one step"):
        flow.contexts(torch.tensor([99, 49]), condition)


@pytest.mark.slow
def test_ten_policies_from_one_start(two_ways: ModuleType, tmp_path: Path) -> None:
    runs, recorded = tmp_path / "runs", tmp_path / "recorded.hdf5"
    run(EXAMPLES / "two_ways.py", recorded)
    words = ["run", ROOT / "pipelines/two_ways.toml", "-q", "--set", f"ingest.paths={recorded}"]
    for stage in ("train-vae", "train-diffusion", "train-baseline"):
        words += ["--set", f"{stage}.updates=5"]
    run("-m", "lwdctl", *words, "--until", "mlp", "--workspace", runs, PYTHONPATH=str(EXAMPLES))
    picture = tmp_path / "paths.png"
    lines = run(EXAMPLES / "two_ways_paths.py", runs, picture, 3, PYTHONPATH=str(EXAMPLES))
    numbers = [re.findall(r"\d\.\d+", line) for line in lines.splitlines()]
    assert [len(line) for line in numbers] == [2, 2, 2]
    assert numbers[2] == ["0.000", "1.000"]  # an MLP has one answer
    assert picture.stat().st_size > 10_000


def test_the_environment_keeps_the_simulators_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    from lwdctl.core.records import EnvSpec
    from lwdctl.envs.table import make_simulator

    monkeypatch.syspath_prepend(EXAMPLES)
    simulator = make_simulator(EnvSpec("reach:Reach", ("reach",)), "reach")
    first = simulator.reset(100_000)
    assert {name: rows.shape for name, rows in first.items()} == {"point": (2,), "goal": (2,)}
    state = simulator.initial_state()
    step = simulator.step(np.full(2, 9.0, dtype=np.float32))
    assert np.allclose(step.observation["point"], np.clip(first["point"] + 0.1, -1, 1))
    again = simulator.restore(state)
    assert all(np.array_equal(first[name], again[name]) for name in first)
