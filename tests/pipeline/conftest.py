"""Small input files in the layouts that recipes read, and one workspace for all toy runs."""

from __future__ import annotations

import numpy as np
import pytest

STATES = {
    "halfcheetah": ("mujoco", "HalfCheetah-v4", {}, {"qpos": 9, "qvel": 9}),
    "walker2d": ("mujoco", "Walker2d-v4", {}, {"qpos": 9, "qvel": 9}),
    "ant": ("mujoco", "Ant-v4", {}, {"qpos": 15, "qvel": 14}),
    "hammer": ("adroit", "AdroitHandHammer-v1", {}, {"qpos": 33, "qvel": 33, "board_pos": 3}),
}
EPISODES, STEPS = 4, 20


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory):
    """Return a function from the name of a recipe's file to the path of a small one."""
    folder = tmp_path_factory.mktemp("toy-data")

    def find(name):
        path = folder / name
        if not path.exists():
            robot = name.partition("_")[0]
            writers = {"pusht": write_replay_buffer, "two": write_two_ways}
            writers.get(robot, write_d4rl)(path)
        return str(path)

    return find


@pytest.fixture(scope="session")
def toy_workspace(tmp_path_factory):
    """A workspace where recipes find what others have made."""
    return tmp_path_factory.mktemp("toys")


def write_two_ways(path):
    """Record demonstrations around the obstacle; `examples` is on the import path."""
    import h5py
    from two_ways import record

    with h5py.File(path, "w") as file:
        for seed in range(EPISODES):
            record(file, seed)


def write_d4rl(path):
    """Record random actions in D4RL's layout."""
    import h5py

    from lwdctl.core.records import EnvSpec
    from lwdctl.envs.table import make_simulator

    adapter, name, settings, parts = STATES[path.name.partition("_")[0]]
    simulator = make_simulator(EnvSpec(adapter, (name,), {"id": name, **settings}), name)
    rng = np.random.default_rng(len(path.name))
    rows = {key: [] for key in ("observations", "actions", "rewards")}
    rows |= {f"infos/{part}": [] for part in parts}
    for seed in range(EPISODES):
        seen = simulator.reset(seed)
        state = np.split(simulator.initial_state(), np.cumsum(list(parts.values()))[:-1])
        for _ in range(STEPS):
            action = rng.uniform(-1, 1, simulator.action.size).astype(np.float32)
            step = simulator.step(action)
            # Only an episode's first state is read.
            values = (seen["observation"], action, step.reward, *state)
            for key, value in zip(rows, values, strict=True):
                rows[key].append(value)
            seen = step.observation
    simulator.close()
    count = EPISODES * STEPS
    with h5py.File(path, "w") as file:
        for key, values in rows.items():
            file[key] = np.array(values, dtype=np.float32)
        file["terminals"] = np.zeros(count, dtype=bool)
        file["timeouts"] = np.arange(count) % STEPS == STEPS - 1


def write_replay_buffer(path):
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
