"""A fixed episode that another process can run as well."""

import numpy as np

from lwdctl.core.records import EnvSpec
from lwdctl.envs.table import make_simulator


def make(adapter, task, max_steps=0):
    return make_simulator(EnvSpec(adapter, (task,), {}, max_steps), task)


def play(simulator, first, steps=25, rng_seed=0):
    """Return (time, obs) and rewards under fixed actions."""
    rng = np.random.default_rng(rng_seed)
    low, high = np.array(simulator.action.low), np.array(simulator.action.high)
    rows, rewards = [np.concatenate(list(first.values()))], []
    for _ in range(steps):
        step = simulator.step(rng.uniform(low, high).astype(np.float32))
        rows.append(np.concatenate(list(step.observation.values())))
        rewards.append(step.reward)
    return np.stack(rows), np.array(rewards)


def seeded_episode(adapter, task, seed):
    simulator = make(adapter, task)
    try:
        return play(simulator, simulator.reset(seed))
    finally:
        simulator.close()
