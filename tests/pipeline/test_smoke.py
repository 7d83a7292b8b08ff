"""Every shipped recipe runs from its first stage to its last at toy size."""

import json
from pathlib import Path

import numpy as np
import pytest

from lwdctl.cli.main import main

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
CHAIN = {"snippets", "vae", "latents", "diffusion", "evaluation"}

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("workspace_path")]


def run(capfd, recipe, *words):
    code = main(["run", str(PIPELINES / recipe), "--smoke", "--json", "-q", *words])
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out)["summary"]


def arms(summary):
    return {
        (cell["policy"], cell["latent"]) for cell in summary["results"] if cell["task"] == "all"
    }


@pytest.mark.parametrize("recipe", ["quickstart.toml", "metaworld10.toml"])
def test_metaworld(recipe, capfd, workspace_path):
    summary = run(capfd, recipe)
    assert {stage["state"] for stage in summary["stages"]} == {"ran"}
    assert {path.name for path in workspace_path.iterdir()} == CHAIN | {"demonstrations"}
    lwd = {("lwd", latent) for latent in ("sampled", "encoded", "other", "mean")}
    assert lwd < arms(summary)
    assert {policy for policy, _ in arms(summary)} == {"lwd", "random"}
    assert all(cell["errors"] == 0 for cell in summary["results"])
    again = run(capfd, recipe)
    assert {stage["state"] for stage in again["stages"]} == {"up to date"}


def test_pusht(capfd, workspace_path, tmp_path):
    path = replay_buffer(tmp_path / "replay.zarr")
    summary = run(capfd, "pusht.toml", "--set", f"ingest.paths={path}")
    assert {stage["state"] for stage in summary["stages"]} == {"ran"}
    assert {path.name for path in workspace_path.iterdir()} == CHAIN
    sampled = [
        cell for cell in summary["results"] if cell["latent"] == "sampled" and cell["task"] == "all"
    ]
    assert [(cell["snippet_length"], cell["horizon"]) for cell in sampled] == [
        (16, 16), (64, 64), (64, 16), (64, 32), (64, 128),
    ]  # fmt: skip
    assert all("max_overlap" in cell["metrics"] for cell in sampled)


def test_halfcheetah(capfd, workspace_path, tmp_path):
    paths = [d4rl_file(tmp_path, level) for level in ("expert", "medium", "random")]
    summary = run(capfd, "halfcheetah.toml", "--set", f"ingest.paths={','.join(paths)}")
    assert {stage["state"] for stage in summary["stages"]} == {"ran"}
    assert {path.name for path in workspace_path.iterdir()} == CHAIN
    for cell in summary["results"]:
        assert set(cell["by_label"]) == {"expert", "medium", "random"}
        assert cell["errors"] == 0
        sources = ["source_return" in row for row in cell["by_label"].values()]
        assert all(sources) if cell["latent"] == "encoded" else not any(sources)


def test_hammer(capfd, workspace_path, tmp_path):
    pytest.importorskip("gymnasium_robotics", reason="the extra 'adroit' is not installed")
    path = d4rl_file(tmp_path, "expert", "AdroitHandHammer-v1")
    summary = run(capfd, "hammer.toml", "--set", f"ingest.paths={path}")
    assert {path.name for path in workspace_path.iterdir()} == CHAIN
    for cell in summary["results"]:
        assert cell["errors"] == 0
        assert "share_nail_impact_above_0.8" in cell["metrics"]


STATES = {
    "HalfCheetah-v4": ("mujoco", {"qpos": 9, "qvel": 9}),
    "AdroitHandHammer-v1": ("adroit", {"qpos": 33, "qvel": 33, "board_pos": 3}),
}


def d4rl_file(folder, level, name="HalfCheetah-v4"):
    """Record random actions in D4RL's layout; three episodes of 20 steps."""
    import h5py

    from lwdctl.core.records import EnvSpec
    from lwdctl.envs.table import make_simulator

    adapter, parts = STATES[name]
    simulator = make_simulator(EnvSpec(adapter, (name,), {"id": name}), name)
    rng = np.random.default_rng(0)
    rows = {key: [] for key in ("observations", "actions", "rewards")}
    rows |= {f"infos/{part}": [] for part in parts}
    for seed in range(3):
        seen = simulator.reset(seed)
        state = np.split(simulator.initial_state(), np.cumsum(list(parts.values()))[:-1])
        for _ in range(20):
            action = rng.uniform(-1, 1, simulator.action.size).astype(np.float32)
            step = simulator.step(action)
            # Only an episode's first state is read.
            values = (seen["observation"], action, step.reward, *state)
            for key, value in zip(rows, values, strict=True):
                rows[key].append(value)
            seen = step.observation
    simulator.close()
    path = folder / f"{name.partition('-')[0].lower()}_{level}.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in rows.items():
            file[key] = np.array(values, dtype=np.float32)
        file["terminals"] = np.zeros(60, dtype=bool)
        file["timeouts"] = np.arange(60) % 20 == 19
    return str(path)


def replay_buffer(path):
    """Write a small replay buffer in the layout of Diffusion Policy (zarr v2)."""
    import zarr

    rng = np.random.default_rng(0)
    ends = np.arange(80, 321, 80)
    size = int(ends[-1])
    position = np.clip(np.cumsum(rng.normal(0, 4, (size, 2)), axis=0) + 256, 60, 450)
    state = np.concatenate([position, np.full((size, 2), 300.0), rng.random((size, 1))], axis=1)
    root = zarr.open_group(path, mode="w", zarr_format=2)
    arrays = {
        "state": state,
        "action": position + rng.normal(0, 5, (size, 2)),
        "keypoint": rng.random((size, 9, 2)) * 512,
        "n_contacts": np.ones((size, 1)),
    }
    data = root.create_group("data")
    for name, array in arrays.items():
        data.create_array(name, data=array.astype(np.float32))
    root.create_group("meta").create_array("episode_ends", data=ends)
    return path
