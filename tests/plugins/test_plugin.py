"""Another package adds a reader, an environment, policies and a denoiser by its entry points."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lwdctl
from lwdctl.cli.main import main
from lwdctl.core import registry
from lwdctl.core.errors import ConfigError

HERE = Path(__file__).parent


@pytest.fixture
def demonstrations(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(tmp_path)
    registry._entry_points.cache_clear()
    from toy_plugin.robot import LineEnv

    env, seen, done = LineEnv(), [], []
    for seed in range(20):
        place, _ = env.reset(seed=seed)
        seen.append([])
        done.append([])
        for _ in range(12):
            action = np.clip(0.5 * (1.0 - place), -0.5, 0.5)
            seen[-1].append(place)
            done[-1].append(action)
            place, *_ = env.step(action)
    np.savez("line.npz", seen=np.array(seen), done=np.array(done))
    yield tmp_path / "line.npz"
    registry._entry_points.cache_clear()


@pytest.mark.slow
def test_everything_runs_with_plugins(demonstrations, capfd):
    def run(*words):
        status = main([*words, "--json", "-q"])
        printed = capfd.readouterr()
        assert status == 0, printed.err
        return json.loads(printed.out)

    small = ("--updates", "150", "--batch-size", "16")
    run("ingest", "toy-npz", "line.npz")
    run("train-vae", "--snippet-length", "6", "--policy-width", "16", "--decoder", "xs", *small)
    run("encode")
    run("train-diffusion", "--denoiser", "toy-net", *small)
    run("train-baseline", "toy-linear")
    table = run(
        "eval", "--policy", "lwd,toy-linear,toy-halfway,still,random", "--latent", "sampled,mean",
        "--episodes", "6", "--workers", "0", "--num-envs", "3",
    )  # fmt: skip
    rows = {
        (row["policy"], row["latent"]): row
        for row in table["summary"]["results"]
        if row["task"] == "all"
    }
    assert rows["toy-halfway", ""]["success"] == 1.0
    assert rows["toy-halfway", ""]["cost"] == {}  # not known, other than that of `still`
    assert rows["still", ""]["cost"]["flops_per_step"] == 0
    assert rows["toy-linear", ""]["success"] == 1.0
    assert rows["toy-linear", ""]["cost"]["flops_per_step"] == 2
    assert rows["still", ""]["success"] == 0.0
    assert rows["lwd", "sampled"]["success"] > rows["random", ""]["success"]
    compared = run("compare", "--output", "compared")
    assert compared["summary"]
    assert (demonstrations.parent / "compared" / "comparison.csv").exists()
    run("report", "--output", "report.html")
    assert "toy-halfway" in (demonstrations.parent / "report.html").read_text()
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    run("export", "policy", "--output", "exported")
    policy = lwdctl.load_policy("exported")
    policy.reset(seed=0)
    assert policy.act({"place": np.zeros(1, np.float32)}).shape == (1,)


def test_from_python(demonstrations):
    data = lwdctl.ingest("toy-npz", demonstrations)
    linear = lwdctl.train_baseline("toy-linear", data)
    policies = {"linear": lwdctl.load_policy(linear)}
    table = lwdctl.evaluate(policies, env="toy-line/right", episodes=3)
    assert table.rows[-1].success.value == 1.0


def test_they_are_listed_in_the_help(demonstrations, capsys):
    for words, name in (
        (["ingest"], "toy-npz"),
        (["train-baseline"], "toy-linear"),
        (["train-diffusion"], "toy-net"),
        (["eval"], "toy-halfway"),
    ):
        assert main([*words, "--help"]) == 0
        assert name in capsys.readouterr().out


def test_a_method_that_opens_something_else_is_answered(demonstrations, monkeypatch):
    from toy_plugin import method

    lwdctl.ingest("toy-npz", demonstrations)
    trained = lwdctl.train_baseline("toy-linear", lwdctl.load_dataset())
    monkeypatch.setattr(method.LeastSquares, "open_directory", lambda *words: method.Halfway())
    with pytest.raises(ConfigError, match="opened a Halfway, expected a TrainedPolicy"):
        lwdctl.load_policy(trained.artifact.path)


def test_an_unknown_environment_is_refused_at_ingest(demonstrations, capsys):
    assert main(["ingest", "toy-npz", "line.npz", "-q"]) == 0
    from toy_plugin import reader

    reader.EnvSpec, known = lambda name, *more: known("nonsense", *more), reader.EnvSpec
    try:
        assert main(["ingest", "toy-npz", "line.npz", "-q"]) == 1
    finally:
        reader.EnvSpec = known
    assert "no environment is called 'nonsense'" in capsys.readouterr().err


def test_an_environment_without_a_list_of_tasks_has_one(demonstrations, monkeypatch):
    from toy_plugin import robot

    class Halfway:
        def reset(self):
            pass

        def act(self, observation):
            (place,) = observation.values()
            return 0.5 * (1.0 - place)

    monkeypatch.delattr(robot, "task_names")
    for name in ("toy-line", "toy_plugin.robot:LineEnv"):  # an adapter, and a gymnasium.Env
        table = lwdctl.evaluate({"mine": Halfway()}, env=name, episodes=2, max_steps=12)
        assert table.rows[-1].success.value == 1.0


def test_a_policy_without_training_is_answered_with_how_to_run_it(demonstrations, capsys):
    assert main(["ingest", "toy-npz", "line.npz", "-q"]) == 0
    assert main(["train-baseline", "toy-halfway", "-q"]) == 1
    printed = capsys.readouterr().err
    assert "'toy-halfway' is not trained by lwdctl train-baseline" in printed
    assert "lwdctl eval --policy toy-halfway" in printed


def test_an_entry_point_that_builds_no_policy_is_named(demonstrations, monkeypatch, capsys):
    from toy_plugin import method

    assert main(["ingest", "toy-npz", "line.npz", "-q"]) == 0
    monkeypatch.setattr(method, "halfway", object())
    words = ("--episodes", "1", "--workers", "0", "-q")
    assert main(["eval", "--policy", "toy-halfway", *words]) == 1
    printed = capsys.readouterr().err
    assert "the plug-in 'toy-halfway' built no policy: TypeError: 'object' object is not" in printed
