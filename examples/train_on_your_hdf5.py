"""Train on demonstrations of your own, written as an HDF5 file in robomimic's layout.

    python examples/train_on_your_hdf5.py my-runs

The layout is data/demo_0/{actions, obs/KEY}, one row per step, with any number of keys.
Rewards, states, masks and env_args are optional and left out here (`env` names the environment).
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
from reach import ReachEnv, demonstrate

import lwdctl


def write_hdf5(path: Path) -> None:
    env = ReachEnv()
    with h5py.File(path, "w") as file:
        for number in range(50):
            seen, actions = demonstrate(env, seed=number)  # your own recording goes here
            demo = file.create_group(f"data/demo_{number}")
            demo["obs/point"], demo["obs/goal"] = seen[:, :2], seen[:, 2:]
            demo["actions"] = actions
            demo.attrs["num_samples"] = len(actions)


workspace = Path(sys.argv[1] if len(sys.argv) > 1 else "lwd-runs")
workspace.mkdir(parents=True, exist_ok=True)
recorded = workspace / "reach.hdf5"
write_hdf5(recorded)
data = lwdctl.ingest("robomimic", recorded, env="reach:Reach/reach", workspace=workspace)
vae = lwdctl.train_vae(
    data, lwdctl.VaeConfig(updates=300, snippet_length=10, policy_width=32, decoder="xs")
)
latents = lwdctl.encode(vae)
diffusion = lwdctl.train_diffusion(latents, lwdctl.DiffusionConfig(updates=600, width=64))
print(diffusion)
