"""Record with robosuite and convert with robomimic's scripts: what their users do.

    python record_with_robosuite.py FOLDER

Leaves `demo.hdf5` (states and actions) and `low_dim.hdf5` (with observations) in the folder.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import types
from pathlib import Path

import numpy as np

LENGTHS = (4, 6)


def record(folder: Path) -> None:
    import robosuite
    from robosuite.controllers import load_composite_controller_config
    from robosuite.scripts import collect_human_demonstrations as recorder
    from robosuite.wrappers import DataCollectionWrapper

    settings = {
        "env_name": "Lift",
        "robots": ["Panda"],
        "controller_configs": load_composite_controller_config(controller=None, robot="Panda"),
    }
    env = robosuite.make(
        **settings, has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False,
        reward_shaping=False, control_freq=20, ignore_done=True,
    )  # fmt: skip
    env._check_success = lambda: True  # the recorder keeps successful episodes only
    wrapped = DataCollectionWrapper(env, str(folder / "raw"))
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        wrapped.reset()
        for _ in range(length):
            wrapped.step(rng.uniform(-1, 1, 7))
    wrapped.close()
    recorder.gather_demonstrations_as_hdf5(str(folder / "raw"), str(folder), json.dumps(settings))


def run(module: str, *arguments: str) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    sys.modules["mujoco_py"] = types.ModuleType("mujoco_py")  # robomimic imports it for nothing
    os.chdir(sys.argv[1])
    record(Path.cwd())
    run("robomimic.scripts.conversion.convert_robosuite", "--dataset", "demo.hdf5")
    run(
        "robomimic.scripts.dataset_states_to_obs", "--dataset", "demo.hdf5",
        "--output_name", "low_dim.hdf5", "--done_mode", "2",
    )  # fmt: skip
