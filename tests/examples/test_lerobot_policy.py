"""The distribution `lerobot_policy_lwd` in LeRobot's own environment.

lerobot demands other versions of torch and numpy than lwdctl: install it elsewhere, beside pytest,
gym-pusht and what the distribution needs, and name that interpreter in LWDCTL_LEROBOT_PYTHON.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "lerobot_policy_lwd"
PYTHON = os.environ.get("LWDCTL_LEROBOT_PYTHON", "")
NEEDED = ("lerobot.scripts.lerobot_eval", "onnxruntime", "msgspec", "pytest", "gym_pusht")

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not PYTHON, reason="LWDCTL_LEROBOT_PYTHON names no interpreter that has lerobot"
    ),
]


def run(*words, **variables):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **variables}
    return subprocess.run(
        [PYTHON, *map(str, words)],
        capture_output=True, text=True, timeout=500, check=False, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The import path of that interpreter with this distribution installed by pip."""
    found = run("-c", f"import {', '.join(NEEDED)}", PYTHONPATH="")
    if found.returncode:
        pytest.skip(f"{PYTHON}: {found.stderr.strip().splitlines()[-1]}")
    target = tmp_path_factory.mktemp("installed")
    words = ["-m", "pip", "install", "-q", "--no-deps", "--target", target, PLUGIN]
    done = run(*words, PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-3000:]
    return os.pathsep.join(map(str, (target, ROOT)))


def record_pusht(path):
    """Record episodes of gym-pusht that walk toward the block and past it."""
    import gymnasium

    import lwdctl.envs.pusht  # noqa: F401 - imports gym-pusht without its greeting

    env = gymnasium.make("gym_pusht/PushT-v0", obs_type="environment_state_agent_pos")
    with h5py.File(path, "w") as file:
        for number in range(6):
            rng = np.random.default_rng(number)
            seen, _ = env.reset(seed=number)
            rows = {"agent_pos": [], "environment_state": []}
            actions = []
            for step in range(30):
                block = seen["environment_state"].reshape(-1, 2).mean(axis=0)
                ahead = block + (block - seen["agent_pos"]) * step / 30
                actions.append(np.clip(ahead + rng.normal(0, 10, 2), 0, 512))
                for name, values in rows.items():
                    values.append(seen[name])
                seen, *_ = env.step(actions[-1])
            demo = file.create_group(f"data/demo_{number}")
            for name, values in rows.items():
                demo[f"obs/{name}"] = np.array(values, dtype=np.float32)
            demo["actions"] = np.array(actions, dtype=np.float32)
            demo.attrs["num_samples"] = len(actions)


@pytest.fixture(scope="module")
def pusht(tmp_path_factory):
    """LWD and DP, hardly trained on PushT, exported."""
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    import lwdctl
    from lwdctl.artifacts.workspace import Workspace
    from lwdctl.core.progress import SilentProgress
    from lwdctl.deploy.export import export_policy

    folder = tmp_path_factory.mktemp("pusht")
    record_pusht(folder / "pusht.hdf5")
    runs = folder / "runs"
    data = lwdctl.ingest(
        "robomimic", folder / "pusht.hdf5", workspace=runs,
        action_limits="0,512", actions="recorded-absolute",
    )  # fmt: skip
    vae = lwdctl.train_vae(
        data, lwdctl.VaeConfig(updates=100, snippet_length=8, policy_width=16, decoder="xs")
    )
    diffusion = lwdctl.train_diffusion(
        lwdctl.encode(vae), lwdctl.DiffusionConfig(updates=50, width=16)
    )
    chunks = lwdctl.train_baseline(
        "dp", data, lwdctl.BaselineConfig(updates=20, snippet_length=8, denoiser="mlp", width=32)
    )
    workspace, made = Workspace(runs), {}
    for name, kind, artifact in (
        ("lwd", "diffusion", diffusion.artifact),
        ("dp", "baseline", chunks.artifact),
    ):
        inputs = {**workspace.ancestors(artifact), kind: artifact}
        acting = lwdctl.Acting(4, num_inference_steps=4)
        export_policy(inputs, folder / f"pusht-{name}", acting, SilentProgress())
        made[name] = folder / f"pusht-{name}"
    return made


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory):
    """LWD with a history, conditioned on tasks and labels, untrained, exported."""
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    from lwdctl.core.progress import SilentProgress
    from lwdctl.deploy.export import export_policy
    from lwdctl.methods.method import Acting

    sys.path.insert(0, str(ROOT / "tests" / "deploy"))
    from toy_chain import TOY, publish_chain

    sys.path.pop(0)
    folder = tmp_path_factory.mktemp("conditioned")
    acting = Acting(5, num_inference_steps=6)
    export_policy(publish_chain(folder / "runs", TOY), folder / "toy", acting, SilentProgress())
    return folder / "toy"


def run_tests(files, installed, **variables):
    words = [PLUGIN / "tests" / name for name in files]
    done = run(
        "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--rootdir", PLUGIN, *words,
        PYTHONPATH=installed, **variables,
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", last)
    assert found, last
    return int(found[1]), last


def test_the_plugin_acts_as_the_exported_policy(installed, pusht, conditioned):
    policies = os.pathsep.join(map(str, (conditioned, *pusht.values())))
    passed, last = run_tests(
        ("test_policy.py", "test_command.py"), installed, EXPORTED_POLICIES=policies
    )
    assert passed > 60, last


def test_lerobot_eval_runs_an_lwd_policy(installed, pusht):
    passed, last = run_tests(
        ("test_lerobot_eval.py",), installed, EXPORTED_PUSHT_POLICY=str(pusht["lwd"])
    )
    assert (passed, "skipped" in last) == (1, False), last
