"""An environment of your own: a point in the plane that has to reach a goal.

`ReachEnv` is an ordinary Gymnasium environment; `Reach` makes it one that lwdctl can evaluate.
Nothing has to be registered: wherever lwdctl takes an environment, this one is called
`reach:Reach` (module:class), if Python finds this file:

    PYTHONPATH=examples lwdctl ingest robomimic DEMOS.hdf5 --env reach:Reach/reach
"""

from __future__ import annotations

import gymnasium
import numpy as np

from lwdctl import ActionSpec, GymnasiumSimulator, Metric, ObservationSpec

CLOSE = 0.05


class ReachEnv(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,))
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.uniform(-1.0, 1.0, (2, 2))
        return self._seen(), {}

    def step(self, action):
        self.point = np.clip(self.point + action, -1.0, 1.0)
        distance = float(np.linalg.norm(self.goal - self.point))
        info = {"success": distance < CLOSE, "distance": distance}
        return self._seen(), -distance, False, False, info

    def _seen(self):
        return np.concatenate([self.point, self.goal]).astype(np.float32)


def demonstrate(env: ReachEnv, seed: int):
    """Record a demonstration: observations (time, 4) and actions (time, 2)."""
    observation, _ = env.reset(seed=seed)
    seen, done = [], []
    for _ in range(30):
        action = np.clip(0.3 * (observation[2:] - observation[:2]), -0.1, 0.1)
        seen.append(observation)
        done.append(action)
        observation, *_ = env.step(action)
    return np.stack(seen), np.stack(done)


class Reach(GymnasiumSimulator):
    observations = (ObservationSpec("point", 2), ObservationSpec("goal", 2))
    action = ActionSpec(2, "delta", "meters", (-0.1, -0.1), (0.1, 0.1), control_rate=10.0)
    # An aborted episode counts with the worst distance, the diagonal of the square.
    metrics = (Metric("final_distance", "distance", "last", failed=2.83),)
    max_steps = 40

    def make(self, task):
        return ReachEnv()
