"""Two ways around an obstacle: demonstrations that differ although they begin alike.

    python examples/two_ways.py two_ways.hdf5
    PYTHONPATH=examples lwdctl run pipelines/two_ways.toml

The robot is that of reach.py, with a disc between start and goal. A coin, and nothing that it
observes, decides whether a demonstration passes above or below; their mean leads to the disc.
"""

from __future__ import annotations

import sys

import h5py
import numpy as np
from reach import Reach, ReachEnv

RADIUS, SPEED, STEPS = 0.3, 0.05, 48


class TwoWaysEnv(ReachEnv):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.uniform(-0.1, 0.1, (2, 2))
        self.point[0] -= 0.9
        self.goal[0] += 0.9
        return self._seen(), {}

    def step(self, action):
        inside = np.linalg.norm(self.point + action) < RADIUS  # the disc is solid
        return super().step(np.zeros(2) if inside else action)


class TwoWays(Reach):
    max_steps = STEPS

    def make(self, task):
        return TwoWaysEnv()


def record(file, seed):
    env, coin = TwoWaysEnv(), np.random.default_rng(seed)
    (observation, _), above = env.reset(seed=seed), coin.random() < 0.5
    corner, seen, actions = [0.0, coin.uniform(0.45, 0.6) * (1 if above else -1)], [], []
    for _ in range(STEPS):
        way = (corner if observation[0] < 0 else observation[2:]) - observation[:2]
        actions.append(way * min(1.0, SPEED / max(np.linalg.norm(way), SPEED)))
        seen.append(observation)
        observation, *_ = env.step(actions[-1])
    demo = file.create_group(f"data/demo_{seed}")
    demo["obs/point"], demo["obs/goal"] = np.split(np.stack(seen), 2, axis=1)
    demo["actions"] = np.stack(actions)
    demo["states"] = np.full((STEPS, 1), seed)  # a seed fixes an episode, so it is its state
    demo.attrs.update(num_samples=STEPS, label="above" if above else "below")


if __name__ == "__main__":
    with h5py.File(sys.argv[1], "w") as recorded:
        for number in range(400):
            record(recorded, number)
