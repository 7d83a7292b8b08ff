"""Train on demonstrations of your own, written as an HDF5 file in robomimic's layout.

    python examples/train_on_your_hdf5.py my-runs

The layout is data/demo_0/{actions, obs/KEY}, one row per step; any number of keys. Left out
here because optional: rewards, states, masks, and env_args (the environment is named instead).
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
from reach import ReachEnv

from lwdctl.artifacts.workspace import Workspace
from lwdctl.pipeline.calls import run_stage

DEMONSTRATIONS = 50


def demonstrate(env: ReachEnv, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Your own recording goes here: observations (time, 4) and actions (time, 2)."""
    observation, _ = env.reset(seed=seed)
    seen, done = [], []
    for _ in range(30):
        action = np.clip(0.3 * (observation[2:] - observation[:2]), -0.1, 0.1)
        seen.append(observation)
        done.append(action)
        observation, *_ = env.step(action)
    return np.stack(seen), np.stack(done)


def write_hdf5(path: Path) -> None:
    env = ReachEnv()
    with h5py.File(path, "w") as file:
        for number in range(DEMONSTRATIONS):
            seen, actions = demonstrate(env, seed=number)
            demo = file.create_group(f"data/demo_{number}")
            demo["obs/point"], demo["obs/goal"] = seen[:, :2], seen[:, 2:]
            demo["actions"] = actions


workspace = Workspace(Path(sys.argv[1] if len(sys.argv) > 1 else "lwd-runs"))
workspace.root.mkdir(parents=True, exist_ok=True)
recorded = workspace.root / "reach.hdf5"
write_hdf5(recorded)
small = {"updates": 300, "snippet_length": 10, "policy_width": 32, "decoder": "xs"}
run_stage("ingest", workspace, {"paths": [str(recorded)], "env": "reach:Reach/reach"})
run_stage("train-vae", workspace, small)
run_stage("encode", workspace)
trained = run_stage("train-diffusion", workspace, {"updates": 600, "width": 64})
print(f"{trained.reference}: denoising error {trained.manifest.summary['denoising']:.3f}")
