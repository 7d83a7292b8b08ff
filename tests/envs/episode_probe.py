"""A fixed episode that another process can run as well."""

from dataclasses import replace

import numpy as np

from lwdctl.core.records import EnvSpec
from lwdctl.envs.table import make_simulator
from lwdctl.policies.policy import PolicyCost

NAN_AT = 3


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


class Blinking:
    """Any environment, which calls its task solved at the k-th step of the k-th episode only."""

    def __init__(self, env, task):
        self._simulator = make_simulator(replace(env, adapter=env.settings["adapter"]), task)
        self._episodes = self._steps = 0

    def __getattr__(self, name):
        return getattr(self._simulator, name)

    def reset(self, seed):
        self._episodes, self._steps = self._episodes + 1, 0
        return self._simulator.reset(seed)

    def step(self, action):
        self._steps += 1
        solved = self._steps == self._episodes
        return replace(self._simulator.step(action), success=solved, terminated=False)


class Middle:
    """A policy for one environment: the middle of the limits, or NaN at one step."""

    def __init__(self, action, nan_at=None):
        self._middle = (np.array(action.low) + np.array(action.high)) / 2
        self._nan_at, self._count = nan_at, 0

    def reset(self, episodes):
        self._count = 0

    def act(self, observations, active):
        self._count += 1
        row = self._middle if self._count != self._nan_at else np.full_like(self._middle, np.nan)
        return row[None].astype(np.float32)

    def cost(self):
        return PolicyCost(np.zeros(1, dtype=np.int64), {})
